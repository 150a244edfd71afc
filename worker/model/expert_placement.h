#pragma once

#include <cstdint>
#include <vector>

#include "common/check.h"
#include "common/layout.h"

namespace hadal {

// Which rank of the world computes which routed expert. A table, so that moving or duplicating experts
// needs no other code.
class ExpertPlacement {
 public:
  // Rank r owns the r-th contiguous piece. REQUIRES: ranks divides experts.
  ExpertPlacement(int64_t experts, int ranks) {
    HADAL_CHECK(experts % ranks == 0, "{} experts over {} ranks", experts, ranks);
    local_count_ = static_cast<int>(experts / ranks);
    for (int r = 0; r < ranks; ++r) {
      const Range own = SplitRange(experts, ranks, r);
      for (int64_t e = own.begin; e < own.end; ++e) {
        owner_.push_back(r);
        local_index_.push_back(static_cast<int>(e - own.begin));
      }
    }
  }

  int owner(int64_t expert) const { return owner_[expert]; }
  // The expert's index among those of its owner.
  int local_index(int64_t expert) const { return local_index_[expert]; }
  // Experts per rank.
  int local_count() const { return local_count_; }
  // Of every expert: its index among those of `rank`, -1 when another rank owns it.
  std::vector<int32_t> LocalIndices(int rank) const {
    std::vector<int32_t> indices;
    for (size_t e = 0; e < owner_.size(); ++e) {
      indices.push_back(owner_[e] == rank ? local_index_[e] : -1);
    }
    return indices;
  }

 private:
  std::vector<int> owner_;
  std::vector<int> local_index_;
  int local_count_ = 0;
};

}  // namespace hadal
