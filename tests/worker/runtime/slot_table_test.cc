#include "worker/runtime/slot_table.h"

#include "tests/support/catch.h"

namespace hadal {
namespace {

GroupCapacity SmallCapacity() {
  GroupCapacity capacity;
  capacity.kv_blocks = 10;
  capacity.max_slots = 3;
  capacity.max_step_tokens = 100;
  return capacity;
}

// A sequence of 70 tokens in slot 1 whose prompt arrives in one chunk.
GroupPlan EnterPlan() {
  GroupPlan plan;
  plan.enters.push_back({1, {}});
  plan.block_tables.push_back({1, 0, {4, 9}});
  plan.rows.push_back({.slot = 1, .start_pos = 0, .num_tokens = 70, .sample = true});
  for (int i = 0; i < 70; ++i) plan.tokens.push_back(i);
  return plan;
}

TEST_CASE("rows become a batch") {
  SlotTable table(SmallCapacity(), 100, 1000);
  Batch batch;
  REQUIRE(table.Apply(EnterPlan(), &batch).ok());
  REQUIRE(batch.rows.size() == 1);
  CHECK(batch.tokens.size() == 70);
  CHECK(batch.positions[69] == 69);
  CHECK(batch.logit_tokens == std::vector<int32_t>{69});
  CHECK(batch.rows[0].blocks[1] == 9);

  GroupPlan decode;
  decode.rows.push_back({.slot = 1, .start_pos = 70, .num_tokens = 1, .kind = RowKind::kDecode, .sample = true});
  decode.tokens = {kSampledToken};
  REQUIRE(table.Apply(decode, &batch).ok());
  CHECK(batch.tokens == std::vector<int32_t>{-1 - 1});
  CHECK(batch.positions == std::vector<int32_t>{70});
}

TEST_CASE("prompt log-probabilities ask for the logits of every followed token") {
  SlotTable table(SmallCapacity(), 100, 1000);
  Batch batch;
  GroupPlan plan = EnterPlan();
  plan.rows = {{.slot = 1, .start_pos = 0, .num_tokens = 3, .prompt_logprobs = true, .next_token = 5},
               {.slot = 1, .start_pos = 3, .num_tokens = 2, .sample = true, .prompt_logprobs = true}};
  plan.tokens = {1, 2, 3, 5, 6};
  REQUIRE(table.Apply(plan, &batch).ok());
  CHECK(batch.logit_tokens == std::vector<int32_t>{0, 1, 2, 3, 4});
}

TEST_CASE("a slot is free again after it left") {
  SlotTable table(SmallCapacity(), 100, 1000);
  Batch batch;
  REQUIRE(table.Apply(EnterPlan(), &batch).ok());
  GroupPlan again = EnterPlan();
  again.leaves = {1};
  CHECK(table.Apply(again, &batch).ok());
  table.Clear();
  CHECK(table.Apply(EnterPlan(), &batch).ok());
}

TEST_CASE("plans that contradict the table are refused") {
  auto refused = [](auto change) {
    SlotTable table(SmallCapacity(), 100, 1000);
    GroupPlan plan = EnterPlan();
    change(plan);
    Batch batch;
    return table.Apply(plan, &batch).code() == StatusCode::kInvalidArgument;
  };
  CHECK_FALSE(refused([](GroupPlan&) {}));
  CHECK(refused([](GroupPlan& p) { p.enters[0].slot = 3; }));
  CHECK(refused([](GroupPlan& p) { p.enters[0].slot = -1; }));
  CHECK(refused([](GroupPlan& p) { p.enters.push_back(p.enters[0]); }));
  CHECK(refused([](GroupPlan& p) { p.leaves = {0}; }));
  CHECK(refused([](GroupPlan& p) { p.block_tables[0].blocks[1] = 10; }));
  CHECK(refused([](GroupPlan& p) { p.block_tables[0].blocks[1] = -1; }));
  CHECK(refused([](GroupPlan& p) { p.block_tables[0].first_index = 1; }));
  CHECK(refused([](GroupPlan& p) { p.block_tables[0].blocks.pop_back(); }));
  CHECK(refused([](GroupPlan& p) { p.rows[0].slot = 0; }));
  CHECK(refused([](GroupPlan& p) { p.rows[0].start_pos = 2000000000; }));
  CHECK(refused([](GroupPlan& p) { p.tokens[3] = 100; }));
  CHECK(refused([](GroupPlan& p) { p.tokens[3] = kSampledToken; }));
  CHECK(refused([](GroupPlan& p) { p.rows[0].next_token = 5; }));
  CHECK(refused([](GroupPlan& p) {
    p.rows[0].sample = false;
    p.rows[0].next_token = 100;
  }));
  CHECK(refused([](GroupPlan& p) {
    p.rows[0].num_tokens = 69;
    p.rows.push_back({.slot = 1, .start_pos = 69, .num_tokens = 1, .kind = RowKind::kDecode});
  }));
}

}  // namespace
}  // namespace hadal
