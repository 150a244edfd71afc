#include <cmath>
#include <random>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/ops.h"
#include "tests/kernels/cpu/bits.h"
#include "tests/kernels/cpu/paged_cache.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::PagedCache;
using testing::RandomFloats;
using testing::SameBits;

struct RowSpec {
  int start_pos = 0;
  int num_tokens = 1;
};

// Sequences with decode rows, and the answer in float64.
class DecodeCase {
 public:
  DecodeCase(int heads, int latent, int rope, DType dtype, const std::vector<RowSpec>& rows,
             std::mt19937_64& rng)
      : heads_(heads), latent_(latent), rope_(rope), dtype_(dtype),
        cache_(Lengths(rows), latent + rope, dtype, rng) {
    int32_t token = 0;
    for (size_t r = 0; r < rows.size(); ++r) {
      rows_.push_back({token, rows[r].num_tokens, rows[r].start_pos, cache_.first_block(r)});
      token += rows[r].num_tokens;
    }
    q_latent_ = RandomFloats(int64_t{token} * heads * latent, rng);
    q_rope_ = RandomFloats(token * rope_stride(), rng);
    scale_ = 2 / std::sqrt(static_cast<float>(latent + rope));
  }

  std::vector<double> Expected() const {
    std::vector<double> out;
    for (size_t r = 0; r < rows_.size(); ++r) {
      for (int i = 0; i < rows_[r].num_tokens; ++i) {
        for (int h = 0; h < heads_; ++h) {
          const auto o = Query(r, rows_[r].first_token + i, h, rows_[r].start_pos + i + 1);
          out.insert(out.end(), o.begin(), o.end());
        }
      }
    }
    return out;
  }

  // The outputs of rows [begin, end).
  std::vector<float> Run(size_t begin, size_t end, int threads, CpuIsa isa) const {
    return Run(
        {rows_.begin() + static_cast<int64_t>(begin), rows_.begin() + static_cast<int64_t>(end)},
        threads, isa);
  }
  // The output of query i of row 0, as a row of its own.
  std::vector<float> RunQuery(int i, CpuIsa isa) const {
    AttentionRow row = rows_[0];
    row.first_token += i;
    row.start_pos += i;
    row.num_tokens = 1;
    return Run({row}, 1, isa);
  }

 private:
  std::vector<float> Run(const std::vector<AttentionRow>& rows, int threads, CpuIsa isa) const {
    ThreadPool pool(threads);
    CpuContext context(&pool, isa);
    std::vector<float> all(q_latent_.size(), -7.0f);
    MlaDecode({.q_latent = q_latent_.data(), .q_rope = q_rope_.data() + 3,
               .q_rope_stride = rope_stride(), .q_rope_head_stride = rope_ + 1, .out = all.data(),
               .rows = cache_.Rows(rows), .cache = cache_.data(), .cache_dtype = dtype_, .heads = heads_,
               .latent_rank = latent_, .rope_dim = rope_, .scale = scale_}, context);
    const int64_t first = rows.front().first_token;
    return testing::Rows(all, int64_t{heads_} * latent_, first,
                         rows.back().first_token + rows.back().num_tokens - first);
  }

  static std::vector<int> Lengths(const std::vector<RowSpec>& rows) {
    std::vector<int> lengths;
    for (const RowSpec& r : rows) lengths.push_back(r.start_pos + r.num_tokens);
    return lengths;
  }
  int64_t rope_stride() const { return heads_ * (rope_ + 1) + 5; }

  std::vector<double> Query(size_t sequence, int64_t token, int head, int keys) const {
    const float* q = q_latent_.data() + (token * heads_ + head) * latent_;
    const float* q_rope = q_rope_.data() + 3 + token * rope_stride() + head * (rope_ + 1);
    std::vector<double> scores, values;
    for (int j = 0; j < keys; ++j) {
      const float* row = cache_.Row(sequence, j);
      double score = 0;
      for (int i = 0; i < latent_; ++i) score += static_cast<double>(q[i]) * row[i];
      for (int i = 0; i < rope_; ++i) score += static_cast<double>(q_rope[i]) * row[latent_ + i];
      scores.push_back(score * scale_);
      values.insert(values.end(), row, row + latent_);
    }
    return testing::SoftmaxSum(scores, values, static_cast<size_t>(latent_));
  }

