#pragma once

#include <cstdint>

#include "kernels/cpu/gemm_kernel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/vector.h"

namespace hadal {

// The two products of prefill attention, of a few queries with a tile of kScoreTile keys, on
// operands rounded to bf16 and with the kernel of matmul: one head's operands in its layouts.
class HalfAttention {
 public:
  // v_stride: floats between rows of values and outputs, a multiple of 16. Memory for `queries`
  // queries comes from the arena's current scope.
  HalfAttention(const GemmKernels& gemm, const VectorKernels& vector, int64_t qk_dim,
                int64_t v_stride, int64_t queries, ScratchArena& arena);

  // At most so many rows in Score() and AddValues().
  int max_rows() const { return gemm_.bf16_shape.max_rows; }

  // Queries and keys come in two parts, `first` and `second` columns of them; both: qk_dim.
  void SetQueries(const float* q, int64_t first, const float* turned, int64_t second,
                  int64_t queries);
  // keys, rope: [kScoreTile, ..], values: [kScoreTile, v_stride]; absent ones are finite.
  void SetTile(const float* keys, int64_t first, const float* rope, int64_t second,
               const float* values);
  // s: [rows, kScoreTile], of the queries `first` ...
  void Score(int64_t first, int rows, float* s) const;
  // o[r] = o[r] * alpha[r] + sum over the tile of p[r][j] values[j]; p: [rows, kScoreTile],
  // o: [rows, v_stride].
  void AddValues(const float* p, const float* alpha, int rows, float* o) const;

 private:
  void RoundRows(const float* x, int64_t first, const float* y, int64_t second, int64_t rows,
                 uint16_t* out) const;
  void Multiply(GemmBlock block, int64_t panels) const;

  const GemmKernels& gemm_;
  const VectorKernels& vector_;
  const int64_t qk_dim_;
  const int64_t v_stride_;
  const int64_t steps_;   // pairs of qk_dim
  const int64_t stride_;  // of rounded queries and keys, bf16
  uint16_t* q_;           // [queries][stride_]
  uint16_t* rounded_;     // a tile's keys or values, before they are packed
  uint16_t* keys_;        // [kScoreTile / 16][steps_][16 keys][2]
  uint16_t* values_;      // [v_stride / 16][kScoreTile / 2][16][2 keys]
  uint16_t* p_;           // [max_rows][kScoreTile]
};

}  // namespace hadal
