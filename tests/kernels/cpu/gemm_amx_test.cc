// The AMX kernel's logic. Machines with AMX run the real one in the tests of the ops besides.

#include <cstring>
#include <random>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/packed_weight.h"
#include "tests/kernels/cpu/bits.h"
#include "tests/kernels/cpu/emulated_tiles.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::kGemmEmulatedTiles;
using testing::RandomFloats;
using testing::RandomWeight;
using testing::SameBits;
using testing::WeightShape;

std::vector<float> Multiply(const PackedWeight& w, const float* x, int m, const GemmKernels& gemm,
                            ThreadPool& pool) {
  CpuContext context(&pool, CpuIsa::kPortable);
  context.gemm = &gemm;
  std::vector<float> y(static_cast<size_t>(m * w.n), -7.0f);
  MatMul({.x = x, .x_stride = w.k, .w = &w, .y = y.data(), .y_stride = w.n, .m = m}, context);
  return y;
}

std::unique_ptr<PackedWeight> Pack(const WeightShape& shape, ThreadPool& pool,
                                   std::mt19937_64& rng) {
  return PackCpuWeight({{RandomWeight(shape, rng).source()}}, pool);
}

const CpuPackedWeight& Cpu(const std::unique_ptr<PackedWeight>& w) {
  return *CpuMatrices(w.get())[0];
}

TEST_CASE("tiles give the products of the portable path on odd shapes") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool pool(3);
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
    // Values that rounding to bf16, which only tiles do, leaves alone.
    std::vector<float> x = RandomFloats(m * k, rng);
    for (float& v : x) v = Bf16ToFloat(FloatToBf16(v));
    const auto portable = Multiply(*packed, x.data(), m, kGemmPortable, pool);
    const auto actual = Multiply(*packed, x.data(), m, kGemmEmulatedTiles, pool);
    const std::vector<double> expected(portable.begin(), portable.end());
    CHECK(testing::RelativeError(actual, expected) < (shape.n * m >= 64 ? 2e-6 : 1e-2));
  }
}

TEST_CASE("a row of tiles has the same bits alone, in any batch and at any place") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool pool(3);
  const int64_t n = 147, k = 1003;
  const int all = 300;
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    const auto packed = Pack({.n = n, .k = k, .dtype = dtype, .col_offset = 37}, pool, rng);
    const std::vector<float> x = RandomFloats(all * k, rng);
    const std::vector<float> whole = Multiply(*packed, x.data(), all, kGemmEmulatedTiles, pool);
    for (const int m : {1, 2, 15, 16, 17, 31, 32, 33, 48, 49, 65, 130, 257}) {
      const auto first = static_cast<int64_t>(rng() % static_cast<uint64_t>(all - m + 1));
      CAPTURE(DTypeName(dtype), m, first);
      const auto part = Multiply(*packed, x.data() + first * k, m, kGemmEmulatedTiles, pool);
      CHECK(SameBits(part, testing::Rows(whole, n, first, m)));
      std::vector<float> serial(part.size());
      ScratchArena arena;
      MatMulSerial(x.data() + first * k, k, m, Cpu(packed), serial.data(), n, kGemmEmulatedTiles,
                   arena);
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
      const GemmRows rows = AllocateGemmRows(Cpu(packed), kGemmEmulatedTiles, m, arena);
      std::memset(rows.data, garbage, static_cast<size_t>((m + 15) / 16 * 16 * rows.stride));
      for (int i = 0; i < m; ++i) {
        ConvertGemmRow(Cpu(packed), kGemmEmulatedTiles, x.data() + i * k, rows.row(i));
      }
      std::vector<float>& y = results[garbage & 1];
      y.resize(static_cast<size_t>(m * n));
      RunGemmSerial({&Cpu(packed), rows, m, y.data(), n}, kGemmEmulatedTiles, arena);
    }
    CHECK(SameBits(results[0], results[1]));
  }
}

}  // namespace
}  // namespace hadal
