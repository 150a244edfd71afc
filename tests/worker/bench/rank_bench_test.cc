// One rank of a larger layout alone, beside the ranks of that layout.

#include "worker/bench/rank_bench.h"

#include <cmath>
#include <map>
#include <set>

#include "common/dummy_checkpoint.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/common/temp_model_dir.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"
#include "tests/support/tiny_checkpoint.h"
#include "tests/worker/model/model_group.h"
#include "tests/worker/runtime/tracing_backend.h"
#include "worker/comm/thread_communicator.h"
#include "worker/model/step_inputs.h"

namespace hadal::testing {
namespace {

constexpr ModelOptions kSizes = {.kv_blocks = 3,
                                 .max_step_tokens = 20,
                                 .max_rows = 20,
                                 .max_step_logits = 24,
                                 .replays = true};

ModelOptions SizesOf(const Layout& layout) {
  ModelOptions options = kSizes;
  options.fixed_exchange = layout.data_parallel > 1;
  return options;
}

// A step in which every group decodes one token of each of `count` sequences.
Batch DecodeBatch(int count, const int32_t* blocks) {
  Batch batch;
  for (int32_t i = 0; i < count; ++i) {
    batch.tokens.push_back(i);
    batch.positions.push_back(i);
    batch.rows.push_back({.first_token = i, .num_tokens = 1, .start_pos = i, .kind = RowKind::kDecode,
                          .blocks = blocks});
    batch.logit_tokens.push_back(i);
  }
  batch.step = {.tokens = count, .context = count, .decodes_only = true};
  return batch;
}

// One rank's model and what its ops were given.
struct Rank {
  Rank(const ModelConfig& config, const Layout& layout, const CommGroup& comm)
      : backend(std::move(*MakeCpuBackend({.threads = 1, .isa = "portable"}))) {
    Load(config, layout, comm);
  }
  // Alone, the others simulated. Their copies are not the model's, so they go by another backend.
  Rank(const ModelConfig& config, const Layout& layout)
      : backend(std::move(*MakeCpuBackend({.threads = 1, .isa = "portable"}))),
        copies(std::move(*MakeCpuBackend({.threads = 1, .isa = "portable"}))),
        others(std::make_unique<SimulatedRanks>(config, layout, SizesOf(layout), copies.get())) {
    Load(config, layout, others->comm());
  }
  void Load(const ModelConfig& config, const Layout& layout, const CommGroup& comm) {
    const auto checkpoint = MakeDummyCheckpoint(config, 1);
    model = std::move(*Model::Load(config, layout, **checkpoint, &backend, comm, SizesOf(layout), nullptr));
    allocated = backend.allocated();
  }
  void Decode(int count) {
    const int32_t blocks[] = {0};
    model->Prepare(DecodeBatch(count, blocks));
    if (others != nullptr) others->Choose(count, model->logit_rows());
    backend.Replay(model->replay_key(), [&] {
      model->Forward();
      logits = model->Logits(0, model->logit_rows());
    });
  }

