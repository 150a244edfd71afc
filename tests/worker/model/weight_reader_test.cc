#include "worker/model/weight_reader.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <random>

#include "common/dummy_checkpoint.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/common/temp_model_dir.h"
#include "tests/support/catch.h"
#include "tests/support/no_threads.h"
#include "tests/support/random_elements.h"
#include "tests/support/random_seed.h"
#include "tests/support/tiny_checkpoint.h"
#include "tests/worker/runtime/tracing_backend.h"
#include "worker/model/weights.h"

namespace hadal::testing {
namespace {

// Writes a NaN or an infinity over one element of a tensor in `path`.
void Damage(const std::string& path, const Checkpoint::Entry& entry, int64_t row, int64_t column,
            bool infinity) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  uint64_t header = 0;
  file.read(reinterpret_cast<char*>(&header), 8);
  const int64_t size = DTypeSize(*entry.info.dtype);
  file.seekp(static_cast<std::streamoff>(8 + header + entry.info.begin) +
             (row * entry.columns.size() + column) * size);
  const uint32_t bits = *entry.info.dtype == DType::kF32    ? (infinity ? 0xff800000u : 0x7fc00000u)
                        : *entry.info.dtype == DType::kBF16 ? (infinity ? 0x7f80u : 0xffc0u)
                                                            : (infinity ? 0x7fu : 0xffu);  // NaN both
  file.write(reinterpret_cast<const char*>(&bits), size);
}

TEST_CASE("one value that no weight can have is found in any tensor, and named with its row") {
  std::mt19937_64 random(RandomSeed());
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    ModelConfig config = TinyConfig(dtype);
    config.inter_dim = 8000;  // dense matrices of two and four bytes are checked in several parts
    const Layout layout;
    const Range shared{0, config.shared_inter_dim()};
    for (int round = 0; round < 4; ++round) {
      TempDir dir;
      WriteTinyCheckpoint(dir.path(), config, random());
      auto backend = std::move(*MakeCpuBackend({.threads = 1, .isa = "portable"}));
      std::string name;
      int64_t row = 0;
      {
        const auto checkpoint = std::move(*Checkpoint::Open(dir.path()));
        CHECK(LoadWeights(config, layout, shared, *checkpoint, backend.get(), nullptr).ok());
        auto entry = std::next(checkpoint->entries().begin(),
                               static_cast<int64_t>(random() % checkpoint->entries().size()));
        if (round < 2) entry = checkpoint->entries().find("model.layers.0.mlp.up_proj.weight");
        name = entry->first;
        const int64_t rows = entry->second.rows.size(), columns = entry->second.columns.size();
        row = static_cast<int64_t>(random() % rows);
        Damage(dir.path() + "/model.safetensors", entry->second, row,
               static_cast<int64_t>(random() % columns), random() % 2 == 0);
      }
      CAPTURE(DTypeName(dtype), name, row);
      const auto checkpoint = std::move(*Checkpoint::Open(dir.path()));
      std::optional<NoThreads> no_threads;  // the caller then checks all parts
      if (round % 2 == 0) no_threads.emplace();
      const auto weights = LoadWeights(config, layout, shared, *checkpoint, backend.get(), nullptr);
      REQUIRE(weights.status().code() == StatusCode::kDataLoss);
      CHECK(weights.status().message().find(
                fmt::format("tensor {} holds a NaN or an infinity in row {};", name, row)) !=
            std::string::npos);
    }
  }
}

// Elements of a source that are not what its description says.
int64_t WrongElements(const WeightSource& s) {
  int64_t wrong = 0;
  for (int64_t n = 0; n < s.n; ++n) {
    for (int64_t k = 0; k < s.k; ++k) {
      const int64_t i = s.transposed ? k * s.row_stride + n : n * s.row_stride + k;
      wrong += BitsAt(s.data, s.dtype, i) !=
               RandomElementBits(s.dtype, s.random->seed, s.random->first + i);
    }
  }
  return wrong;
}

// Counts the sources that a backend was given.
int CheckRandomSources(const TracingBackend& backend, uint64_t seed) {
  int count = 0;
  for (const TracingBackend::Packed& packed : backend.packed()) {
    for (const StackedSource& sources : packed.matrices) {
      for (const WeightSource& source : sources) {
        CAPTURE(++count, source.n, source.k, source.transposed);
        REQUIRE(source.random.has_value());
        CHECK(source.random->seed == seed);
        CHECK(WrongElements(source) == 0);
      }
    }
  }
  return count;
}

Range RandomPart(int64_t size, std::mt19937_64& random) {
  const auto begin = static_cast<int64_t>(random() % static_cast<uint64_t>(size));
  return {begin, begin + 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(size - begin))};
}

