#include "tests/worker/model/reference_case.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "common/safetensors.h"

namespace hadal::testing {
namespace {

const TensorInfo* Find(const SafetensorsFile& file, const std::string& name) {
  for (const TensorInfo& tensor : file.tensors()) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

// Empty when there is no such tensor.
template <typename T>
std::vector<T> Read(const SafetensorsFile& file, const std::string& name, const char* dtype) {
  const TensorInfo* tensor = Find(file, name);
  if (tensor == nullptr) return {};
  if (tensor->dtype_name != dtype) throw std::runtime_error(name + " is not " + dtype);
  const auto bytes = file.data(*tensor);
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace

std::vector<int32_t> ReferencePrompt::Continued() const {
  std::vector<int32_t> all = tokens;
  all.insert(all.end(), greedy.begin(), greedy.end() - 1);
  return all;
}

std::vector<ReferencePrompt> ReadReferencePrompts(const std::string& path) {
  auto file = SafetensorsFile::Open(path);
  if (!file.ok()) throw std::runtime_error(file.status().ToString());
  std::vector<ReferencePrompt> prompts;
  while (true) {
    const std::string key = "prompt." + std::to_string(prompts.size()) + ".";
    ReferencePrompt prompt;
    prompt.tokens = Read<int32_t>(**file, key + "tokens", "I32");
    if (prompt.tokens.empty()) break;
    prompt.logprobs = Read<float>(**file, key + "logprobs", "F32");
    prompt.emulated_logprobs = Read<float>(**file, key + "emulated_logprobs", "F32");
    prompt.emulated_fp8_inputs_logprobs =
        Read<float>(**file, key + "emulated_fp8_inputs_logprobs", "F32");
    prompt.greedy = Read<int32_t>(**file, key + "greedy", "I32");
    prompt.greedy_gap = Read<float>(**file, key + "greedy_gap", "F32");
    if (prompt.logprobs.size() + 1 != prompt.tokens.size() || prompt.greedy.empty() ||
        prompt.greedy.size() != prompt.greedy_gap.size()) {
      throw std::runtime_error(path + ": " + key + "* do not fit together");
    }
    prompts.push_back(std::move(prompt));
  }
  if (prompts.empty()) throw std::runtime_error(path + " has no prompts");
  return prompts;
}

std::string CasesDirectory(const char* variable) {
  const char* value = std::getenv(variable);
  if (value == nullptr) {
    throw std::runtime_error(std::string(variable) + " must name a directory that "
                             "`python -m reference.make_cases --out DIR` wrote; ctest sets it");
  }
  return value;
}

std::vector<std::string> ReferenceShapes() {
  return {"v2-lite", "v2", "v3", "moonlight", "kimi-k2"};
}

}  // namespace hadal::testing
