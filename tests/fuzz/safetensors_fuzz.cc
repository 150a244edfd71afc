// Bytes as a header alone, and as a whole file. What is accepted must cover its data exactly.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "common/check.h"
#include "common/safetensors.h"

namespace hadal {
namespace {

void CheckCovered(const std::vector<TensorInfo>& tensors, uint64_t data_bytes) {
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (const TensorInfo& tensor : tensors) {
    HADAL_CHECK(tensor.begin <= tensor.end && tensor.end <= data_bytes);
    for (const int64_t size : tensor.shape) HADAL_CHECK(size >= 0);
    if (tensor.dtype) {
      uint64_t bytes = static_cast<uint64_t>(DTypeSize(*tensor.dtype));
      for (const int64_t size : tensor.shape) bytes *= static_cast<uint64_t>(size);
      HADAL_CHECK(bytes == tensor.end - tensor.begin);
    }
    ranges.emplace_back(tensor.begin, tensor.end);
  }
  std::sort(ranges.begin(), ranges.end());
  uint64_t at = 0;
  for (const auto& [begin, end] : ranges) {
    HADAL_CHECK(begin == at);
    at = end;
  }
  HADAL_CHECK(at == data_bytes);
}

void OpenAsFile(const uint8_t* data, size_t size) {
  static const int fd = memfd_create("safetensors_fuzz", MFD_CLOEXEC);
  HADAL_CHECK(fd >= 0 && ftruncate(fd, 0) == 0);
  HADAL_CHECK(pwrite(fd, data, size, 0) == static_cast<ssize_t>(size));
  const auto file = SafetensorsFile::Open("/proc/self/fd/" + std::to_string(fd));
  if (!file.ok()) return;
  uint64_t bytes = 0;
  for (const TensorInfo& tensor : (*file)->tensors()) {
    const auto span = (*file)->data(tensor);
    bytes += span.size();
    if (!span.empty()) HADAL_CHECK(span.front() <= std::byte{255} && span.back() <= std::byte{255});
  }
  HADAL_CHECK(bytes <= size);
}

}  // namespace
}  // namespace hadal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const uint64_t data_bytes : {uint64_t{0}, uint64_t{58}}) {
    const auto tensors = hadal::ParseSafetensorsHeader(text, data_bytes);
    if (tensors.ok()) hadal::CheckCovered(*tensors, data_bytes);
  }
  hadal::OpenAsFile(data, size);
  return 0;
}
