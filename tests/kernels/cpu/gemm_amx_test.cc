// The AMX kernel's logic with emulated tiles, so that it is tested on any machine. Machines with AMX
// run the real one in the tests of the ops.

#include <cmath>
#include <cstring>
#include <random>

#include "common/check.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/packed_weight.h"
#include "tests/kernels/cpu/bits.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::RandomFloats;
using testing::RandomWeight;
using testing::SameBits;
using testing::WeightShape;

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

#include "kernels/cpu/gemm_amx.inc"

void RoundToBf16(const float* x, int64_t n, void* out) {
  for (int64_t i = 0; i < n; ++i) static_cast<bf16_t*>(out)[i] = FloatToBf16(x[i]);
}

const GemmKernels kEmulated = {
    .bf16_activations = true,
    .bf16_shape = kTileShape,
    .bf16 = TileGemm,
    .f32_shape = kGemmPortable.f32_shape,
    .f32 = kGemmPortable.f32,
    .f8_rows = 0,
    .f8 = nullptr,
    .expand_f8 = kGemmPortable.expand_f8,
    .round = RoundToBf16,
};

GemmRows ConvertRows(const CpuPackedWeight& w, const float* x, int m, const GemmKernels& kernels,
                     ScratchArena& arena) {
  const GemmRows rows = AllocateGemmRows(w, kernels, m, arena);
  for (int i = 0; i < m; ++i) ConvertGemmRow(w, kernels, x + i * w.k, rows.row(i));
  return rows;
}

std::vector<float> Multiply(const CpuPackedWeight& w, const float* x, int m,
                            const GemmKernels& kernels, CpuContext& context) {
  std::vector<float> y(static_cast<size_t>(m * w.n), -7.0f);
  ScratchArena::Scope scope(context.shared);
  const GemmRows rows = ConvertRows(w, x, m, kernels, context.shared);
  const GemmJob job{&w, rows, m, y.data(), w.n};
  RunGemmJobs(&job, 1, kernels, context);
  return y;
}

std::unique_ptr<PackedWeight> Pack(const WeightShape& shape, ThreadPool& pool,
                                   std::mt19937_64& rng) {
  return PackCpuWeight({RandomWeight(shape, rng).source()}, pool);
}

const CpuPackedWeight& Cpu(const std::unique_ptr<PackedWeight>& w) {
  return static_cast<const CpuPackedWeight&>(*w);
}

TEST_CASE("tiles give the products of the portable path on odd shapes") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool pool(3);
  CpuContext context(&pool, CpuIsa::kPortable);
  std::uniform_int_distribution<int64_t> offset(0, 300), width(1, 700), height(1, 150);
  for (int i = 0; i < 60; ++i) {
    const int64_t k = i == 0 ? 3000 : width(rng);
    const WeightShape shape{.n = height(rng), .k = k,
                            .dtype = i % 2 == 0 ? DType::kBF16 : DType::kF8E4M3,
                            .row_offset = offset(rng), .col_offset = offset(rng),
                            .scale_block = i % 3 == 0 ? 32 : 128};
    const auto packed = Pack(shape, pool, rng);
    const int m = i % 4 == 0 ? 1 + i % 16 : static_cast<int>(1 + offset(rng));
    CAPTURE(shape.n, shape.k, m, DTypeName(shape.dtype), shape.col_offset, shape.scale_block);
    const std::vector<float> x = RandomFloats(m * k, rng);
    const auto portable = Multiply(Cpu(packed), x.data(), m, kGemmPortable, context);
    const auto actual = Multiply(Cpu(packed), x.data(), m, kEmulated, context);
    const std::vector<double> expected(portable.begin(), portable.end());
    CHECK(testing::RelativeError(actual, expected) < (shape.n * m >= 64 ? 2e-6 : 1e-2));
  }
}

TEST_CASE("a row of tiles has the same bits alone, in any batch and at any place") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool pool(3);
  CpuContext context(&pool, CpuIsa::kPortable);
  const int64_t n = 147, k = 1003;
  const int all = 300;
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    const auto packed = Pack({.n = n, .k = k, .dtype = dtype, .col_offset = 37}, pool, rng);
    const std::vector<float> x = RandomFloats(all * k, rng);
    const std::vector<float> whole = Multiply(Cpu(packed), x.data(), all, kEmulated, context);
    for (const int m : {1, 2, 15, 16, 17, 31, 32, 33, 48, 49, 65, 130, 257}) {
      const auto first = static_cast<int64_t>(rng() % static_cast<uint64_t>(all - m + 1));
      CAPTURE(DTypeName(dtype), m, first);
      const auto part = Multiply(Cpu(packed), x.data() + first * k, m, kEmulated, context);
      CHECK(SameBits(part, testing::Rows(whole, n, first, m)));
      std::vector<float> serial(part.size());
      ScratchArena::Scope scope(context.shared);
      const GemmRows rows =
          ConvertRows(Cpu(packed), x.data() + first * k, m, kEmulated, context.shared);
      RunGemmSerial({&Cpu(packed), rows, m, serial.data(), n}, kEmulated, context.shared);
      CHECK(SameBits(serial, part));
    }
  }
}

TEST_CASE("what lies behind the rows of a tile does not matter") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool pool(1);
  const int64_t n = 40, k = 150;
  const auto packed = Pack({.n = n, .k = k}, pool, rng);
  for (const int m : {1, 3, 18}) {
    const std::vector<float> x = RandomFloats(m * k, rng);
    std::vector<float> results[2];
    for (const int garbage : {0, 0xff}) {  // 0xffff is a NaN
      ScratchArena arena;
      ScratchArena::Scope scope(arena);
      const GemmRows rows = AllocateGemmRows(Cpu(packed), kEmulated, m, arena);
      std::memset(rows.data, garbage, static_cast<size_t>((m + 15) / 16 * 16 * rows.stride));
      for (int i = 0; i < m; ++i) {
        ConvertGemmRow(Cpu(packed), kEmulated, x.data() + i * k, rows.row(i));
      }
      std::vector<float>& y = results[garbage & 1];
      y.resize(static_cast<size_t>(m * n));
      RunGemmSerial({&Cpu(packed), rows, m, y.data(), n}, kEmulated, arena);
    }
    CHECK(SameBits(results[0], results[1]));
  }
}

}  // namespace
}  // namespace hadal
