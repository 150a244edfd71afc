#pragma once

#include <cstdint>
#include <vector>

namespace hadal {

// The block ids 0..num_blocks-1 of one D group and how many holders each has. Ids only: what a
// block contains is the workers' affair, who holds it the caller's. Not thread-safe.
class BlockPool {
 public:
  explicit BlockPool(int32_t num_blocks);

  int32_t num_blocks() const { return static_cast<int32_t>(ref_counts_.size()); }
  int32_t free_blocks() const { return static_cast<int32_t>(free_.size()); }
  int32_t ref_count(int32_t block) const;

  // A block with one holder. REQUIRES: free_blocks() > 0.
  int32_t Allocate();
  // REQUIRES: ref_count(block) > 0.
  void AddRef(int32_t block);
  // Returns the holders left; at 0 the block is free. REQUIRES: ref_count(block) > 0.
  int32_t Release(int32_t block);

 private:
  std::vector<int32_t> ref_counts_;  // [num_blocks]
  std::vector<int32_t> free_;        // the last one is handed out next
};

}  // namespace hadal
