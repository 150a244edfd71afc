#include <algorithm>
#include <cmath>

#include "kernels/cuda/experts/ops.h"
#include "kernels/cuda/routing/ops.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/kernels/cuda/device_fixture.h"
#include "tests/kernels/cuda/routing/route_case.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using namespace testing;

Routed RunRoute(const RouteShape& s, std::vector<float>& x, const std::vector<float>& gate,
                const std::vector<float>& bias, const std::vector<int32_t>& positions) {
  DeviceFixture fixture(s.act,
                        cuda::MoeScratchBytes({.tokens = s.tokens, .experts = s.experts}, s.act));
  const GuardedBuffer x_device(ToAct(x, s.act)), gate_device(gate), bias_device(bias),
      positions_device(positions);
  const GuardedBuffer ids(s.tokens * s.top_k * 4), weights(s.tokens * s.top_k * 4);
  RouteParams p = ParamsOf(s);
  p.x = x_device.as<void>();
  p.gate = gate_device.as<float>();
  p.bias = s.bias ? bias_device.as<float>() : nullptr;
  p.positions = positions_device.as<int32_t>();
  p.ids = ids.as<int32_t>();
  p.weights = weights.as<float>();
  cuda::Route(p, fixture.context);
  CHECK(fixture.Finished());
  CHECK(ids.GuardIntact());
  CHECK(weights.GuardIntact());
  return {ids.Download<int32_t>(), weights.Download<float>()};
}

// Inputs of `tokens` tokens, each of which is drawn again while two of its scores are too close to
// tell in FP32 which is larger.
std::vector<float> ClearInputs(std::mt19937_64& rng, const RouteShape& s,
                               const std::vector<float>& gate, const std::vector<float>& bias) {
  std::vector<float> x;
  for (int t = 0; t < s.tokens; ++t) {
    std::vector<float> row;
    int draws = 0;
    do {
      REQUIRE(++draws <= 20);
      row = RandomFloats(s.dim, rng, 1.0f);
      ToAct(row, s.act);
    } while (RouteReference(s, row.data(), gate, bias).margin < 1e-6);
    x.insert(x.end(), row.begin(), row.end());
  }
  return x;
}

void CheckShape(std::mt19937_64& rng, const RouteShape& s) {
  const std::vector<float> gate =
      RandomFloats(s.experts * s.dim, rng, 1.0f / std::sqrt(static_cast<float>(s.dim)));
  const std::vector<float> bias = RandomFloats(s.experts, rng, 0.1f);
  std::vector<float> x = ClearInputs(rng, s, gate, bias);
  std::vector<int32_t> positions(static_cast<size_t>(s.tokens));
  for (int32_t& p : positions) p = rng() % 5 == 0 ? -1 : 3;
  const Routed got = RunRoute(s, x, gate, bias, positions);
  int wrong = 0;
  double worst = 0;
  for (int t = 0; t < s.tokens; ++t) {
    const int32_t* ids = got.ids.data() + t * s.top_k;
    const float* weights = got.weights.data() + t * s.top_k;
    if (positions[static_cast<size_t>(t)] < 0) {
      for (int j = 0; j < s.top_k; ++j) wrong += ids[j] != -1;
      continue;
    }
    const TokenRouting expected = RouteReference(s, x.data() + t * s.dim, gate, bias);
    for (size_t j = 0; j < static_cast<size_t>(s.top_k); ++j) {
      if (ids[j] != expected.ids[j]) {
        if (++wrong <= 3) {
          std::printf("  token %d choice %zu: got %d, expected %d\n", t, j, ids[j],
                      expected.ids[j]);
        }
        continue;
      }
      worst = std::max(worst, std::abs(weights[j] / expected.weights[j] - 1));
    }
  }
  std::printf("route %-24s tokens %4d wrong %d weight error %.1e\n", s.name, s.tokens, wrong,
              worst);
  std::fflush(stdout);
  CHECK(wrong == 0);
  CHECK(worst < 1e-5);
}

