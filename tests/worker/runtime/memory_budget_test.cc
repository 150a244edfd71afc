#include "worker/runtime/memory_budget.h"

#include "tests/support/catch.h"

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

TEST_CASE("what cannot fit is refused with the numbers") {
  const MemoryPlan plan{.weights = 100 * kMiB, .kv_per_block = kMiB, .workspace = 20 * kMiB};
  const auto blocks = DecideKvBlocks(ConfigWithContext(128), plan, {.kv_blocks = 61}, 200 * kMiB);
  REQUIRE(blocks.status().code() == StatusCode::kFailedPrecondition);
  CHECK(blocks.status().message().find("at most 60 KV blocks") != std::string::npos);
  const auto weights = DecideKvBlocks(ConfigWithContext(128), plan, {}, 120 * kMiB);
  REQUIRE(weights.status().code() == StatusCode::kFailedPrecondition);
  CHECK(weights.status().message().find("100.0 MiB") != std::string::npos);
  const auto tiny = DecideKvBlocks(ConfigWithContext(128), plan, {.kv_memory = 5}, 200 * kMiB);
  CHECK(tiny.status().code() == StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace hadal