TEST_CASE("slices of random weights are handed on with what they are") {
  std::mt19937_64 random(RandomSeed());
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    const ModelConfig config = TinyConfig(dtype);
    const uint64_t seed = random();
    const auto checkpoint = std::move(*MakeDummyCheckpoint(config, seed));
    CAPTURE(DTypeName(dtype), seed);
    TracingBackend backend(std::move(*MakeCpuBackend({.threads = 1, .isa = "portable"})));
    WeightReader reader(config, checkpoint.get(), &backend, nullptr, 0);
    for (const char* name : {"model.layers.0.mlp.down_proj", "model.layers.1.self_attn.kv_b_proj"}) {
      const Checkpoint::Entry& whole = *checkpoint->Find(std::string(name) + ".weight");
      for (int i = 0; i < 4; ++i) {
        const Range rows = RandomPart(whole.rows.size(), random);
        const Range columns = RandomPart(whole.columns.size(), random);
        reader.Pack({{{name, rows, columns}, {name, {0, 1}, columns}}});
        reader.Pack({{{name, rows, columns, /*transposed=*/true}}});
      }
    }
    REQUIRE(reader.status().ok());
    CHECK(CheckRandomSources(backend, seed) == 24);
  }
}

TEST_CASE("every matrix of every rank of a random model is handed on with what it is") {
  const uint64_t seed = RandomSeed();
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    const ModelConfig config = TinyConfig(dtype);
    const auto checkpoint = std::move(*MakeDummyCheckpoint(config, seed));
    for (int rank = 0; rank < 4; ++rank) {
      CAPTURE(DTypeName(dtype), rank);
      TracingBackend backend(std::move(*MakeCpuBackend({.threads = 1, .isa = "portable"})));
      const Range shared = SplitRange(config.shared_inter_dim(), 4, rank);
      REQUIRE(LoadWeights(config, {2, 2, rank}, shared, *checkpoint, &backend, nullptr).ok());
      CHECK(CheckRandomSources(backend, seed) > 20);
    }
  }
}

// Whether all of it comes from the projections of latents to keys and values.
bool IsOfHeads(const std::vector<StackedSource>& matrices, const Checkpoint& checkpoint) {
  const auto inside = [&](const WeightSource& source) {
    return std::ranges::any_of(checkpoint.entries(), [&](const auto& entry) {
      const auto data = entry.second.data();
      return entry.first.ends_with("kv_b_proj.weight") && source.data >= data.data() &&
             source.data < data.data() + data.size();
    });
  };
  return std::ranges::all_of(matrices, [&](const StackedSource& sources) {
    return std::ranges::all_of(sources, inside);
  });
}

TEST_CASE("only matrices of heads are planned and packed as such; the plan is what is loaded") {
  std::mt19937_64 random(RandomSeed());
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    const ModelConfig config = TinyConfig(dtype);
    TempDir dir;  // written, since matrices of a random model share memory
    WriteTinyCheckpoint(dir.path(), config, random());
    const auto checkpoint = std::move(*Checkpoint::Open(dir.path()));
    for (int rank = 0; rank < 4; ++rank) {
      CAPTURE(DTypeName(dtype), rank);
      TracingBackend backend(std::move(*MakeCpuBackend({.threads = 1, .isa = "portable"})));
      const Layout layout{2, 2, rank};
      const Range shared = SplitRange(config.shared_inter_dim(), 4, rank);
      const auto weights = LoadWeights(config, layout, shared, *checkpoint, &backend, nullptr);
      REQUIRE(weights.ok());
      REQUIRE(backend.planned().size() == backend.packed().size());
      int64_t of_heads = 0;
      for (size_t i = 0; i < backend.packed().size(); ++i) {
        const auto& [matrices, use] = backend.packed()[i];
        CAPTURE(i);
        CHECK((use == WeightUse::kHeads) == IsOfHeads(matrices, *checkpoint));
        of_heads += use == WeightUse::kHeads;
        int64_t n = 0;
        for (const WeightSource& source : matrices[0]) n += source.n;
        const WeightSource& first = matrices[0][0];
        CHECK(backend.planned()[i] == TracingBackend::Planned{n, first.k, first.dtype, use});
      }
      CHECK(of_heads == 3 * config.n_layers);
      CHECK(weights->bytes == backend.allocated());
      CHECK(PlanWeightBytes(config, layout, shared, backend) == weights->bytes);
    }
  }
}

TEST_CASE("weights of a file are not called random") {
  TempDir dir;
  const ModelConfig config = TinyConfig(DType::kBF16);
  WriteTinyCheckpoint(dir.path(), config, RandomSeed());
  const auto checkpoint = std::move(*Checkpoint::Open(dir.path()));
  TracingBackend backend(std::move(*MakeCpuBackend({.threads = 1, .isa = "portable"})));
  WeightReader reader(config, checkpoint.get(), &backend, nullptr, 0);
  reader.Pack({{{"lm_head", {1, 2}, {0, config.dim}}}});
  REQUIRE(backend.packed().size() == 1);
  CHECK(!backend.packed()[0].matrices[0][0].random.has_value());
}

}  // namespace
}  // namespace hadal::testing
