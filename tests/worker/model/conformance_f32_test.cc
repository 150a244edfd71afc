// Criterion for F32 checkpoints: every log-probability within 1e-3 of the float64 reference and greedy
// tokens equal wherever the reference's choice leads by more, in every layout and every way of cutting
// and batching the same tokens.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"
#include "tests/worker/model/conformance_steps.h"
#include "tests/worker/model/reference_case.h"

namespace hadal::testing {
namespace {

constexpr double kTolerance = 1e-3;

struct F32Case {
  explicit F32Case(const std::string& shape) : F32Case(CasesDirectory("HADAL_CASES"), shape) {}
  F32Case(const std::string& root, const std::string& shape, std::string expected = "")
      : dir(root + "/" + shape + "-f32") {
    if (expected.empty()) expected = dir + "/expected.safetensors";
    prompts = ReadReferencePrompts(expected);
    for (const ReferencePrompt& prompt : prompts) {
      sequences.push_back(prompt.Continued());
      prompt_tokens.push_back(static_cast<int>(prompt.tokens.size()));
      kv_blocks += static_cast<int>(sequences.back().size()) / kBlockSize + 1;
    }
  }

  ModelGroup Load(int tensor_parallel, int data_parallel, const std::string& isa,
                  bool fixed_exchange = false) const {
    return ModelGroup(dir, {.tensor_parallel = tensor_parallel,
                            .data_parallel = data_parallel,
                            .isa = isa,
                            .max_step_tokens = kMaxStepTokens,
                            .kv_blocks = kv_blocks,
                            .replays = fixed_exchange,
                            .fixed_exchange = fixed_exchange});
  }

  std::string dir;
  std::vector<ReferencePrompt> prompts;
  TokenLists sequences;
  std::vector<int> prompt_tokens;
  int kv_blocks = 0;
};

// The largest error of a log-probability; CHECKs all positions.
double CheckLogits(const F32Case& test, const SequenceLogits& logits) {
  double worst = 0;
  int wrong_greedy = 0;
  for (size_t s = 0; s < test.prompts.size(); ++s) {
    const ReferencePrompt& prompt = test.prompts[s];
    for (size_t j = 0; j < prompt.logprobs.size(); ++j) {
      const double ours = LogProb(logits[s][j], prompt.tokens[j + 1]);
      const double error = std::abs(ours - prompt.logprobs[j]);
      worst = std::isfinite(error) ? std::max(worst, error) : INFINITY;
    }
    for (size_t j = 0; j < prompt.greedy.size(); ++j) {
      if (prompt.greedy_gap[j] <= kTolerance) continue;
      wrong_greedy += ArgMax(logits[s][prompt.tokens.size() - 1 + j]) != prompt.greedy[j];
    }
  }
  CHECK(worst <= kTolerance);
  CHECK(wrong_greedy == 0);
  return worst;
}

void CheckSchemes(const F32Case& test, ModelGroup* group, int groups, bool all) {
  std::mt19937_64 random(RandomSeed());
  // The continuation is decoded a token a step; with `all` it is also prefilled, and the second half
  // of the prompts decoded.
  std::vector<StepScheme> schemes = {
      DecodeScheme(test.sequences, test.prompt_tokens, 100, groups)};
  if (all) {
    std::vector<int> half;
    for (int n : test.prompt_tokens) half.push_back(n / 2);
    schemes.push_back(DecodeScheme(test.sequences, half, 5, groups));
    schemes.back().name = "half decoded";
    schemes.push_back(WholeScheme(test.sequences, groups, kMaxStepTokens));
    schemes.push_back(AloneScheme(test.sequences, groups));
    schemes.push_back(ChunkedScheme(test.sequences, groups, 90, &random));
  }
  for (const StepScheme& scheme : schemes) {
    INFO("tokens run as: " << scheme.name);
    const double worst = CheckLogits(test, group->Run(test.sequences, scheme.steps, random()));
    fmt::print("  {:<12} largest error {:.1e}\n", scheme.name, worst);
  }
}

TEST_CASE("F32 log-probabilities and greedy tokens match float64 in every layout") {
  for (const std::string& shape : ReferenceShapes()) {
    const F32Case test(shape);
    for (const auto [t, d] : {std::pair(1, 1), {2, 1}, {4, 1}, {1, 2}, {1, 4}, {2, 2}}) {
      INFO(shape << ", layout " << t << " x " << d);
      fmt::print("{}, layout {} x {}\n", shape, t, d);
      ModelGroup group = test.Load(t, d, "portable");
      CheckSchemes(test, &group, d, /*all=*/true);
    }
  }
}

// As on cards: every step of a layout with D > 1 has the shape of its largest group.
TEST_CASE("F32 log-probabilities match float64 when tokens travel in fixed numbers") {
  for (const std::string& shape : ReferenceShapes()) {
    const F32Case test(shape);
    for (const auto& [t, d] : {std::pair(1, 2), {1, 4}, {2, 2}}) {
      INFO(shape << ", layout " << t << " x " << d);
      fmt::print("{}, layout {} x {}, fixed exchange\n", shape, t, d);
      ModelGroup group = test.Load(t, d, "portable", /*fixed_exchange=*/true);
      CheckSchemes(test, &group, d, /*all=*/true);
      CHECK(group.replayable_steps() > 0);
    }
  }
}

TEST_CASE("F32 log-probabilities match float64 on every instruction set") {
  for (const std::string& shape : ReferenceShapes()) {
    const F32Case test(shape);
    for (CpuIsa isa : SupportedCpuIsas()) {
      if (isa == CpuIsa::kPortable) continue;
      INFO(shape << ", " << CpuIsaName(isa));
      fmt::print("{}, {}\n", shape, CpuIsaName(isa));
      ModelGroup group = test.Load(1, 1, std::string(CpuIsaName(isa)));
      CheckSchemes(test, &group, 1, /*all=*/false);
    }
  }
}

TEST_CASE("F32 log-probabilities match float64 on a CUDA device in every layout") {
  if (!HaveCudaDevice()) return;
  for (const std::string& shape : ReferenceShapes()) {
    const F32Case test(shape);
    for (const auto& [t, d] : {std::pair(1, 1), {2, 1}, {4, 1}, {1, 2}, {1, 4}, {2, 2}}) {
      INFO(shape << ", layout " << t << " x " << d);
      fmt::print("{}, cuda, layout {} x {}\n", shape, t, d);
      ModelGroup group = test.Load(t, d, "cuda");
      CheckSchemes(test, &group, d, /*all=*/true);
    }
  }
}

TEST_CASE("F32 results match the golden files in the tree") {
  for (const std::string& shape : ReferenceShapes()) {
    INFO(shape);
    const F32Case test(CasesDirectory("HADAL_GOLDEN_CASES"), shape,
                       CasesDirectory("HADAL_GOLDEN") + "/" + shape + "-f32.safetensors");
    ModelGroup group = test.Load(1, 1, "portable");
    CheckSchemes(test, &group, 1, /*all=*/false);
  }
}

}  // namespace
}  // namespace hadal::testing
