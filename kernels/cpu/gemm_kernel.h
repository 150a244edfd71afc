#pragma once

// The seam between the matmul driver and its kernels, one set per instruction set. Included by
// files compiled for those, hence plain data only.

#include <cstdint>

namespace hadal {

// c[r, p * 16 + j] (+)= sum over steps s of a[r, s] b[p][s][j], for a few rows and panels. The sum
// runs over the steps in order with one accumulator an output, whatever rows, panels and the
// splitting of the steps over calls.
struct GemmBlock {
  const void* a = nullptr;      // [rows][steps] pairs of bf16 or float, or single floats
  int64_t a_stride = 0;         // bytes
  const void* b = nullptr;      // [panels][steps][16] pairs of bf16, or single floats
  int64_t b_stride = 0;         // bytes between panels
  int64_t steps = 0;
  float* c = nullptr;           // [rows][panels * 16]
  int64_t c_stride = 0;         // floats
  // When set, the sum of this call starts at zero and is multiplied by scale[p][j] before it joins
  // c.
  const float* scale = nullptr;
  int64_t scale_stride = 0;     // floats between panels
  bool first = true;            // c is written, not added to
  int rows = 0;
  int panels = 0;               // 1, 2, 4 or 8
};

using GemmFn = void (*)(const GemmBlock& block);

inline constexpr int kMaxGemmRows = 14;

struct GemmKernels {
  int max_rows;                          // of one block
  int8_t max_panels[kMaxGemmRows + 1];   // of a block with that many rows
  bool bf16_activations;                 // operand a of `bf16`: pairs of bf16, else pairs of float
  GemmFn bf16;
  GemmFn f32;
  int f8_rows;                           // up to so many rows `f8` beats expand_f8, then `bf16`
  GemmFn f8;                             // b: [panels][steps][16] pairs of e4m3; null: f8_rows is 0
  // e4m3 to bf16, exactly. count is a multiple of 32.
  void (*expand_f8)(const uint8_t* codes, int64_t count, uint16_t* out);
  // To bf16, nearest even. Null unless bf16_activations: floats are taken as they are.
  void (*round)(const float* x, int64_t n, void* out);
};

extern const GemmKernels kGemmPortable;
extern const GemmKernels kGemmAvx2;
extern const GemmKernels kGemmAvx512;
extern const GemmKernels kGemmAvx512Bf16;

}  // namespace hadal