  TracingBackend backend;
  std::unique_ptr<Backend> copies;
  std::unique_ptr<SimulatedRanks> others;
  std::unique_ptr<Model> model;
  const float* logits = nullptr;
  int64_t allocated = 0;
};

TEST_CASE("a simulated rank holds and computes what that rank of the real layout does") {
  ModelConfig config = TinyConfig(DType::kF32);
  config.max_seq_len = 300;
  for (const auto& [t, d] : {std::pair(2, 1), {4, 1}, {1, 2}, {2, 2}, {1, 4}}) {
    const int world = t * d;
    CAPTURE(t, d);
    std::vector<CommGroup> comms = MakeThreadCommGroups(t, d);
    std::vector<std::unique_ptr<Rank>> real(world);
    RunRanks(world, [&](int r) {
      real[r] = std::make_unique<Rank>(config, Layout{t, d, r}, comms[r]);
      for (const int count : {1, 5, 19}) real[r]->Decode(count);
    });
    for (int r = 0; r < world; ++r) {
      CAPTURE(r);
      const Layout layout{t, d, r};
      Rank alone(config, layout);
      for (const int count : {1, 5, 19}) {
        alone.Decode(count);
        const auto rows = static_cast<int64_t>(count) * config.vocab_size;
        CHECK(std::all_of(alone.logits, alone.logits + rows, [](float x) { return std::isfinite(x); }));
      }
      CHECK(alone.allocated == real[r]->allocated);
      CHECK(alone.backend.shapes() == real[r]->backend.shapes());
      CHECK(alone.backend.shapes().size() == 3);
    }
  }
}

// Captures which experts FixedExchange is given, by the gather that it does.
TEST_CASE("tokens of other ranks choose evenly, and ranks without tokens choose nothing") {
  ModelConfig config = TinyConfig(DType::kF32);
  config.n_routed_experts = 64;
  const auto k = config.n_activated_experts;
  const Layout layout{2, 2, 1};
  auto backend = std::move(*MakeCpuBackend({.threads = 1, .isa = "portable"}));
  SimulatedRanks others(config, layout, SizesOf(layout), backend.get());
  std::map<int32_t, int> chosen;
  int nobodys = 0, calls = 0;
  const int tokens = 5, slice = 4;  // of 8 with padding: 4 and 1
  others.Choose(tokens, 2 * slice);
  for (; calls < 64; ++calls) {
    const std::vector<int32_t> own(slice * k, 1000);
    std::vector<int32_t> ids(4 * slice * k);
    const std::vector<uint8_t> x(8);
    std::vector<uint8_t> all_x(32);
    const Communicator::Gather arrays[] = {{x.data(), all_x.data(), 8},
                                           {own.data(), ids.data(), slice * k * 4}};
    others.comm().act_world->AllGatherEach(arrays);
    for (int r = 0; r < 4; ++r) {
      for (int t = 0; t < slice; ++t) {
        const auto begin = ids.begin() + (r * slice + t) * k;
        const std::set<int32_t> distinct(begin, begin + k);
        if (r == 1) {
          REQUIRE(distinct == std::set<int32_t>{1000});
        } else if (r == 3 && t > 0) {
          REQUIRE(distinct == std::set<int32_t>{-1});
          ++nobodys;
        } else {
          REQUIRE(static_cast<int64_t>(distinct.size()) == k);
          for (const int32_t id : distinct) ++chosen[id];
        }
      }
    }
  }
  CHECK(nobodys == 3 * calls);
  CHECK(chosen.size() == 64);
  CHECK(chosen.begin()->first == 0);
  CHECK(chosen.rbegin()->first == 63);
}

TEST_CASE("layouts that cannot be simulated are refused with what to write") {
  ModelConfig config = TinyConfig(DType::kF32);  // 4 heads, 8 experts, 3 of them for a token
  const auto message = [&](const std::string& text, int rank = 0) {
    const StatusOr<Layout> layout = ParseSimulatedLayout(text, rank, config);
    return layout.ok() ? "" : layout.status().message();
  };
  CHECK(message("4,1") == "");
  CHECK(message("2,2", 3) == "");
  for (const char* bad : {"", "4", ",", "4,", ",4", "0,1", "4,-1", "4x1", "4,1,1", " 4,1", "4,1 ", "a,b",
                          "99999999999,1"}) {
    CAPTURE(bad);
    CHECK(message(bad).find("--simulate-layout") == 0);
    CHECK(message(bad).find("write T,D, as in 8,1") != std::string::npos);
  }
  CHECK(message("3,1").find("--simulate-layout: layout 3 x 1: tensor-parallel 3") == 0);
  CHECK(message("2,2", 4) == "--simulate-rank 4: 2 x 2 ranks are numbered 0 to 3");
  CHECK(message("1,8").find("at most 6 ranks together") != std::string::npos);
}

TEST_CASE("the bench runs one rank of a layout, and counts its part") {
  TempDir dir;
  WriteTinyCheckpoint(dir.path(), TinyConfig(DType::kF32), RandomSeed());
  const auto run = [&](const std::string& layout, int rank) {
    RankBench bench({.model_dir = dir.path(), .dummy = true, .isa = "portable", .threads = 1,
                     .simulated_layout = layout, .simulated_rank = rank, .batches = {1, 7},
                     .prompts = {30}, .context = 70, .decode_steps = 2, .repeats = 1});
    const Status loaded = bench.Load();
    INFO(loaded.message());
    REQUIRE(loaded.ok());
    const std::vector<Measurement> results = bench.Run();
    REQUIRE(results.size() == 3);
    for (const float logit : bench.LastLogits()) REQUIRE(std::isfinite(logit));
    return results;
  };
  const auto whole = run("", 0);
  CHECK(whole[0].tokens_per_step == 30);
  CHECK(whole[2].sequences == 7);
  for (const auto& [layout, rank] : {std::pair("4,1", 3), {"2,2", 1}, {"1,4", 2}}) {
    CAPTURE(layout);
    const auto part = run(layout, rank);
    for (size_t i = 0; i < part.size(); ++i) {
      CHECK(part[i].tokens_per_step == whole[i].tokens_per_step);
      // A rank reads less than all, and four read no less than all together.
      CHECK(part[i].cost.bytes < whole[i].cost.bytes);
      CHECK(4 * part[i].cost.bytes > whole[i].cost.bytes);
    }
  }
}

TEST_CASE(
    "the bench refuses what the memory does not hold, and positions that the model does not have") {
  TempDir dir;
  ModelConfig config = TinyConfig(DType::kF32);
  config.max_seq_len = 1 << 20;
  WriteTinyCheckpoint(dir.path(), config, RandomSeed());
  const auto load = [&](int prompt, int context) {
    return RankBench({.model_dir = dir.path(),
                      .dummy = true,
                      .threads = 1,
                      .batches = {4096},
                      .prompts = {prompt},
                      .context = context,
                      .decode_steps = 5,
                      .repeats = 3})
        .Load();
  };
  const Status status = load(10, 1 << 19);
  CHECK(status.code() == StatusCode::kFailedPrecondition);
  CHECK(status.message().find("--simulate-layout") != std::string::npos);
  config.max_seq_len = 100;
  WriteTinyCheckpoint(dir.path(), config, RandomSeed());
  CHECK(load(100, 80).ok());
  CHECK(load(101, 80).message() ==
        "--prompt 101: the model has 100 positions (max_position_embeddings)");
  const Status decoding = load(100, 81);
  CHECK(decoding.code() == StatusCode::kInvalidArgument);
  CHECK(decoding.message().find("--context 81") != std::string::npos);
  CHECK(decoding.message().find("101, but the model has 100") != std::string::npos);
}

}  // namespace
}  // namespace hadal::testing
