#include "common/safetensors_writer.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "common/check.h"

namespace hadal {

std::string LayOutSafetensors(std::string_view format, std::vector<TensorInfo>* tensors) {
  std::vector<TensorInfo*> order;
  order.reserve(tensors->size());
  for (TensorInfo& tensor : *tensors) order.push_back(&tensor);
  std::stable_sort(order.begin(), order.end(), [](const TensorInfo* a, const TensorInfo* b) {
    return ElementBits(a->dtype_name) > ElementBits(b->dtype_name);
  });
  std::string json = "{";
  if (!format.empty()) json += fmt::format(R"("__metadata__":{{"format":"{}"}})", format);
  uint64_t at = 0;
  for (TensorInfo* tensor : order) {
    const std::optional<uint64_t> bytes = TensorBytes(*tensor);
    HADAL_CHECK(bytes, "{}", tensor->name);
    tensor->begin = at;
    tensor->end = at += *bytes;
    json +=
        fmt::format(R"({}{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                    json.size() == 1 ? "" : ",", nlohmann::json(tensor->name).dump(),
                    tensor->dtype_name, fmt::join(tensor->shape, ","), tensor->begin, tensor->end);
  }
  json += "}";
  json.append((8 - json.size() % 8) % 8, ' ');
  std::string prefix;
  for (int i = 0; i < 8; ++i) prefix += static_cast<char>(uint64_t{json.size()} >> (8 * i));
  return prefix + json;
}

}  // namespace hadal
