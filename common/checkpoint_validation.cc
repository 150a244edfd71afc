#include <algorithm>
#include <charconv>
#include <set>

#include "common/tensor_inventory.h"
#include "common/utf8.h"

namespace hadal {
namespace {

// Layers of multi-token prediction follow the model's own and are not loaded.
bool IsMtpTensor(const ModelConfig& config, std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return false;
  name.remove_prefix(kPrefix.size());
  int64_t layer = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  return error == std::errc() && end != name.data() + name.size() && *end == '.' &&
         layer >= config.n_layers &&
         layer < config.n_layers + std::max<int64_t>(1, config.n_mtp_layers);
}

bool IsKnownExtra(const ModelConfig& config, std::string_view name) {
  return name.ends_with(".rotary_emb.inv_freq") || IsMtpTensor(config, name);
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

// Appends what is wrong with one tensor.
void CheckTensor(const ExpectedTensor& expected, const TensorInfo& found,
                 std::vector<std::string>* problems) {
  if (found.shape != expected.shape) {
    problems->push_back(fmt::format("misshaped: {} is {}, the config calls for {}", expected.name,
                                    ShapeText(found.shape), ShapeText(expected.shape)));
  }
  const bool allowed = found.dtype && std::find(expected.dtypes.begin(), expected.dtypes.end(),
                                                *found.dtype) != expected.dtypes.end();
  if (allowed) return;
  std::vector<std::string_view> names;
  for (const DType dtype : expected.dtypes) names.push_back(DTypeName(dtype));
  problems->push_back(fmt::format("wrong dtype: {} is {}, the config calls for {}", expected.name,
                                  found.dtype_name, fmt::join(names, " or ")));
}

}  // namespace

Status ValidateTensors(const std::vector<ExpectedTensor>& expected, const Checkpoint& checkpoint,
                       const std::function<bool(std::string_view)>& may_be_extra) {
  std::vector<std::string> problems;
  std::set<std::string_view> known;
  for (const ExpectedTensor& tensor : expected) {
    known.insert(tensor.name);
    const Checkpoint::Entry* entry = checkpoint.Find(tensor.name);
    if (entry == nullptr) {
      problems.push_back(fmt::format("missing: {} {}", tensor.name, ShapeText(tensor.shape)));
    } else {
      CheckTensor(tensor, entry->info, &problems);
    }
  }
  for (const auto& [name, entry] : checkpoint.entries()) {
    if (known.count(name) != 0 || may_be_extra(name)) continue;
    problems.push_back(fmt::format("extra: {} in {}", DisplayText(name, 200), entry.file->path()));
  }
  if (problems.empty()) return OkStatus();
  return FailedPrecondition("the checkpoint does not fit its config.json ({} problem{}):\n  {}",
                            problems.size(), problems.size() == 1 ? "" : "s",
                            fmt::join(problems, "\n  "));
}

Status ValidateCheckpoint(const ModelConfig& config, const Checkpoint& checkpoint) {
  return ValidateTensors(ExpectedTensors(config), checkpoint, [&](std::string_view name) {
    return IsKnownExtra(config, name);
  });
}

}  // namespace hadal
