#include "tests/kernels/cpu/emulated_tiles.h"

#include <cmath>
#include <cstring>

#include "common/check.h"
#include "common/dtype.h"

namespace hadal {
namespace {

// What stands for amx_tiles.inc.
struct Tiles {
  bool configured = false;
  alignas(64) char rows[8][16][64];
};
thread_local Tiles tiles;

void ConfigureTiles() { tiles.configured = true; }

template <int kTile>
void LoadTile(const void* rows, int64_t stride) {
  HADAL_CHECK(tiles.configured, "a thread used tiles before it configured them");
  for (int r = 0; r < 16; ++r) {
    std::memcpy(tiles.rows[kTile][r], static_cast<const char*>(rows) + r * stride, 64);
  }
}

template <int kTile>
void StoreTile(void* rows, int64_t stride) {
  for (int r = 0; r < 16; ++r) {
    std::memcpy(static_cast<char*>(rows) + r * stride, tiles.rows[kTile][r], 64);
  }
}

template <int kTile>
void ZeroTile() {
  HADAL_CHECK(tiles.configured, "a thread used tiles before it configured them");
  std::memset(tiles.rows[kTile], 0, sizeof(tiles.rows[kTile]));
}

// As the instruction is documented: sums of the even and of the odd inputs from zero, then both
// join the old sum.
template <int kSum, int kA, int kB>
void AddProduct() {
  for (int m = 0; m < 16; ++m) {
    float old[16];
    bf16_t a[32];
    std::memcpy(old, tiles.rows[kSum][m], sizeof(old));
    std::memcpy(a, tiles.rows[kA][m], sizeof(a));
    for (int n = 0; n < 16; ++n) {
      float even = 0, odd = 0;
      for (int k = 0; k < 16; ++k) {
        bf16_t b[2];
        std::memcpy(b, tiles.rows[kB][k] + n * 4, sizeof(b));
        even = std::fma(Bf16ToFloat(a[2 * k]), Bf16ToFloat(b[0]), even);
        odd = std::fma(Bf16ToFloat(a[2 * k + 1]), Bf16ToFloat(b[1]), odd);
      }
      old[n] += even + odd;
    }
    std::memcpy(tiles.rows[kSum][m], old, sizeof(old));
  }
}

void Prefetch(const char*) {}
void PrefetchFar(const char*) {}

#include "kernels/cpu/gemm_amx.inc"

void RoundToBf16(const float* x, int64_t n, void* out) {
  for (int64_t i = 0; i < n; ++i) static_cast<bf16_t*>(out)[i] = FloatToBf16(x[i]);
}

// With slices so short that weights of tests have several.
constexpr GemmShape ShortSlices() {
  GemmShape shape = kTileShape;
  shape.slice_bytes = 64 * 2 * kTileRowBytes;
  return shape;
}

}  // namespace

const GemmKernels testing::kGemmEmulatedTiles = {
    .bf16_activations = true,
    .bf16_attention = true,
    .bf16_shape = ShortSlices(),
    .bf16 = TileGemm,
    .f32_shape = kGemmPortable.f32_shape,
    .f32 = kGemmPortable.f32,
    .f8_rows = 0,
    .f8 = nullptr,
    .expand_f8 = kGemmPortable.expand_f8,
    .round = RoundToBf16,
};

}  // namespace hadal
