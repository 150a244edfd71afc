#include "kernels/cpu/scratch.h"

#include <algorithm>

#include "common/rounding.h"

namespace hadal {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kMinBlock = 64 * 1024;

}  // namespace

int64_t ScratchArena::capacity() const {
  int64_t total = 0;
  for (const Block& block : blocks_) total += block.bytes;
  return total;
}

void ScratchArena::AddBlock(int64_t bytes) {
  bytes = RoundUp(std::max(bytes, kMinBlock), kAlignment);
  blocks_.push_back({.data = AllocateMemory(bytes), .bytes = bytes});
}

void* ScratchArena::AllocateBytes(int64_t bytes) {
  bytes = RoundUp(std::max<int64_t>(bytes, 1), kAlignment);
  if (blocks_.empty()) AddBlock(std::max(bytes, merged_bytes_));
  while (used_ + bytes > blocks_[block_].bytes) {
    if (block_ + 1 == blocks_.size()) AddBlock(std::max(bytes, 2 * blocks_[block_].bytes));
    ++block_;
    used_ = 0;
  }
  void* result = blocks_[block_].data.get() + used_;
  used_ += bytes;
  return result;
}

ScratchArena::Scope::~Scope() {
  arena_.block_ = block_;
  arena_.used_ = used_;
  if (--arena_.depth_ > 0 || arena_.blocks_.size() <= 1) return;
  arena_.merged_bytes_ = arena_.capacity();
  arena_.blocks_.clear();
}

}  // namespace hadal
