#include <random>

#include "kernels/cuda/products/ops.h"
#include "tests/kernels/cuda/products/product_case.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::DeviceFixture;
using testing::ProductCase;
using testing::ProductShape;
using testing::RelativeError;
using testing::WeightShape;

struct Path {
  const char* name;
  bool (*run)(const cuda::Product&, CudaContext&);
  bool quantises = false;
};

bool RunChosen(const cuda::Product& p, CudaContext& context) {
  cuda::RunProduct(p, context);
  return true;
}

template <int kRows, int kSplits>
bool RunFew(const cuda::Product& p, CudaContext& context) {
  return cuda::MatMulFew(p, {.rows = kRows, .splits = kSplits}, context);
}

template <int kPlan>
bool RunHeld(const cuda::Product& p, CudaContext& context) {
  return cuda::MatMulHeld(p, cuda::kHeldPlans[kPlan], context);
}

constexpr Path kPaths[] = {{"general", cuda::MatMulGeneral},
                           {"skinny", cuda::MatMulSkinny},
                           {"held 64", RunHeld<0>},
                           {"held 128", RunHeld<1>},
                           {"held 256", RunHeld<2>},
                           {"held 256 wide", RunHeld<3>},
                           {"held 256 codes", RunHeld<4>},
                           {"held 512 codes", RunHeld<5>},
                           {"few 64/1", RunFew<64, 1>},
                           {"few 64/4", RunFew<64, 4>},
                           {"few 128/1", RunFew<128, 1>},
                           {"few 128/2", RunFew<128, 2>},
                           {"few 128/8", RunFew<128, 8>},
                           {"cublas", cuda::MatMulCublas},
                           {"cublas f8", cuda::MatMulCublasF8, true},
                           {"chosen", RunChosen, true}};

// Of bf16 outputs half a unit in the last place, uniformly; sums in FP32 on the way, which tensor
// cores cut off rather than round.
double Bound(const ProductShape& shape, DType act, bool quantised) {
  const double rounding = act == DType::kF32 ? 1e-5 : shape.float_out ? 3e-5 : 2.5e-3;
  // FP8 tensor cores keep about 14 bits of a sum.
  return quantised ? 1e-2 : rounding;
}

void CheckProduct(const ProductShape& shape, DeviceFixture& device, std::mt19937_64& rng) {
  ProductCase product(shape, device, rng);
  const std::vector<double> exact = product.Reference();
  const bool may_quantise = shape.weight.dtype == DType::kF8E4M3;
  if (may_quantise) product.QuantiseX();
  const std::vector<double> quantised = may_quantise ? product.Reference() : exact;
  std::string ran;
  for (const Path& path : kPaths) {
    std::vector<float> y;
    std::string trouble;
    if (!product.Run(path.run, &y, &trouble)) continue;
    double error = RelativeError(y, exact);
    double bound = Bound(shape, device.context.act, false);
    if (path.quantises && may_quantise && error > bound) {
      error = RelativeError(y, quantised);
      bound = Bound(shape, device.context.act, true);
    }
    // Of a few outputs all can be near zero by chance, and relative errors large.
    if (y.size() < 64) bound = std::max(bound * 4, 1e-4);
    const bool good = error < bound && trouble.empty();
    ran += std::string(" ") + path.name;
    CAPTURE(path.name, shape.m, shape.matrices, shape.weight.n, shape.weight.k,
            DTypeName(shape.weight.dtype), shape.weight.row_offset, shape.weight.col_offset,
            shape.weight.transposed, shape.x_pad, shape.float_out, DTypeName(device.context.act),
            trouble, error);
    if (!good) {
      std::printf("%s: m %d, %d x [%lld, %lld] %s: error %g (bound %g) %s\n", path.name, shape.m,
                  shape.matrices, static_cast<long long>(shape.weight.n),
                  static_cast<long long>(shape.weight.k), DTypeName(shape.weight.dtype).data(),
                  error, bound, trouble.c_str());
      testing::PrintMismatches(y, path.quantises ? quantised : exact,
                               shape.matrices * shape.weight.n, 5 * bound);
    }
    CHECK(good);
  }
  std::printf("m %d, %d x [%lld, %lld] %s:%s\n", shape.m, shape.matrices,
              static_cast<long long>(shape.weight.n), static_cast<long long>(shape.weight.k),
              DTypeName(shape.weight.dtype).data(), ran.c_str());
}

TEST_CASE("F32 activations times any weight") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kF32);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    CheckProduct({.m = 1, .weight = {.n = 1, .k = 1, .dtype = dtype}}, device, rng);
    CheckProduct({.m = 3,
                  .weight = {.n = 130, .k = 67, .dtype = dtype, .row_offset = 5, .col_offset = 3},
                  .x_pad = 3},
                 device, rng);
    CheckProduct({.m = 70, .weight = {.n = 200, .k = 300, .dtype = dtype}}, device, rng);
    CheckProduct({.m = 5, .matrices = 3, .weight = {.n = 66, .k = 70, .dtype = dtype}, .x_pad = 1},
                 device, rng);
  }
  CheckProduct({.m = 9, .weight = {.n = 96, .k = 7168, .dtype = DType::kF32}}, device, rng);
}

