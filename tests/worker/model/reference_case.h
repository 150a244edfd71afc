#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hadal::testing {

// What the float64 reference says about one prompt; see tests/reference/README.md.
struct ReferencePrompt {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;                      // [tokens - 1]
  std::vector<float> emulated_logprobs;             // [tokens - 1], empty for F32
  std::vector<float> emulated_fp8_inputs_logprobs;  // [tokens - 1], empty but for FP8
  std::vector<int32_t> greedy;
  std::vector<float> greedy_gap;         // as many as greedy

  // The prompt and its greedy continuation but for the last token: what must be run to predict it.
  std::vector<int32_t> Continued() const;
};

// Reads expected.safetensors. Throws std::runtime_error.
std::vector<ReferencePrompt> ReadReferencePrompts(const std::string& path);

// Where a test finds its cases: the value of an environment variable that CTest sets.
std::string CasesDirectory(const char* variable);

// The model families that the reference covers, in odd dimensions; bf16 and FP8 also come in those
// that fast kernels are made for.
std::vector<std::string> ReferenceShapes();
inline constexpr const char* kWideShape = "v3-wide";

}  // namespace hadal::testing
