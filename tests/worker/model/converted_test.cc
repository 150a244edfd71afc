// What hadal-convert writes gives, bit for bit, the logits of the Hugging Face directory.

#include <algorithm>
#include <random>

#include "tests/common/temp_model_dir.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"
#include "tests/worker/model/conformance_steps.h"
#include "tests/worker/model/model_group.h"
#include "tests/worker/model/reference_case.h"
#include "tools/convert_plan.h"
#include "tools/output_directory.h"

namespace hadal::testing {
namespace {

constexpr int kMaxStepTokens = 256;

void Convert(const std::string& source, const std::string& directory, int ranks) {
  const auto config = LoadModelConfig(source);
  REQUIRE(config.ok());
  const auto plan = PlanConversion({.source_dir = source,
                                    .directory = directory,
                                    .n_experts = config->n_routed_experts,
                                    .ranks = ranks});
  INFO(plan.status().message());
  REQUIRE(plan.ok());
  const auto written = WriteOutput(*plan, {.threads = 2});
  INFO(written.status().message());
  REQUIRE(written.ok());
}

TEST_CASE("converted directories give the logits of their source") {
  const std::string cases = CasesDirectory("HADAL_CASES");
  std::mt19937_64 random(RandomSeed());
  for (const std::string& shape : ReferenceShapes()) {
    for (const char* dtype : {"bf16", "fp8"}) {
      const std::string source = cases + "/" + shape + "-" + dtype;
      const auto prompts = ReadReferencePrompts(source + "/expected.safetensors");
      TokenLists sequences;
      std::vector<int> halves;
      for (size_t i = 0; i < std::min<size_t>(prompts.size(), 2); ++i) {
        sequences.push_back(prompts[i].tokens);
        halves.push_back(static_cast<int>(prompts[i].tokens.size() / 2));
      }
      for (const int ranks : {1, 2, 4}) {
        INFO(shape << " " << dtype << ", " << ranks << " ranks");
        const TempDir dir;
        Convert(source, dir.path(), ranks);
        const ModelGroupOptions options{
            .tensor_parallel = ranks, .max_step_tokens = kMaxStepTokens, .kv_blocks = 16};
        const uint64_t seed = random();
        const StepScheme scheme = DecodeScheme(sequences, halves, 4, 1);
        const auto wanted = ModelGroup(source, options).Run(sequences, scheme.steps, seed);
        CHECK(ModelGroup(dir.path(), options).Run(sequences, scheme.steps, seed) == wanted);
      }
    }
  }
}

}  // namespace
}  // namespace hadal::testing
