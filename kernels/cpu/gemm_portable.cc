#include <cstring>

#include "common/dtype.h"
#include "kernels/cpu/gemm_kernel.h"

namespace hadal {
namespace {

// Four floats that any x86-64 handles at once; both compilers know the extension.
using Float4 = float __attribute__((vector_size(16)));
using Int4 = uint32_t __attribute__((vector_size(16)));

template <typename Vector>
Vector Load(const void* p) {
  Vector v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// Adds the sums to c as GemmBlock says.
void Store(const GemmBlock& g, int row, int panel, const Float4* sums) {
  float* c = g.c + row * g.c_stride + panel * 16;
  for (int i = 0; i < 4; ++i) {
    Float4 sum = sums[i];
    if (g.scale != nullptr) {
      sum *= Load<Float4>(g.scale + panel * g.scale_stride + i * 4);
      if (!g.first) sum += Load<Float4>(c + i * 4);
    }
    std::memcpy(c + i * 4, &sum, sizeof(sum));
  }
}

void Start(const GemmBlock& g, int row, int panel, Float4* sums) {
  const float* c = g.c + row * g.c_stride + panel * 16;
  const bool resume = !g.first && g.scale == nullptr;
  for (int i = 0; i < 4; ++i) sums[i] = resume ? Load<Float4>(c + i * 4) : Float4{};
}

template <int kRows>
void Bf16Rows(const GemmBlock& g, int row, int panel) {
  const char* b = static_cast<const char*>(g.b) + panel * g.b_stride;
  const float* a[kRows];
  Float4 sums[kRows][4];
  for (int r = 0; r < kRows; ++r) {
    a[r] = reinterpret_cast<const float*>(static_cast<const char*>(g.a) + (row + r) * g.a_stride);
    Start(g, row + r, panel, sums[r]);
  }
  for (int64_t s = 0; s < g.steps; ++s, b += 64) {
    for (int i = 0; i < 4; ++i) {
      const Int4 pairs = Load<Int4>(b + i * 16);
      const Int4 low = pairs << 16, high = pairs & 0xffff0000u;
      const Float4 even = Load<Float4>(&low), odd = Load<Float4>(&high);
      for (int r = 0; r < kRows; ++r) {
        sums[r][i] += even * a[r][2 * s];
        sums[r][i] += odd * a[r][2 * s + 1];
      }
    }
  }
  for (int r = 0; r < kRows; ++r) Store(g, row + r, panel, sums[r]);
}

template <int kRows>
void F32Rows(const GemmBlock& g, int row, int panel) {
  const char* b = static_cast<const char*>(g.b) + panel * g.b_stride;
  const float* a[kRows];
  Float4 sums[kRows][4];
  for (int r = 0; r < kRows; ++r) {
    a[r] = reinterpret_cast<const float*>(static_cast<const char*>(g.a) + (row + r) * g.a_stride);
    Start(g, row + r, panel, sums[r]);
  }
  for (int64_t s = 0; s < g.steps; ++s, b += 64) {
    for (int i = 0; i < 4; ++i) {
      const Float4 w = Load<Float4>(b + i * 16);
      for (int r = 0; r < kRows; ++r) sums[r][i] += w * a[r][s];
    }
  }
  for (int r = 0; r < kRows; ++r) Store(g, row + r, panel, sums[r]);
}

void Bf16(const GemmBlock& g) {
  for (int p = 0; p < g.panels; ++p) {
    int r = 0;
    for (; r + 2 <= g.rows; r += 2) Bf16Rows<2>(g, r, p);
    if (r < g.rows) Bf16Rows<1>(g, r, p);
  }
}

void F32(const GemmBlock& g) {
  for (int p = 0; p < g.panels; ++p) {
    int r = 0;
    for (; r + 2 <= g.rows; r += 2) F32Rows<2>(g, r, p);
    if (r < g.rows) F32Rows<1>(g, r, p);
  }
}

struct F8Table {
  uint16_t values[256];
  constexpr F8Table() : values() {
    for (int i = 0; i < 256; ++i) values[i] = FloatToBf16(F8E4M3ToFloat(static_cast<uint8_t>(i)));
  }
};

void ExpandF8(const uint8_t* codes, int64_t count, uint16_t* out) {
  static constexpr F8Table kTable;
  for (int64_t i = 0; i < count; ++i) out[i] = kTable.values[codes[i]];
}

constexpr GemmShape kShape = {
    .max_rows = 8,
    .row_unit = 1,
    .slice_bytes = kFirstLevelSlice,
    .max_panels = {1, 1, 1, 1, 1, 1, 1, 1, 1},
};

}  // namespace

const GemmKernels kGemmPortable = {
    .bf16_activations = false,
    .bf16_attention = false,
    .bf16_shape = kShape,
    .bf16 = Bf16,
    .f32_shape = kShape,
    .f32 = F32,
    .f8_rows = 0,
    .f8 = nullptr,
    .expand_f8 = ExpandF8,
    .round = nullptr,
};

}  // namespace hadal