TEST_CASE("cuda route: every score and group rule against float64") {
  if (!HaveCudaDevice()) return;
  std::mt19937_64 rng(RandomSeed());
  const RouteShape shapes[] = {
      {"16B", 1, 2048, 64, 6, 1, 1, kSoftmax, kMax, false, false, 1.0f, DType::kBF16},
      {"16B", 77, 2048, 64, 6, 1, 1, kSoftmax, kMax, false, false, 1.0f, DType::kBF16},
      {"16B", 6, 2048, 64, 6, 1, 1, kSoftmax, kMax, false, false, 1.0f, DType::kBF16},
      {"many", 701, 200, 512, 8, 1, 1, kSoftmax, kMax, true, false, 1.0f, DType::kBF16},
      {"236B", 9, 512, 160, 6, 8, 3, kSoftmax, kMax, false, false, 16.0f, DType::kBF16},
      {"16B", 16, 2048, 64, 6, 1, 1, kSoftmax, kMax, false, false, 1.0f, DType::kBF16},
      {"small gate", 13, 2048, 40, 5, 8, 3, kSigmoid, kTwo, true, true, 2.5f, DType::kBF16},
      {"671B", 1, 7168, 256, 8, 8, 4, kSigmoid, kTwo, true, true, 2.5f, DType::kBF16},
      {"671B", 3, 7168, 256, 8, 8, 4, kSigmoid, kTwo, true, true, 2.5f, DType::kBF16},
      {"671B", 19, 7168, 256, 8, 8, 4, kSigmoid, kTwo, true, true, 2.5f, DType::kBF16},
      {"671B", 130, 1024, 256, 8, 8, 4, kSigmoid, kTwo, true, true, 2.5f, DType::kBF16},
      {"odd F32", 21, 67, 21, 5, 7, 3, kSigmoid, kTwo, true, true, 2.5f, DType::kF32},
      {"groups of one", 12, 40, 40, 4, 40, 10, kSoftmax, kTwo, true, false, 1.0f, DType::kF32},
      {"512 experts", 70, 130, 512, 12, 2, 1, kSigmoid, kMax, true, true, 1.5f, DType::kF32},
      {"long rows", 2, 9001, 30, 4, 1, 1, kSoftmax, kMax, true, false, 1.0f, DType::kF32},
      {"top 1 of 1", 5, 16, 1, 1, 1, 1, kSoftmax, kMax, false, false, 1.0f, DType::kF32},
  };
  for (const RouteShape& shape : shapes) CheckShape(rng, shape);
}

TEST_CASE("cuda route: ties go to the lower index") {
  if (!HaveCudaDevice()) return;
  RouteShape s{"ties", 2, 32, 48, 7, 6, 3, kSigmoid, kTwo, true, false, 1.0f, DType::kF32};
  std::vector<float> x(static_cast<size_t>(s.tokens * s.dim), 0.0f);  // all logits are 0
  const std::vector<float> gate(static_cast<size_t>(s.experts * s.dim), 1.0f);
  const Routed got = RunRoute(s, x, gate, std::vector<float>(48), {0, 1});
  for (int i = 0; i < s.tokens * s.top_k; ++i)
    CHECK(got.ids[static_cast<size_t>(i)] == i % s.top_k);
  for (float w : got.weights) CHECK(w == Approx(1.0 / s.top_k));
}

