#pragma once

// The seam between the ops other than matmul and their inner loops, one set per instruction set.
// Included by files compiled for those, hence plain data only. Every loop runs in an order that
// depends on the lengths alone: a row has the same bits whatever rows are handled with it.

#include <cstdint>

namespace hadal {

// Keys of one attention step, the same as kBlockSize: a row of scores.
inline constexpr int kScoreTile = 64;
// Elements per entry of block_max.
inline constexpr int kMaxBlock = 64;

struct VectorKernels {
  int lanes;       // floats per vector; what "padded" means below
  int key_group;   // keys per group of score_tile; divides kScoreTile
  int query_rows;  // queries per block of score_tile: tiles of a multiple of it waste nothing

  // y[r * y_stride + j] = sum of a[r * a_stride + i] * b[j * b_stride + i] over i < n.
  void (*dot)(const float* a, int64_t a_stride, int rows, const float* b, int64_t b_stride,
              int cols, int64_t n, float* y, int64_t y_stride);

  // Words of 32 bits, [kScoreTile][dim] with row stride `stride` to
  // [kScoreTile / group][dim][group]. `group` is a multiple of 4.
  void (*transpose_keys)(const void* keys, int64_t stride, int64_t dim, int group, void* out);
  // s[r][j] (+)= sum of q[r * dim + i] * key j [i], for the keys of the first `groups` groups;
  // keys: transposed in groups of key_group.
  void (*score_tile)(const float* q, int rows, int64_t dim, const float* keys, int groups,
                     bool accumulate, float* s);

  // One step of the online softmax. Row r of s [rows][kScoreTile] has first_valid + r * valid_step
  // keys (none when <= 0): s becomes exp(s * scale - m) of the new maximum m, zero for the others;
  // l is the running sum of those, alpha what older sums are to be multiplied by.
  void (*softmax_tile)(float* s, int rows, int64_t first_valid, int valid_step, float scale,
                       float* m, float* l, float* alpha);
  // o[r][c] = o[r][c] * alpha[r] + sum of p[r][j] * v[j][c] over j < keys. `cols` is padded; p has
  // rows of kScoreTile.
  void (*weighted_sum)(const float* p, const float* alpha, int rows, const float* v,
                       int64_t v_stride, int keys, float* o, int64_t o_stride, int64_t cols);

  // bf16 to float.
  void (*widen)(const uint16_t* x, int64_t n, float* out);
  // x += delta (when set); returns the sum of x^2.
  float (*add_square)(float* x, const float* delta, int64_t n);
  // out = x * weight * factor; out may be x.
  void (*scale_by)(const float* x, const float* weight, float factor, int64_t n, float* out);
  // out = silu(gate) * up; out may be gate or up.
  void (*silu_mul)(const float* gate, const float* up, float* out, int64_t n);
  // out (+)= w * x.
  void (*add_scaled)(const float* x, float w, bool accumulate, int64_t n, float* out);

  // out[b] = largest of x[b * kMaxBlock ..]; returns whether there is a NaN or +Inf.
  bool (*block_max)(const float* x, int64_t n, float* out);
  // The sum of w[i] = exp((x[i] - max) * factor), max finite and >= x; out takes w when set.
  double (*exp_sum)(const float* x, int64_t n, float max, float factor, float* out);
};

extern const VectorKernels kVectorPortable;
extern const VectorKernels kVectorAvx2;
extern const VectorKernels kVectorAvx512;

}  // namespace hadal
