#include "worker/runtime/memory_budget.h"

#include <random>

#include "kernels/cpu/cpu_backend.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

constexpr int64_t kMiB = 1 << 20;

ModelConfig ConfigWithContext(int64_t tokens) {
  ModelConfig config;
  config.max_seq_len = tokens;
  return config;
}

TEST_CASE("sizes are read with and without units") {
  CHECK(*ParseBytes("1000000") == 1000000);
  CHECK(*ParseBytes("512M") == 512 * kMiB);
  CHECK(*ParseBytes("8GiB") == int64_t{8} << 30);
  CHECK(*ParseBytes("3k") == 3072);
  for (const char* bad : {"", "-1", "0", "12X", "GiB", "1.5G", "9999999999T", "5 G", "7MiBs"}) {
    CAPTURE(bad);
    CHECK(ParseBytes(bad).status().code() == StatusCode::kInvalidArgument);
  }
  CHECK(FormatBytes(1023) == "1023 B");
  CHECK(FormatBytes(1536) == "1.5 KiB");
}

TEST_CASE("KV blocks follow from the memory") {
  const MemoryPlan plan{.weights = 100 * kMiB, .kv_per_block = kMiB, .workspace = 20 * kMiB};
  // 90 % of 200 MiB less 120 MiB leaves 60 blocks.
  CHECK(*DecideKvBlocks(ConfigWithContext(1 << 20), plan, {}, 200 * kMiB) == 60);
  // Plenty of memory: eight contexts, at least 65,536 tokens.
  CHECK(*DecideKvBlocks(ConfigWithContext(16384), plan, {}, int64_t{1} << 40) == 16384 * 8 / kBlockSize);
  CHECK(*DecideKvBlocks(ConfigWithContext(128), plan, {}, int64_t{1} << 40) == 65536 / kBlockSize);
  CHECK(*DecideKvBlocks(ConfigWithContext(128), plan, {.kv_blocks = 7}, 200 * kMiB) == 7);
  CHECK(*DecideKvBlocks(ConfigWithContext(128), plan, {.kv_memory = 9 * kMiB + 5}, 200 * kMiB) == 9);
}

TEST_CASE("recorded steps take their part of the memory, and are named where there are any") {
  MemoryPlan plan{.weights = 100 * kMiB, .kv_per_block = kMiB, .workspace = 20 * kMiB};
  CHECK(DescribeMemoryPlan(plan, 3, 200 * kMiB).find("recorded") == std::string::npos);
  plan.recorded = 25 * kMiB;
  CHECK(*DecideKvBlocks(ConfigWithContext(1 << 20), plan, {}, 200 * kMiB) == 35);
  CHECK(DescribeMemoryPlan(plan, 3, 200 * kMiB).find("recorded steps 25.0 MiB = 148.0 MiB of 200.0 MiB") !=
        std::string::npos);
}

TEST_CASE("expanded prompts take what is left, so that no model is refused for them") {
  std::mt19937_64 random(testing::RandomSeed());
  const auto backend = std::move(*MakeCpuBackend({.threads = 1, .isa = "portable"}));
  ModelConfig config = ConfigWithContext(16384);
  config.n_layers = 2;
  config.n_dense_layers = 2;
  const ModelOptions options{
      .kv_blocks = 1, .max_step_tokens = 32, .max_rows = 4, .max_step_logits = 4};
  const auto plan = [&](int32_t expanded_tokens) {
    ModelOptions with = options;
    with.expanded_tokens = expanded_tokens;
    return PlanMemory(config, {}, *backend, with);
  };
  const MemoryPlan bare = plan(0);
  const int64_t expanded = plan(4096).expanded;
  const int64_t least = (bare.weights + bare.workspace + bare.kv_per_block) / 9 * 10 + 20;
  const auto tokens = [&](const KvRequest& request, int64_t available) {
    return DefaultExpandedTokens(config, {}, *backend, options, request, available);
  };
  for (int round = 0; round < 300; ++round) {
    KvRequest request;
    if (round % 3 == 1) request.kv_blocks = 1 + static_cast<int64_t>(random() % 100);
    if (round % 3 == 2) request.kv_memory = static_cast<int64_t>(random() % (100 * kMiB)) + kMiB;
    const int64_t available =
        least + static_cast<int64_t>(random() % static_cast<uint64_t>(4 * expanded));
    const int32_t kept = tokens(request, available);
    CAPTURE(request.kv_blocks, request.kv_memory, available, kept);
    CHECK(plan(kept).expanded <= available / 8);
    CHECK(DecideKvBlocks(config, plan(kept), request, available).ok() ==
          DecideKvBlocks(config, bare, request, available).ok());
  }
  CHECK(tokens({}, least) == 0);
  CHECK(DecideKvBlocks(config, bare, {}, least).ok());
  CHECK(tokens({}, least + 100 * expanded) == 4096);
  CHECK(tokens({.kv_blocks = 1}, least + 100 * expanded) == 4096);
}

TEST_CASE("what cannot fit is refused with the numbers") {
  const MemoryPlan plan{.weights = 100 * kMiB, .kv_per_block = kMiB, .workspace = 20 * kMiB};
  const auto blocks = DecideKvBlocks(ConfigWithContext(128), plan, {.kv_blocks = 61}, 200 * kMiB);
  REQUIRE(blocks.status().code() == StatusCode::kFailedPrecondition);
  CHECK(blocks.status().message().find("at most 60 KV blocks") != std::string::npos);
  const auto weights = DecideKvBlocks(ConfigWithContext(128), plan, {}, 120 * kMiB);
  REQUIRE(weights.status().code() == StatusCode::kFailedPrecondition);
  CHECK(weights.status().message().find("100.0 MiB") != std::string::npos);
  CHECK(weights.status().message().find("--expanded-tokens") == std::string::npos);
  MemoryPlan expanded = plan;
  expanded.expanded = 5 * kMiB;
  for (const KvRequest& request : {KvRequest{.kv_blocks = 61}, KvRequest{}}) {
    const auto refused = DecideKvBlocks(ConfigWithContext(128), expanded, request,
                                        request.kv_blocks > 0 ? 200 * kMiB : 120 * kMiB);
    CHECK(refused.status().message().find("--expanded-tokens, which takes 5.0 MiB") !=
          std::string::npos);
  }
  const auto tiny = DecideKvBlocks(ConfigWithContext(128), plan, {.kv_memory = 5}, 200 * kMiB);
  CHECK(tiny.status().code() == StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace hadal
