// Logits are those of the step that was prepared last, also where Forward() did not run for it: a replayed
// step runs none, and one of another shape may have run before.

#include <random>

#include "common/dummy_checkpoint.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"
#include "tests/support/tiny_checkpoint.h"
#include "worker/comm/thread_communicator.h"
#include "worker/model/model.h"

namespace hadal::testing {
namespace {

TEST_CASE("logits of a replayed step are there after a step without tokens") {
  std::mt19937_64 random(RandomSeed());
  const ModelConfig config = TinyConfig(DType::kF32);
  const auto backend = std::move(*MakeCpuBackend({.threads = 1, .isa = "portable"}));
  const auto checkpoint = MakeDummyCheckpoint(config, 3);
  const auto model = std::move(*Model::Load(
      config, Layout{1, 1, 0}, **checkpoint, backend.get(), MakeThreadCommGroups(1, 1)[0],
      {.kv_blocks = 2, .max_step_tokens = 8, .max_rows = 1, .max_step_logits = 8}, nullptr));

  const int count = 1 + static_cast<int>(random() % 8);
  const int32_t block = 1;
  Batch batch{.rows = {{.num_tokens = count, .blocks = &block}}, .step = {.tokens = count, .context = count}};
  for (int i = 0; i < count; ++i) {
    batch.tokens.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(config.vocab_size)));
    batch.positions.push_back(i);
    batch.logit_tokens.push_back(i);
  }
  const auto logits = [&] {
    const float* all = model->Logits(0, count);
    return std::vector<float>(all, all + count * config.vocab_size);
  };
  model->Prepare(batch);
  model->Forward();
  const std::vector<float> expected = logits();
  model->Prepare({.step = {.tokens = count, .context = count}});  // this group has none, another one has
  model->Forward();
  model->Prepare(batch);
  CHECK(logits() == expected);
}

}  // namespace
}  // namespace hadal::testing
