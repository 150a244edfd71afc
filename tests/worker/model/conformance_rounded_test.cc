// Criterion for bf16 and FP8 checkpoints: rounding flips experts, so a fixed tolerance would lie. The
// reference also emulates rounding to bf16 after every op; our error against float64 is compared with
// the emulation's, over at least 2,000 positions of each shape. Where a backend multiplies in FP8, the
// emulation rounds the inputs of those products as well.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/cpu/cpu_backend.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"
#include "tests/worker/model/conformance_steps.h"
#include "tests/worker/model/reference_case.h"
#include "worker/backends.h"

namespace hadal::testing {
namespace {

constexpr double kMeanRatio = 1.3;
constexpr double kP99Ratio = 1.5;
constexpr size_t kMinPositions = 2000;

struct ErrorSummary {
  double mean = 0;
  double p99 = 0;
};

ErrorSummary Summarise(std::vector<double> errors) {
  double sum = 0;
  for (double e : errors) sum += e;
  const double mean = sum / static_cast<double>(errors.size());
  const size_t at = errors.size() * 99 / 100;
  std::nth_element(errors.begin(), errors.begin() + at, errors.end());
  return {mean, errors[at]};
}

class RoundedCase {
 public:
  RoundedCase(const std::string& shape, const std::string& dtype)
      : name_(shape + "-" + dtype),
        dir_(CasesDirectory("HADAL_CASES") + "/" + name_),
        whole_slices_(shape == kWideShape) {
    prompts_ = ReadReferencePrompts(dir_ + "/expected.safetensors");
    for (const ReferencePrompt& prompt : prompts_) {
      sequences_.push_back(prompt.tokens);
      kv_blocks_ += static_cast<int>(prompt.tokens.size()) / kBlockSize + 1;
    }
    emulation_ = Emulation(&ReferencePrompt::emulated_logprobs);
    if (dtype == "fp8") {
      fp8_inputs_emulation_ = Emulation(&ReferencePrompt::emulated_fp8_inputs_logprobs);
    }
  }

  void Check(int tensor_parallel, int data_parallel, const std::string& isa,
             bool fixed_exchange = false, const std::string& activations = "auto") {
    ModelGroup group(dir_, {.tensor_parallel = tensor_parallel,
                            .data_parallel = data_parallel,
                            .isa = isa,
                            .activations = activations,
                            .max_step_tokens = kMaxStepTokens,
                            .kv_blocks = kv_blocks_,
                            .fixed_exchange = fixed_exchange});
    // Ranks of the odd shapes that share a matrix cut its scale blocks: none of them is multiplied in
    // FP8 then.
    const bool fp8_inputs = fp8_inputs_emulation_ && (whole_slices_ || tensor_parallel == 1) &&
                            RoundsInputsToFp8(*group.backend(0));
    const ErrorSummary& emulation = fp8_inputs ? *fp8_inputs_emulation_ : emulation_;
    const std::string setting = fmt::format(
        "{} x {}, {}{}{}{}", tensor_parallel, data_parallel, isa,
        activations == "auto" ? "" : " " + activations, fp8_inputs ? ", FP8 inputs" : "",
        fixed_exchange ? ", fixed" : "");
    std::vector<int> third;
    for (const auto& tokens : sequences_) third.push_back(static_cast<int>(tokens.size()) / 3);
    Compare(&group, setting, WholeScheme(sequences_, data_parallel, kMaxStepTokens), emulation);
    Compare(&group, setting, SplitDecode(third, data_parallel), emulation);
  }

 private:
  ErrorSummary Emulation(std::vector<float> ReferencePrompt::* logprobs) const {
    std::vector<double> errors;
    for (const ReferencePrompt& prompt : prompts_) {
      REQUIRE((prompt.*logprobs).size() == prompt.logprobs.size());
      for (size_t j = 0; j < prompt.logprobs.size(); ++j) {
        errors.push_back(std::abs((prompt.*logprobs)[j] - prompt.logprobs[j]));
      }
    }
    REQUIRE(errors.size() >= kMinPositions);
    return Summarise(std::move(errors));
  }