  int heads_, latent_, rope_;
  DType dtype_;
  PagedCache cache_;
  std::vector<AttentionRow> rows_;
  std::vector<float> q_latent_, q_rope_;
  float scale_ = 1;
};

TEST_CASE("decode attention equals float64: odd heads and widths, scattered blocks, any length") {
  std::mt19937_64 rng(testing::RandomSeed());
  struct Shape {
    int heads, latent, rope;
  };
  for (const Shape shape :
       {Shape{3, 40, 6}, {16, 512, 64}, {5, 192, 32}, {1, 7, 2}, {40, 33, 10}}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const DecodeCase c(shape.heads, shape.latent, shape.rope, dtype,
                         {{0, 1}, {62, 4}, {63, 1}, {64, 2}, {510, 3}, {700, 1}, {0, 4}}, rng);
      const std::vector<double> expected = c.Expected();
      for (const CpuIsa isa : SupportedCpuIsas()) {
        CAPTURE(CpuIsaName(isa), shape.heads, shape.latent, shape.rope, DTypeName(dtype));
        CHECK(testing::RelativeError(c.Run(0, 7, 2, isa), expected) < 1e-5);
      }
    }
  }
}

TEST_CASE("decode attention of a context beyond the number of splits equals float64") {
  std::mt19937_64 rng(testing::RandomSeed());
  // 64 splits of 512 keys end at 32768.
  const DecodeCase c(2, 16, 4, DType::kF32, {{32766, 3}, {1500, 2}}, rng);
  const std::vector<double> expected = c.Expected();
  for (const CpuIsa isa : SupportedCpuIsas()) {
    CAPTURE(CpuIsaName(isa));
    CHECK(testing::RelativeError(c.Run(0, 2, 2, isa), expected) < 1e-5);
  }
}

TEST_CASE("decode attention of a query has the same bits in any batch and on any thread count") {
  std::mt19937_64 rng(testing::RandomSeed());
  const std::vector<RowSpec> specs = {{0, 1}, {62, 4}, {300, 1}, {64, 2}, {1030, 3}, {700, 1}};
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const int heads = 18, latent = 70;
    const DecodeCase c(heads, latent, 10, dtype, specs, rng);
    for (const CpuIsa isa : SupportedCpuIsas()) {
      CAPTURE(CpuIsaName(isa), DTypeName(dtype));
      const std::vector<float> all = c.Run(0, specs.size(), 1, isa);
      for (const int threads : {2, 3}) CHECK(SameBits(c.Run(0, specs.size(), threads, isa), all));
      int64_t first = 0;
      for (size_t r = 0; r < specs.size(); ++r) {
        CHECK(SameBits(c.Run(r, r + 1, 1 + static_cast<int>(r % 3), isa),
                       testing::Rows(all, heads * latent, first, specs[r].num_tokens)));
        first += specs[r].num_tokens;
      }
    }
  }
}

TEST_CASE("several queries of a decode row have the bits of single queries") {
  std::mt19937_64 rng(testing::RandomSeed());
  const int heads = 3, latent = 40;
  const DecodeCase four(heads, latent, 6, DType::kBF16, {{509, 4}}, rng);
  for (const CpuIsa isa : SupportedCpuIsas()) {
    CAPTURE(CpuIsaName(isa));
    const std::vector<float> together = four.Run(0, 1, 2, isa);
    for (int i = 0; i < 4; ++i) {
      CHECK(SameBits(four.RunQuery(i, isa), testing::Rows(together, heads * latent, i, 1)));
    }
  }
}

}  // namespace
}  // namespace hadal
