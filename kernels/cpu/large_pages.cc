#include "kernels/cpu/large_pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace hadal {

Memory AllocateMemory(int64_t bytes) {
  constexpr int64_t kLargePage = 2 << 20;
  const bool large = bytes >= 4 * kLargePage;
  const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  void* data = nullptr;
  if (posix_memalign(&data, large ? kLargePage : 64, size) != 0) throw std::bad_alloc();
  if (large) madvise(data, size, MADV_HUGEPAGE);
  return Memory(static_cast<char*>(data));
}

}  // namespace hadal
