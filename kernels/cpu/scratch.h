#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/large_pages.h"

namespace hadal {

// Memory for the duration of one op, owned by one thread. Grows while it warms up and then never
// allocates again: when the outermost scope ends, several blocks become one of their total size.
class ScratchArena {
 public:
  // Frees what was allocated since its construction. Scopes nest.
  class Scope {
   public:
    explicit Scope(ScratchArena& arena)
        : arena_(arena), block_(arena.block_), used_(arena.used_) { ++arena_.depth_; }
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    ScratchArena& arena_;
    size_t block_;
    int64_t used_;
  };

  // Uninitialised, aligned to 64 bytes, valid until the enclosing Scope ends.
  // REQUIRES: inside a Scope.
  template <typename T>
  T* Allocate(int64_t count) {
    return static_cast<T*>(AllocateBytes(count * static_cast<int64_t>(sizeof(T))));
  }

  int64_t capacity() const;  // bytes held

 private:
  struct Block {
    Memory data;
    int64_t bytes = 0;
  };

  void* AllocateBytes(int64_t bytes);
  void AddBlock(int64_t bytes);

  std::vector<Block> blocks_;
  int64_t merged_bytes_ = 0;  // size of the first block to come, when there is none
  size_t block_ = 0;   // the block being filled
  int64_t used_ = 0;   // bytes taken from it
  int depth_ = 0;
};

}  // namespace hadal
