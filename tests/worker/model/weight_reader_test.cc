#include "worker/model/weight_reader.h"

#include <fstream>
#include <random>

#include "kernels/cpu/cpu_backend.h"
#include "tests/common/temp_model_dir.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"
#include "tests/support/tiny_checkpoint.h"
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
      const auto weights = LoadWeights(config, layout, shared, *checkpoint, backend.get(), nullptr);
      REQUIRE(weights.status().code() == StatusCode::kDataLoss);
      CHECK(weights.status().message().find(
                fmt::format("tensor {} holds a NaN or an infinity in row {};", name, row)) !=
            std::string::npos);
    }
  }
}

}  // namespace
}  // namespace hadal::testing