TEST_CASE("bf16 activations times any weight of odd shape") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    for (const bool float_out : {false, true}) {
      CheckProduct({.m = 1, .weight = {.n = 1, .k = 1, .dtype = dtype}, .float_out = float_out},
                   device, rng);
      CheckProduct({.m = 3,
                    .weight = {.n = 130, .k = 67, .dtype = dtype, .col_offset = 3},
                    .float_out = float_out},
                   device, rng);
      CheckProduct({.m = 70,
                    .weight = {.n = 200, .k = 328, .dtype = dtype, .row_offset = 7},
                    .x_pad = 3,
                    .float_out = float_out},
                   device, rng);
      CheckProduct({.m = 130,
                    .matrices = 3,
                    .weight = {.n = 66, .k = 136, .dtype = dtype},
                    .float_out = float_out},
                   device, rng);
    }
  }
}

TEST_CASE("few rows, aligned shapes") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16);
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    for (const int m : {1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 100}) {
      CheckProduct({.m = m, .weight = {.n = 384, .k = 1024, .dtype = dtype}, .float_out = true},
                   device, rng);
      CheckProduct(
          {.m = m, .weight = {.n = 200, .k = 1488, .dtype = dtype, .col_offset = 64}, .x_pad = 8},
          device, rng);
      CheckProduct({.m = m, .weight = {.n = 208, .k = 1488, .dtype = dtype, .col_offset = 64}},
                   device, rng);
    }
    // One block of outputs per kernel variant, few inputs; and enough outputs for every split.
    for (const int64_t n : {128, 1000, 2048, 5000}) {
      for (const int m : {1, 16, 64}) {
        CheckProduct({.m = m, .weight = {.n = n, .k = 512, .dtype = dtype, .row_offset = 128}},
                     device, rng);
      }
    }
    CheckProduct({.m = 5, .weight = {.n = 40000, .k = 128, .dtype = dtype}, .float_out = true},
                 device, rng);
    for (const int m : {3, 40}) {
      CheckProduct({.m = m, .weight = {.n = 12800, .k = 2048, .dtype = dtype}}, device, rng);
    }
  }
}

TEST_CASE("every head has its own matrix") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16);
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    for (const int m : {1, 8, 33, 100, 130}) {
      CheckProduct({.m = m, .matrices = 16, .weight = {.n = 512, .k = 128, .dtype = dtype}}, device,
                   rng);
      CheckProduct({.m = m,
                    .matrices = 5,
                    .weight = {.n = 128, .k = 512, .dtype = dtype, .transposed = true}},
                   device, rng);
      CheckProduct({.m = m, .matrices = 3, .weight = {.n = 192, .k = 576, .dtype = dtype}}, device,
                   rng);
      CheckProduct({.m = m,
                    .matrices = 3,
                    .weight = {.n = 96,
                               .k = 304,
                               .dtype = dtype,
                               .row_offset = 7,
                               .col_offset = 72}},
                   device, rng);
    }
  }
}

// Rows that end within a block's, inputs within a warp's; slices that begin within a scale block.
TEST_CASE("at most 8 rows of any shape", "[held]") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16);
  const auto below = [&](int64_t n) {
    return static_cast<int64_t>(rng() % static_cast<uint64_t>(n));
  };
  for (int i = 0; i < 60; ++i) {
    const bool f8 = i % 2 == 1, transposed = below(3) == 0;
    const int64_t lead = f8 ? 16 * below(12) : below(40), other = below(200);
    const int64_t k = 8 * (1 + below(i < 20 ? 20 : 240));
    CheckProduct({.m = 1 + static_cast<int>(below(8)),
                  .matrices = 1 + static_cast<int>(below(4)),
                  .weight = {.n = 1 + below(i % 3 == 0 ? 40 : 700),
                             .k = k,
                             .dtype = f8 ? DType::kF8E4M3 : DType::kBF16,
                             .transposed = transposed,
                             .row_offset = transposed ? lead : other,
                             .col_offset = transposed ? other : lead},
                  .x_pad = 8 * below(3),
                  .float_out = below(2) == 0},
                 device, rng);
  }
  // The layers of released models, whole and divided by 8.
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    for (const int m : {1, 3, 8}) {
      CheckProduct({.m = m, .weight = {.n = 3648, .k = 2048, .dtype = dtype}}, device, rng);
      CheckProduct({.m = m, .weight = {.n = 3072, .k = 1536, .dtype = dtype}}, device, rng);
      CheckProduct({.m = m, .weight = {.n = 400, .k = 7168, .dtype = dtype}}, device, rng);
    }
  }
}

TEST_CASE("many rows") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16);
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    for (const int m : {65, 128, 131, 512}) {
      CheckProduct({.m = m, .weight = {.n = 256, .k = 512, .dtype = dtype}}, device, rng);
      CheckProduct({.m = m, .weight = {.n = 384, .k = 640, .dtype = dtype}, .float_out = true},
                   device, rng);
      CheckProduct({.m = m, .weight = {.n = 192, .k = 320, .dtype = dtype}, .x_pad = 64}, device,
                   rng);
    }
  }
}

}  // namespace
}  // namespace hadal
