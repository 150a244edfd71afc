// What a warm-up records is what steps ask for later, and leaves no trace.

#include <algorithm>
#include <random>

#include "common/dummy_checkpoint.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"
#include "tests/support/tiny_checkpoint.h"
#include "tests/worker/model/model_group.h"
#include "tests/worker/runtime/tracing_backend.h"
#include "worker/comm/thread_communicator.h"
#include "worker/runtime/step_runner.h"

namespace hadal::testing {
namespace {

constexpr int kSlots = 21;
constexpr int kWarmBlocks = 5;
constexpr int kWarmTokens = 80;

// All ranks of a layout, with random weights and one StepRunner each, on backends that trace.
class TracedGroup {
 public:
  TracedGroup(int tensor_parallel, int data_parallel, int64_t max_seq_len)
      : capacity_{.tensor_parallel = tensor_parallel,
                  .data_parallel = data_parallel,
                  .kv_blocks = kWarmBlocks,
                  .max_slots = kSlots,
                  .max_step_tokens = kWarmTokens},
        config_(TinyConfig(DType::kF32)),
        ranks_(tensor_parallel * data_parallel) {
    config_.max_seq_len = max_seq_len;
    comms_ = MakeThreadCommGroups(tensor_parallel, data_parallel);
    RunRanks(world(), [&](int rank) { Load(rank); });
  }

  int world() const { return static_cast<int>(ranks_.size()); }
  int groups() const { return capacity_.data_parallel; }
  const ModelConfig& config() const { return config_; }
  TracingBackend& backend(int rank) { return *ranks_[rank].backend; }
  StepRunner& runner(int rank) { return *ranks_[rank].runner; }

  void WarmUp() {
    RunRanks(world(), [&](int rank) { runner(rank).WarmUp(nullptr); });
  }
  void Reset(int32_t vocab_limit) {
    RunRanks(world(), [&](int rank) { runner(rank).Reset(vocab_limit); });
  }
  // The result of each plan.
  std::vector<StepResult> Run(const std::vector<StepPlan>& plans) {
    std::vector<StepResult> results;
    RunRanks(world(), [&](int rank) {
      for (const StepPlan& plan : plans) {
        const Status launched = runner(rank).Launch(plan);
        if (!launched.ok()) throw std::runtime_error(launched.message());
        if (runner(rank).in_flight() == 0) continue;
        StatusOr<StepResult> result = runner(rank).Collect();
        if (rank == 0) results.push_back(*result);
      }
    });
    return results;
  }

 private:
  struct Rank {
    std::unique_ptr<TracingBackend> backend;
    std::unique_ptr<Model> model;
    std::unique_ptr<StepRunner> runner;
  };

  void Load(int index) {
    Rank& rank = ranks_[index];
    const Layout layout{capacity_.tensor_parallel, capacity_.data_parallel, index};
    rank.backend = std::make_unique<TracingBackend>(
        std::move(*MakeCpuBackend({.threads = 1, .isa = "portable"})));
    const auto checkpoint = MakeDummyCheckpoint(config_, 3);
    rank.model = std::move(*Model::Load(
        config_, layout, **checkpoint, rank.backend.get(), comms_[index],
        {.kv_blocks = kWarmBlocks,
         .max_step_tokens = kWarmTokens,
         .max_rows = kSlots,
         .max_step_logits = StepRunner::LogitRows(*rank.backend, kSlots),
         .replays = true,
         .fixed_exchange = groups() > 1},
        nullptr));
    rank.runner = std::make_unique<StepRunner>(rank.model.get(), rank.backend.get(), comms_[index],
                                               layout, capacity_);
  }

  const GroupCapacity capacity_;
  ModelConfig config_;
  std::vector<CommGroup> comms_;
  std::vector<Rank> ranks_;
};

// Plans of decode steps, each with sequences of its own.
class DecodePlans {
 public:
  DecodePlans(const TracedGroup& ranks, uint64_t seed)
      : groups_(ranks.groups()), vocab_(ranks.config().vocab_size), random_(seed), entered_(groups_) {}

  // The largest group has `rows` sequences, the longest of `context` tokens with this one's. The
  // sampling of the others is of either kind.
  StepPlan Next(int rows, int64_t context, const SamplingParams& sampling) {
    StepPlan plan{.epoch = 1, .step = 1, .groups = {}};
    const int busy = Below(groups_);
    for (int g = 0; g < groups_; ++g) {
      plan.groups.push_back(Group(g, g == busy ? rows : Below(rows + 1), context, sampling));
    }
    return plan;
  }

 private:
  int Below(int64_t n) { return static_cast<int>(random_() % static_cast<uint64_t>(n)); }