  // The decode rows of all sequences would not fit one step: a few sequences at a time.
  StepScheme SplitDecode(const std::vector<int>& prompt_tokens, int groups) const {
    StepScheme all{"decode", {}};
    const StepScheme scheme = DecodeScheme(sequences_, prompt_tokens, 3, groups);
    for (const StepSpec& step : scheme.steps) {
      std::vector<StepSpec> parts;
      for (int g = 0; g < groups; ++g) {
        size_t part = 0;
        int used = 0;
        for (const RowSpec& row : step[g]) {
          if (used + row.count > kMaxStepTokens) {
            ++part;
            used = 0;
          }
          used += row.count;
          if (parts.size() <= part) parts.resize(part + 1, StepSpec(groups));
          parts[part][g].push_back(row);
        }
      }
      for (StepSpec& part : parts) all.steps.push_back(std::move(part));
    }
    return all;
  }

  void Compare(ModelGroup* group, const std::string& setting, const StepScheme& scheme,
               const ErrorSummary& emulation) {
    const SequenceLogits logits = group->Run(sequences_, scheme.steps, RandomSeed());
    std::vector<double> errors;
    for (size_t s = 0; s < prompts_.size(); ++s) {
      for (size_t j = 0; j < prompts_[s].logprobs.size(); ++j) {
        const double ours = LogProb(logits[s][j], prompts_[s].tokens[j + 1]);
        errors.push_back(std::abs(ours - prompts_[s].logprobs[j]));
      }
    }
    const ErrorSummary ours = Summarise(std::move(errors));
    fmt::print("{:<14} {:<25} {:<7} mean {:.4f} = {:.2f} x emulation, p99 {:.4f} = {:.2f} x\n", name_,
               setting, scheme.name, ours.mean, ours.mean / emulation.mean, ours.p99,
               ours.p99 / emulation.p99);
    INFO(name_ << ", " << setting << ", " << scheme.name);
    CHECK(ours.mean <= kMeanRatio * emulation.mean);
    CHECK(ours.p99 <= kP99Ratio * emulation.p99);
  }

  const std::string name_;
  const std::string dir_;
  const bool whole_slices_;  // scale blocks are whole on every rank
  std::vector<ReferencePrompt> prompts_;
  TokenLists sequences_;
  int kv_blocks_ = 0;
  ErrorSummary emulation_;
  std::optional<ErrorSummary> fp8_inputs_emulation_;  // with FP8 products
};

void CheckShapes(const std::string& dtype) {
  const std::string best(CpuIsaName(SupportedCpuIsas().back()));
  for (const std::string& shape : ReferenceShapes()) {
    RoundedCase test(shape, dtype);
    test.Check(1, 1, best);
    test.Check(2, 2, best);
    test.Check(1, 2, best, /*fixed_exchange=*/true);
    test.Check(1, 1, "portable");
  }
  RoundedCase wide(kWideShape, dtype);
  wide.Check(2, 2, best);
  wide.Check(2, 2, best, /*fixed_exchange=*/true);
}

// The odd shapes' activations stay float by default; in bf16 the sum over ranks rounds each part once
// more than the emulation does.
void CheckShapesOnCuda(const std::string& dtype) {
  if (!HaveCudaDevice()) return;
  std::vector<std::string> shapes = ReferenceShapes();
  shapes.push_back(kWideShape);
  for (const std::string& shape : shapes) {
    RoundedCase test(shape, dtype);
    for (const std::string activations : {"bfloat16", "float32"}) {
      test.Check(1, 1, "cuda", /*fixed_exchange=*/false, activations);
      test.Check(2, 2, "cuda", /*fixed_exchange=*/false, activations);
    }
  }
}

TEST_CASE("bf16 errors on a CUDA device stay near those of emulated rounding") {
  CheckShapesOnCuda("bf16");
}
TEST_CASE("FP8 errors on a CUDA device stay near those of emulated rounding") {
  CheckShapesOnCuda("fp8");
}
TEST_CASE("bf16 errors stay near those of emulated rounding") { CheckShapes("bf16"); }
TEST_CASE("FP8 errors stay near those of emulated rounding") { CheckShapes("fp8"); }

}  // namespace
}  // namespace hadal::testing
