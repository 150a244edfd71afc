// A config.json from outside: what is accepted must have a finite rotation, a bounded inventory and
// slices inside their tensors.
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "common/check.h"
#include "common/file.h"
#include "common/model_config.h"
#include "common/tensor_inventory.h"

namespace hadal {
namespace {

void CheckSlices(const ModelConfig& config, const Layout& layout) {
  for (const ExpectedTensor& tensor : ExpectedTensors(config)) {
    const TensorSlice slice = SliceForRank(config, tensor, layout);
    const int64_t columns = tensor.shape.size() == 2 ? tensor.shape[1] : 1;
    HADAL_CHECK(slice.rows.begin >= 0 && slice.rows.begin <= slice.rows.end &&
                slice.rows.end <= tensor.shape[0]);
    HADAL_CHECK(slice.columns.begin >= 0 && slice.columns.begin <= slice.columns.end &&
                slice.columns.end <= columns);
  }
}

void CheckAccepted(const ModelConfig& config) {
  HADAL_CHECK(config.n_heads > 0 && config.qk_rope_head_dim % 2 == 0);
  HADAL_CHECK(std::isfinite(config.SoftmaxScale()) && config.SoftmaxScale() > 0);
  const std::vector<float> theta = config.RopeFrequencies();
  HADAL_CHECK(theta.size() == static_cast<size_t>(config.qk_rope_head_dim / 2));
  for (const float speed : theta) HADAL_CHECK(std::isfinite(speed) && speed >= 0);
  const bool small = config.n_layers * config.n_routed_experts <= 2048;
  for (const Layout& layout :
       {Layout{1, 1, 0}, Layout{2, 1, 1}, Layout{4, 2, 5}, Layout{3, 3, 8}}) {
    if (ValidateLayout(config, layout).ok() && small) CheckSlices(config, layout);
  }
}

}  // namespace
}  // namespace hadal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto parsed = hadal::ParseJson(text, "config.json");
  if (!parsed.ok()) return 0;
  for (const nlohmann::json* generation : {static_cast<const nlohmann::json*>(nullptr), &*parsed}) {
    const auto config = hadal::ParseModelConfig(*parsed, generation);
    if (config.ok()) hadal::CheckAccepted(*config);
  }
  return 0;
}
