#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "common/dtype.h"
#include "common/step_plan.h"
#include "kernels/backend.h"
#include "tests/kernels/cpu/random_weight.h"

namespace hadal::testing {

// A latent cache of random values with sequences whose blocks lie scattered in it.
class PagedCache {
 public:
  template <typename Rng>
  PagedCache(const std::vector<int>& lengths, int64_t dim, DType dtype, Rng& rng)
      : dim_(dim), dtype_(dtype) {
    std::vector<int32_t> free;
    int blocks = 3;
    for (const int length : lengths) blocks += (length + kBlockSize - 1) / kBlockSize;
    for (int32_t b = 0; b < blocks; ++b) free.push_back(b);
    std::shuffle(free.begin(), free.end(), rng);
    for (const int length : lengths) {
      first_blocks_.push_back(static_cast<int32_t>(blocks_.size()));
      for (int i = 0; i < length; i += kBlockSize) {
        blocks_.push_back(free.back());
        free.pop_back();
      }
    }
    values_ = RandomFloats(int64_t{blocks} * kBlockSize * dim, rng);
    for (float& v : values_) {
      halves_.push_back(FloatToBf16(v));
      if (dtype == DType::kBF16) v = Bf16ToFloat(halves_.back());
    }
  }

  const void* data() const {
    return dtype_ == DType::kF32 ? static_cast<const void*>(values_.data()) : halves_.data();
  }
  // Where a sequence's block table starts in those of Rows().
  int32_t first_block(size_t sequence) const { return first_blocks_[sequence]; }
  // What an op takes; the rows are the caller's.
  AttentionRows Rows(const std::vector<AttentionRow>& rows) const {
    AttentionRows all{.rows = rows.data(), .host_rows = rows.data(),
                      .num_rows = static_cast<int>(rows.size()), .block_tables = blocks_.data()};
    for (const AttentionRow& row : rows) {
      all.tokens += row.num_tokens;
      all.max_row_tokens = std::max(all.max_row_tokens, row.num_tokens);
      all.max_context = std::max<int64_t>(all.max_context, row.start_pos + row.num_tokens);
    }
    return all;
  }
  // The latent row of one position.
  const float* Row(size_t sequence, int64_t position) const {
    const int64_t block = blocks_[first_blocks_[sequence] + position / kBlockSize];
    return values_.data() + (block * kBlockSize + position % kBlockSize) * dim_;
  }

 private:
  int64_t dim_;
  DType dtype_;
  std::vector<int32_t> blocks_;        // the sequences' tables, one after the other
  std::vector<int32_t> first_blocks_;  // [sequences]
  std::vector<float> values_;
  std::vector<bf16_t> halves_;
};

// softmax(scores) times the rows of `values` [scores.size()][dim].
inline std::vector<double> SoftmaxSum(const std::vector<double>& scores,
                                      const std::vector<double>& values, size_t dim) {
  const double top = *std::max_element(scores.begin(), scores.end());
  std::vector<double> out(dim, 0.0);
  double total = 0;
  for (size_t j = 0; j < scores.size(); ++j) {
    const double w = std::exp(scores[j] - top);
    total += w;
    for (size_t i = 0; i < dim; ++i) out[i] += w * values[j * dim + i];
  }
  for (double& v : out) v /= total;
  return out;
}

}  // namespace hadal::testing
