#include "server/kv/block_pool.h"

#include "common/check.h"

namespace hadal {

BlockPool::BlockPool(int32_t num_blocks) : ref_counts_(num_blocks, 0) {
  free_.reserve(num_blocks);
  for (int32_t block = num_blocks - 1; block >= 0; --block) free_.push_back(block);
}

int32_t BlockPool::ref_count(int32_t block) const {
  HADAL_CHECK(block >= 0 && block < num_blocks(), "block {} of {}", block, num_blocks());
  return ref_counts_[block];
}

int32_t BlockPool::Allocate() {
  HADAL_CHECK(!free_.empty(), "all {} blocks are held", num_blocks());
  const int32_t block = free_.back();
  free_.pop_back();
  ref_counts_[block] = 1;
  return block;
}

void BlockPool::AddRef(int32_t block) {
  HADAL_CHECK(ref_count(block) > 0, "block {} is free", block);
  ++ref_counts_[block];
}

int32_t BlockPool::Release(int32_t block) {
  HADAL_CHECK(ref_count(block) > 0, "block {} is free already", block);
  if (--ref_counts_[block] == 0) free_.push_back(block);
  return ref_counts_[block];
}

}  // namespace hadal
