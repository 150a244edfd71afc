#pragma once

// The seam between the matmul driver and its kernels, one set per instruction set. Included by
// files compiled for those, hence plain data only.

#include <cstdint>

namespace hadal {

// Steps that a kernel may add up before they join an output's sum.
inline constexpr int kStepUnit = 16;

// c[r, p * 16 + j] (+)= sum over steps s of a[r, s] b[p][s][j], for a few rows and panels. The sum
// runs over the steps in order with one accumulator an output, whatever rows, panels and the
// splitting of the steps over calls: a sum is resumed at multiples of kStepUnit only.
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
  // Cache lines to fetch meanwhile, in each panel as many: what calls to come will read. May lie
  // outside of the weight. A kernel with a way of its own ignores them.
  const char* ahead = nullptr;
  int64_t ahead_stride = 0;     // bytes between panels
  int64_t ahead_lines = 0;
  bool ahead_far = false;       // into the second-level cache, not the first
};

using GemmFn = void (*)(const GemmBlock& block);

inline constexpr int kMaxGemmRows = 32;
inline constexpr int kMaxGemmPanels = 8;

// Weights that stay in the first-level cache beside a block's activations.
inline constexpr int64_t kFirstLevelSlice = 24 * 1024;

// The blocks that a kernel takes.
struct GemmShape {
  int max_rows;
  // Cuts between blocks are at multiples of it, and operand a can be read up to one.
  int row_unit;
  // Of weights that all blocks of rows take in turn before the next ones come.
  int64_t slice_bytes;
  int8_t max_panels[kMaxGemmRows + 1];   // of a block with that many rows
};

struct GemmKernels {
  bool bf16_activations;                 // operand a of `bf16`: pairs of bf16, else pairs of float
  bool bf16_attention;                   // so fast that prefill attention should use `bf16` too
  GemmShape bf16_shape;
  GemmFn bf16;
  GemmShape f32_shape;
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
extern const GemmKernels kGemmAmx;

}  // namespace hadal
