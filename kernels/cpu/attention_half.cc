#include "kernels/cpu/attention_half.h"

#include <algorithm>

#include "kernels/cpu/packed_weight.h"

namespace hadal {
namespace {

constexpr int64_t kKeySteps = kScoreTile / 2;
constexpr int64_t kStepHalves = kPanel * 2;  // bf16 per step of a panel

int64_t Bytes(int64_t halves) { return halves * int64_t{sizeof(uint16_t)}; }

}  // namespace

HalfAttention::HalfAttention(const GemmKernels& gemm, const VectorKernels& vector, int64_t qk_dim,
                             int64_t v_stride, int64_t queries, ScratchArena& arena)
    : gemm_(gemm), vector_(vector), qk_dim_(qk_dim), v_stride_(v_stride), steps_((qk_dim + 1) / 2),
      stride_(PaddedStride(steps_) * 2) {
  // A block may begin at any query, and the kernel reads rows in its unit.
  const int64_t spare = gemm.bf16_shape.row_unit - 1;
  q_ = arena.Allocate<uint16_t>((queries + spare) * stride_);
  rounded_ = arena.Allocate<uint16_t>(kScoreTile * std::max(stride_, v_stride_));
  keys_ = arena.Allocate<uint16_t>(kScoreTile / kPanel * steps_ * kStepHalves);
  values_ = arena.Allocate<uint16_t>(v_stride_ / kPanel * kKeySteps * kStepHalves);
  p_ = arena.Allocate<uint16_t>((max_rows() + spare) * kScoreTile);
}

void HalfAttention::RoundRows(const float* x, int64_t first, const float* y, int64_t second,
                              int64_t rows, uint16_t* out) const {
  for (int64_t i = 0; i < rows; ++i, x += first, y += second, out += stride_) {
    gemm_.round(x, first, out);
    gemm_.round(y, second, out + first);
    if (qk_dim_ % 2 != 0) out[qk_dim_] = 0;
  }
}

void HalfAttention::SetQueries(const float* q, int64_t first, const float* turned, int64_t second,
                               int64_t queries) {
  RoundRows(q, first, turned, second, queries, q_);
}

void HalfAttention::SetTile(const float* keys, int64_t first, const float* rope, int64_t second,
                            const float* values) {
  RoundRows(keys, first, rope, second, kScoreTile, rounded_);
  vector_.transpose_keys(rounded_, stride_ / 2, steps_, kPanel, keys_);

  gemm_.round(values, kScoreTile * v_stride_, rounded_);
  uint16_t* out = values_;
  for (int64_t c = 0; c < v_stride_; c += kPanel) {
    for (int64_t s = 0; s < kKeySteps; ++s, out += kStepHalves) {
      const uint16_t* even = rounded_ + 2 * s * v_stride_ + c;
      const uint16_t* odd = even + v_stride_;
      for (int i = 0; i < kPanel; ++i) {
        out[2 * i] = even[i];
        out[2 * i + 1] = odd[i];
      }
    }
  }
}

void HalfAttention::Multiply(GemmBlock block, int64_t panels) const {
  const auto* b = static_cast<const char*>(block.b);
  float* c = block.c;
  for (int64_t p = 0; p < panels; p += block.panels) {
    block.panels = gemm_.bf16_shape.max_panels[block.rows];
    while (block.panels > panels - p) block.panels /= 2;
    block.b = b + p * block.b_stride;
    block.c = c + p * kPanel;
    gemm_.bf16(block);
  }
}

void HalfAttention::Score(int64_t first, int rows, float* s) const {
  GemmBlock block;
  block.a = q_ + first * stride_;
  block.a_stride = Bytes(stride_);
  block.b = keys_;
  block.b_stride = Bytes(steps_ * kStepHalves);
  block.steps = steps_;
  block.c = s;
  block.c_stride = kScoreTile;
  block.rows = rows;
  Multiply(block, kScoreTile / kPanel);
}

void HalfAttention::AddValues(const float* p, const float* alpha, int rows, float* o) const {
  gemm_.round(p, int64_t{rows} * kScoreTile, p_);
  for (int r = 0; r < rows; ++r) {
    vector_.add_scaled(o + r * v_stride_, alpha[r], false, v_stride_, o + r * v_stride_);
  }
  GemmBlock block;
  block.a = p_;
  block.a_stride = Bytes(kScoreTile);
  block.b = values_;
  block.b_stride = Bytes(kKeySteps * kStepHalves);
  block.steps = kKeySteps;
  block.c = o;
  block.c_stride = v_stride_;
  block.first = false;
  block.rows = rows;
  Multiply(block, v_stride_ / kPanel);
}

}  // namespace hadal