// Logits are one of four levels, so that experts tie across the warp, and groups too. Where the
// groups that stay have fewer than top_k experts, excluded ones follow, which all tie.
TEST_CASE("cuda route: ties everywhere, excluded experts chosen too") {
  if (!HaveCudaDevice()) return;
  std::mt19937_64 rng(RandomSeed());
  const RouteShape shapes[] = {
      {"ties 16B", 1, 2048, 64, 6, 1, 1, kSoftmax, kMax, false, false, 1.0f, DType::kBF16},
      {"ties 16B", 50, 2048, 64, 6, 1, 1, kSoftmax, kMax, true, false, 1.0f, DType::kBF16},
      {"ties 671B", 2, 7168, 256, 8, 8, 4, kSigmoid, kTwo, true, false, 2.5f, DType::kBF16},
      {"ties 671B", 67, 512, 256, 8, 8, 4, kSigmoid, kTwo, true, false, 2.5f, DType::kBF16},
      {"ties 236B", 40, 512, 160, 6, 8, 3, kSoftmax, kMax, false, false, 16.0f, DType::kBF16},
      {"excluded", 9, 2048, 64, 12, 16, 2, kSigmoid, kTwo, true, false, 1.0f, DType::kBF16},
      {"excluded", 70, 128, 256, 40, 8, 1, kSoftmax, kMax, true, false, 1.0f, DType::kBF16},
      {"excluded", 300, 72, 256, 40, 64, 5, kSigmoid, kTwo, true, false, 1.0f, DType::kF32},
      {"excluded", 6, 35, 21, 9, 7, 2, kSigmoid, kTwo, false, false, 1.0f, DType::kF32},
      {"all taken", 33, 64, 512, 512, 4, 2, kSoftmax, kTwo, true, false, 1.0f, DType::kF32},
  };
  for (const RouteShape& s : shapes) {
    std::vector<float> x(static_cast<size_t>(s.tokens * s.dim)), gate;
    for (int64_t t = 0; t < s.tokens; ++t) {
      x[static_cast<size_t>(t * s.dim) + rng() % static_cast<size_t>(s.dim)] = 1;
    }
    for (int64_t i = 0; i < s.experts * s.dim; ++i)
      gate.push_back(static_cast<float>(rng() % 4) * 0.25f);
    const std::vector<int32_t> positions(static_cast<size_t>(s.tokens), 3);
    const Routed got = RunRoute(s, x, gate, {0.0f}, positions);
    int wrong = 0;
    double worst = 0;
    for (int t = 0; t < s.tokens; ++t) {
      const TokenRouting expected = RouteReference(s, x.data() + t * s.dim, gate, {});
      for (size_t j = 0; j < static_cast<size_t>(s.top_k); ++j) {
        const size_t at = static_cast<size_t>(t * s.top_k) + j;
        wrong += got.ids[at] != expected.ids[j];
        worst = std::max(worst, std::abs(got.weights[at] / expected.weights[j] - 1));
      }
    }
    std::printf("route %-24s tokens %4d wrong %d weight error %.1e\n", s.name, s.tokens, wrong,
                worst);
    CHECK(wrong == 0);
    CHECK(worst < 1e-5);
  }
}

TEST_CASE("cuda route: a token has the same bits among few and among more tokens") {
  if (!HaveCudaDevice()) return;
  std::mt19937_64 rng(RandomSeed());
  for (const std::vector<int>& batches : {std::vector<int>{16, 7, 1}, {64, 40, 17}}) {
    RouteShape s{"bits",   batches[0], 2048, 64,    6,    1,           1,
                 kSoftmax, kMax,       true, false, 1.0f, DType::kBF16};
    std::vector<float> x = RandomFloats(s.tokens * s.dim, rng, 1.0f);
    const std::vector<float> gate = RandomFloats(s.experts * s.dim, rng, 0.02f);
    std::vector<int32_t> positions(static_cast<size_t>(s.tokens), 3);
    const Routed all = RunRoute(s, x, gate, {0.0f}, positions);
    for (const int tokens : batches) {
      s.tokens = tokens;
      x.resize(static_cast<size_t>(tokens * s.dim));
      positions.resize(static_cast<size_t>(tokens));
      const Routed some = RunRoute(s, x, gate, {0.0f}, positions);
      CHECK(std::equal(some.ids.begin(), some.ids.end(), all.ids.begin()));
      CHECK(std::equal(some.weights.begin(), some.weights.end(), all.weights.begin()));
    }
  }
}

}  // namespace
}  // namespace hadal
