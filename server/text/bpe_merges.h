#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace hadal {

// One merge rule: `left` followed by `right` becomes `result`.
struct MergeRule {
  int32_t left;
  int32_t right;
  int32_t result;
};

// Byte-pair merging by rank: the lowest-ranked adjacent pair first, the leftmost on ties, until no
// pair has a rule. Immutable; thread-safe.
class BpeMerges {
 public:
  // `rules` in rank order; of two rules for one pair the later counts. `byte_ids[b]` is the id a
  // byte starts as; -1: the byte is dropped. REQUIRES: ids not negative.
  BpeMerges(const std::vector<MergeRule>& rules, const std::vector<int32_t>& byte_ids);

  // Appends the ids of one piece. O(n log n) in its length.
  void Encode(std::string_view piece, std::vector<int32_t>* ids) const;

 private:
  struct Slot {
    uint64_t pair;
    uint32_t rank;
    int32_t result;
  };
  // Rank kNoRank: the pair has no rule.
  const Slot& Find(int32_t left, int32_t right) const;
  void MergeShort(std::vector<int32_t>* ids, size_t begin) const;
  void MergeLong(std::vector<int32_t>* ids, size_t begin) const;

  std::vector<Slot> slots_;  // open addressing; a power of two, at most half full
  uint64_t mask_ = 0;
  Slot none_;
  std::vector<int32_t> byte_ids_;
};

}  // namespace hadal
