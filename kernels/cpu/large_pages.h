#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

namespace hadal {

struct FreeMemory {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<char, FreeMemory>;

// Not initialised, aligned to 64 bytes; on large pages when it is many of them and the system
// follows advice: with small ones the kernels read a little slower. Throws std::bad_alloc.
Memory AllocateMemory(int64_t bytes);

}  // namespace hadal