  GroupPlan Group(int group, int rows, int64_t context, const SamplingParams& sampling) {
    GroupPlan plan;
    for (int slot = 0; slot < entered_[group]; ++slot) plan.leaves.push_back(slot);
    entered_[group] = rows;
    for (int slot = 0; slot < rows; ++slot) {
      const int64_t length = slot == rows - 1 ? context : 1 + Below(context);
      plan.enters.push_back({slot, slot == 0 || Below(2) == 0 ? sampling : SamplingParams{}});
      BlockTableDelta table{.slot = slot, .first_index = 0, .blocks = {}};
      for (int64_t at = 0; at < length; at += kBlockSize) table.blocks.push_back(Below(kWarmBlocks));
      plan.block_tables.push_back(table);
      plan.rows.push_back({.slot = slot, .start_pos = static_cast<int32_t>(length - 1),
                           .num_tokens = 1, .kind = RowKind::kDecode, .sample = true});
      plan.tokens.push_back(Below(vocab_));
    }
    return plan;
  }

  const int groups_;
  const int64_t vocab_;
  std::mt19937_64 random_;
  std::vector<int> entered_;  // [groups] sequences of the plan before
};

const std::vector<SamplingParams> kSamplings = {
    {}, {.temperature = 1, .top_p = 0.9f}, {.logprobs = 3}, {.temperature = 0.5f, .logprobs = 2}};

// Every number of sequences, lengths about every power of two and drawn ones, every kind of sampling.
std::vector<StepPlan> AllDecodes(const TracedGroup& ranks, uint64_t seed) {
  std::mt19937_64 random(seed);
  DecodePlans plans(ranks, seed);
  const int64_t longest = ranks.config().max_seq_len;
  std::vector<StepPlan> all;
  for (int rows = 1; rows <= kSlots; ++rows) {
    std::vector<int64_t> contexts = {1, longest, 1 + static_cast<int64_t>(random() % longest)};
    for (int64_t power = 256; power < longest; power *= 2) {
      contexts.push_back(power + static_cast<int64_t>(random() % 3) - 1);
    }
    for (const int64_t context : contexts) {
      for (const SamplingParams& sampling : kSamplings) {
        all.push_back(plans.Next(rows, std::min(context, longest), sampling));
      }
    }
  }
  return all;
}

TEST_CASE("after a warm-up no decode step has anything to record, or deviates from what was recorded") {
  for (const auto& [t, d] : {std::pair(1, 1), {2, 1}, {1, 2}, {2, 2}}) {
    CAPTURE(t, d);
    TracedGroup ranks(t, d, t == 2 ? 700 : 40000);
    const uint64_t seed = RandomSeed();
    for (int rank = 0; rank < ranks.world(); ++rank) ranks.backend(rank).StopComputing();
    ranks.WarmUp();
    const size_t forwards = ranks.backend(0).recorded().size();
    ranks.Reset(200);
    const std::vector<uint64_t> recorded = ranks.backend(0).recorded();
    CHECK(forwards > 0);
    CHECK(recorded.size() > forwards);
    ranks.Run(AllDecodes(ranks, seed));
    ranks.Reset(200);
    for (int rank = 0; rank < ranks.world(); ++rank) {
      CAPTURE(rank);
      // Ranks record collectives together, so in the same order.
      CHECK(ranks.backend(rank).recorded() == recorded);
      CHECK(ranks.backend(rank).deviations() == 0);
      CHECK(ranks.backend(rank).not_replayed() == 0);
    }
    // Which ids may be drawn is recorded, too.
    ranks.Reset(199);
    CHECK(ranks.backend(0).recorded().size() == 2 * recorded.size() - forwards);
  }
}

TEST_CASE("a warm-up between two steps changes no bit of what follows") {
  for (const auto& [t, d] : {std::pair(1, 1), {2, 1}, {2, 2}}) {
    CAPTURE(t, d);
    const uint64_t seed = RandomSeed();
    std::vector<StepResult> results[2];
    for (const bool warm : {false, true}) {
      TracedGroup ranks(t, d, 700);
      std::mt19937_64 random(seed);
      StepPlan prompt{.epoch = 1, .step = 1, .groups = {}};
      prompt.groups.resize(d);
      GroupPlan& own = prompt.groups[d - 1];
      own.enters.push_back({2, {.temperature = 1, .seed = seed, .logprobs = 5}});
      own.block_tables.push_back({2, 0, {0, 4}});  // 0: what padding would write to
      own.rows.push_back({.slot = 2, .num_tokens = 70, .sample = true});
      for (int i = 0; i < 70; ++i) own.tokens.push_back(static_cast<int32_t>(random() % 200));
      results[warm] = ranks.Run({prompt});
      if (warm) ranks.WarmUp();
      std::vector<StepPlan> decodes;
      for (int32_t position = 70; position < 80; ++position) {
        StepPlan& plan = decodes.emplace_back();
        plan.groups.resize(d);
        plan.groups[d - 1].rows.push_back({.slot = 2, .start_pos = position, .num_tokens = 1,
                                           .kind = RowKind::kDecode, .sample = true});
        plan.groups[d - 1].tokens = {kSampledToken};
      }
      const std::vector<StepResult> decoded = ranks.Run(decodes);
      results[warm].insert(results[warm].end(), decoded.begin(), decoded.end());
    }
    REQUIRE(results[0].size() == 11);
    for (size_t i = 0; i < results[0].size(); ++i) {
      CAPTURE(i);
      CHECK(results[0][i].groups == results[1][i].groups);
    }
  }
}

}  // namespace
}  // namespace hadal::testing
