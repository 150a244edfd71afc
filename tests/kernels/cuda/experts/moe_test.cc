#include "kernels/cuda/experts/moe.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>

#include "tests/kernels/cpu/random_weight.h"
#include "tests/kernels/cuda/compare.h"
#include "tests/kernels/cuda/device_weight.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using namespace testing;
using cuda::MoePath;

struct MoeShape {
  const char* name;
  int tokens, top_k, experts, local_experts;
  int64_t dim, width, shared_width;
  DType weight = DType::kBF16;
  DType act = DType::kBF16;
  bool skewed = false;  // most tokens choose the same few experts
  int scale_rows = 128;
  int k_lead = 0;    // of the shared w2
  int exponent = 0;  // activations are around 2 to this; unless 0, every fourth 128 are zero
};

// Distinct experts per token; some choices are -1 (nobody's).
std::vector<int32_t> RandomIds(std::mt19937_64& rng, const MoeShape& s) {
  std::vector<int32_t> ids(static_cast<size_t>(s.tokens * s.top_k));
  std::vector<int32_t> all(static_cast<size_t>(s.experts));
  std::iota(all.begin(), all.end(), 0);
  for (int t = 0; t < s.tokens; ++t) {
    std::shuffle(all.begin(), all.end(), rng);
    if (s.skewed && rng() % 4 != 0) std::sort(all.begin(), all.end());
    for (int j = 0; j < s.top_k; ++j) {
      const bool nobody = s.tokens > 2 && t % 7 == 3;
      ids[static_cast<size_t>(t * s.top_k + j)] = nobody ? -1 : all[static_cast<size_t>(j)];
    }
  }
  return ids;
}

struct MoeCase {
  MoeCase(std::mt19937_64& rng, const MoeShape& shape)
      : s(shape),
        w13(rng, s.local_experts, 2 * s.width, s.dim, s.weight, {s.scale_rows, 0}),
        w2(rng, s.local_experts, s.dim, s.width, s.weight, {s.scale_rows, 0}) {
    x = RandomFloats(s.tokens * s.dim, rng, 1.0f);
    for (size_t i = 0; s.exponent != 0 && i < x.size(); ++i) {
      const bool gap = i % static_cast<size_t>(s.dim) / 128 % 4 == 2;
      x[i] = gap ? 0 : std::ldexp(x[i], s.exponent);
    }
    x_device = std::make_unique<GuardedBuffer>(ToAct(x, s.act));
    ids = RandomIds(rng, s);
    weights = RandomFloats(s.tokens * s.top_k, rng, 0.5f);
    std::vector<int32_t> order(static_cast<size_t>(s.experts));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), rng);
    local.assign(static_cast<size_t>(s.experts), -1);
    for (int i = 0; i < s.local_experts; ++i)
      local[static_cast<size_t>(order[static_cast<size_t>(i)])] = i;
    if (s.shared_width > 0) {
      shared13.emplace(rng, 1, 2 * s.shared_width, s.dim, s.weight,
                       RandomDeviceWeight::Options{s.scale_rows, 0});
      shared2.emplace(rng, 1, s.dim, s.shared_width, s.weight,
                      RandomDeviceWeight::Options{s.scale_rows, s.k_lead});
    }
  }

  void AddMlp(const float* w13_values, const float* w2_values, int64_t width, int t, double factor,
              std::vector<double>& out) const {
    const float* row = x.data() + t * s.dim;
    std::vector<double> hidden(static_cast<size_t>(width));
    const auto dot = [&](const float* w) {
      double sum = 0;
      for (int64_t k = 0; k < s.dim; ++k) sum += static_cast<double>(w[k]) * row[k];
      return sum;
    };
    for (int64_t i = 0; i < width; ++i) {
      const double gate = dot(w13_values + i * s.dim), up = dot(w13_values + (width + i) * s.dim);
      hidden[static_cast<size_t>(i)] = gate / (1 + std::exp(-gate)) * up;
    }
    for (int64_t r = 0; r < s.dim; ++r) {
      double sum = 0;
      for (int64_t i = 0; i < width; ++i)
        sum += w2_values[r * width + i] * hidden[static_cast<size_t>(i)];
      out[static_cast<size_t>(t * s.dim + r)] += factor * sum;
    }
  }

  std::vector<double> Reference() const {
    std::vector<double> out(x.size());
    for (int t = 0; t < s.tokens; ++t) {
      if (shared13) AddMlp(shared13->matrix(0), shared2->matrix(0), s.shared_width, t, 1.0, out);
      for (int j = 0; j < s.top_k; ++j) {
        const auto i = static_cast<size_t>(t * s.top_k + j);
        const int32_t e = ids[i] < 0 ? -1 : local[static_cast<size_t>(ids[i])];
        if (e >= 0) AddMlp(w13.matrix(e), w2.matrix(e), s.width, t, weights[i], out);
      }
    }
    return out;
  }

  int64_t ScratchBytes() const {
    return cuda::MoeScratchBytes({.tokens = s.tokens,
                                  .dim = s.dim,
                                  .mlp_width = s.shared_width,
                                  .experts = s.experts,
                                  .local_experts = s.local_experts,
                                  .top_k = s.top_k,
                                  .moe_tokens = s.tokens,
                                  .moe_width = s.width},
                                 s.act);
  }

  // Checks one path against `reference`; whether it was run.
  bool Check(MoePath path, const char* path_name, const std::vector<double>& reference) {
    DeviceFixture fixture(s.act, ScratchBytes());
    const GuardedBuffer ids_device(ids), weights_device(weights), local_device(local);
    const GuardedBuffer out(s.tokens * s.dim * DTypeSize(s.act));
    MoeParams p{.x = x_device->as<void>(),
                .ids = ids_device.as<int32_t>(),
                .weights = weights_device.as<float>(),
                .local_index = local_device.as<int32_t>(),
                .w13 = &w13.weight,
                .w2 = &w2.weight,
                .out = out.as<void>(),
                .tokens = s.tokens,
                .top_k = s.top_k,
                .experts = s.experts,
                .dim = s.dim,
                .width = s.width};
    if (shared13)
      p.shared = {.w13 = &shared13->weight, .w2 = &shared2->weight, .width = s.shared_width};
    if (!cuda::MoePathFits(p, path, fixture.context)) return false;
    std::vector<float> first;
    bool same = true;
    for (int run = 0; run < 2; ++run) {  // twice: the order of sums is fixed
      out.Poison();
      cuda::RunMoe(p, path, fixture.context);
      CHECK(fixture.Finished());
      const std::vector<float> got = DownloadFloats(out, s.act);
      if (run == 1) same = std::memcmp(first.data(), got.data(), got.size() * sizeof(float)) == 0;
      first = got;
    }
    const double error = RelativeError(first, reference);
    const double limit = Limit(path);
    std::printf("moe %-28s %-8s tokens %4d error %.2e (limit %.0e)%s\n", s.name, path_name,
                s.tokens, error, limit, error < limit ? "" : "  WRONG");
    if (!(error < limit)) PrintMismatches(first, reference, s.dim, limit * 5);
    std::fflush(stdout);
    CHECK(error < limit);
    CHECK(same);
    CHECK(out.GuardIntact());
    return true;
  }

  // bf16: rounding of the hidden values and of the output, each 2^-9 at most, about a third of it
  // in the mean. e4m3 activations: 2^-4 at most, so 3e-2 in the mean of inputs and hidden values
  // each.
  double Limit(MoePath path) const {
    if (s.act == DType::kF32) return 1e-5;
    if (s.weight != DType::kF8E4M3) return 6e-3;
    return path == MoePath::kTile || path == MoePath::kAuto ? 6e-2 : 6e-3;
  }

  MoeShape s;
  RandomDeviceWeight w13, w2;
  std::optional<RandomDeviceWeight> shared13, shared2;
  std::vector<float> x, weights;
  std::vector<int32_t> ids, local;
  std::unique_ptr<GuardedBuffer> x_device;
};

void CheckAllPaths(std::mt19937_64& rng, const MoeShape& shape) {
  MoeCase c(rng, shape);
  const std::vector<double> reference = c.Reference();
  c.Check(MoePath::kGeneral, "general", reference);
  c.Check(MoePath::kFew, "few", reference);
  c.Check(MoePath::kStream, "stream", reference);
  c.Check(MoePath::kTile, "tile", reference);
  c.Check(MoePath::kAuto, "auto", reference);
}

constexpr DType kBf = DType::kBF16;
constexpr DType kF8 = DType::kF8E4M3;
constexpr DType kF32 = DType::kF32;

void CheckShapes(std::initializer_list<MoeShape> shapes) {
  if (!HaveCudaDevice()) return;
  std::mt19937_64 rng(RandomSeed());
  for (const MoeShape& shape : shapes) CheckAllPaths(rng, shape);
}

TEST_CASE("cuda moe: odd shapes and dtypes against float64", "[odd]") {
  CheckShapes({
      {"odd F32", 5, 3, 7, 7, 67, 41, 29, kF32, kF32},
      {"odd F32, some local", 37, 2, 9, 4, 96, 130, 0, kF32, kF32, true},
      {"bf16 odd width", 1, 2, 6, 6, 64, 130, 72},
      {"bf16 odd dim", 19, 2, 6, 6, 75, 33, 41},
      {"bf16 odd width, 20 tokens", 20, 2, 6, 6, 72, 130, 37},
      {"fp8 odd", 6, 3, 8, 8, 200, 72, 40, kF8},
      {"fp8 odd, 21 tokens", 21, 3, 8, 8, 200, 75, 40, kF8},
      {"fp8 F32 act", 9, 2, 4, 4, 100, 50, 30, kF8, kF32},
  });
}

TEST_CASE("cuda moe: at most 8 tokens against float64", "[few]") {
  CheckShapes({
      {"bf16 one token", 1, 6, 16, 16, 256, 176, 352},
      {"bf16 one token, nothing here", 1, 2, 64, 2, 256, 176, 0},
      {"bf16 one token, shared only", 1, 2, 64, 1, 256, 176, 48},
      {"bf16 two tokens, wide shared", 2, 2, 8, 8, 192, 72, 2200},
      {"bf16 one token, long rows", 1, 6, 8, 8, 512, 1408, 2816},
      {"bf16 three tokens, odd width", 3, 2, 6, 6, 264, 130, 200},
      {"bf16 five tokens", 5, 3, 8, 8, 512, 352, 1000},
      {"bf16 eight tokens", 8, 6, 64, 64, 512, 352, 704},
      {"bf16 seven tokens, some local", 7, 4, 32, 12, 320, 208, 104},
      {"fp8 one token", 1, 4, 8, 8, 512, 256, 256, kF8},
      {"fp8 one token, long rows", 1, 6, 8, 8, 512, 1408, 2816, kF8},
      {"fp8 one token, three blocks of columns", 1, 2, 4, 4, 320, 120, 104, kF8},
      {"fp8 one token, wide", 1, 2, 6, 5, 7168, 64, 40, kF8},
      {"fp8 two tokens, long rows", 2, 2, 6, 5, 4096 - 128, 40, 24, kF8},
      {"fp8 three tokens, odd width", 3, 2, 6, 6, 264, 130, 203, kF8},
      {"fp8 eight tokens", 8, 6, 64, 64, 512, 352, 704, kF8},
      {"fp8 seven tokens, some local", 7, 4, 32, 12, 320, 208, 104, kF8},
      {"fp8 two tokens, wide shared", 2, 2, 8, 8, 256, 72, 2200, kF8},
      {"fp8 row scales", 8, 3, 8, 8, 384, 144, 208, kF8, kBf, false, 1},
      {"fp8 lead 64", 3, 3, 8, 8, 384, 128, 192, kF8, kBf, false, 128, 64},
      {"fp8 lead 16, row scales", 5, 3, 8, 8, 384, 128, 192, kF8, kBf, false, 1, 16},
      {"fp8 lead 8", 5, 3, 8, 8, 256, 128, 192, kF8, kBf, false, 128, 8},
  });
}

TEST_CASE("cuda moe: activations far from 1 against float64", "[range]") {
  CheckShapes({
      {"bf16 large", 3, 2, 6, 6, 640, 136, 200, kBf, kBf, false, 128, 0, 40},
      {"bf16 small", 3, 2, 6, 6, 640, 136, 200, kBf, kBf, false, 128, 0, -40},
      {"fp8 one token, large", 1, 2, 6, 6, 640, 256, 384, kF8, kBf, false, 128, 0, 40},
      // Tiles do not take this: they round to e4m3 with a scale of at least 1e-4 / 448.
      {"fp8 one token, small", 1, 2, 6, 6, 640, 136, 200, kF8, kBf, false, 1, 0, -40},
      {"fp8 four tokens, large", 4, 2, 6, 6, 640, 136, 200, kF8, kBf, false, 1, 0, 40},
      {"fp8 21 tokens, large", 21, 2, 6, 6, 640, 256, 384, kF8, kBf, false, 128, 0, 40},
  });
}

TEST_CASE("cuda moe: few rows per expert against float64", "[stream]") {
  CheckShapes({
      {"bf16 33 tokens", 33, 6, 16, 16, 384, 192, 384},
      {"bf16 100 tokens skewed", 100, 6, 64, 64, 256, 128, 256, kBf, kBf, true},
      {"bf16 70 tokens, some local", 70, 4, 8, 3, 328, 200, 0},
      {"fp8 row scales", 11, 3, 8, 8, 384, 144, 208, kF8, kBf, false, 1},
      {"fp8 lead 16", 12, 3, 8, 8, 384, 128, 192, kF8, kBf, false, 128, 16},
      {"fp8 64 tokens", 64, 8, 32, 8, 512, 256, 128, kF8, kBf, true},
      {"fp8 120 tokens", 120, 2, 6, 5, 320, 200, 72, kF8},
      // More items than multiprocessors, and longer than the look-ahead to the next.
      {"bf16 96 tokens, 64 experts", 96, 6, 64, 64, 1024, 384, 768},
      {"fp8 96 tokens, 64 experts", 96, 6, 64, 64, 1024, 384, 768, kF8},
      {"fp8 90 tokens, no shared", 90, 4, 16, 16, 256, 128, 0, kF8},
      {"fp8 150 tokens, skewed, some local", 150, 6, 64, 40, 768, 320, 640, kF8, kBf, true},
  });
}

TEST_CASE("cuda moe: many rows per expert against float64", "[many]") {
  CheckShapes({
      {"bf16 700 tokens", 700, 4, 8, 8, 256, 192, 128},
      {"bf16 300 tokens skewed", 300, 4, 12, 5, 192, 264, 136, kBf, kBf, true},
      {"bf16 520 tokens, odd width", 520, 2, 3, 2, 320, 100, 60},
      {"fp8 500 tokens", 500, 4, 8, 8, 512, 256, 128, kF8},
      {"fp8 290 tokens, skewed", 290, 3, 7, 4, 384, 320, 192, kF8, kBf, true},
      {"bf16 1100 tokens", 1100, 2, 5, 3, 136, 72, 40},
      {"fp8 300 tokens, row scales", 300, 2, 4, 3, 256, 200, 192, kF8, kBf, true, 1, 64},
      // Tiles in pairs, of experts with even and odd numbers of them.
      {"bf16 1000 tokens, skewed", 1000, 3, 7, 4, 192, 264, 136, kBf, kBf, true},
      {"fp8 1100 tokens, skewed", 1100, 3, 6, 5, 640, 384, 256, kF8, kBf, true},
      {"bf16 390 tokens, one expert", 390, 1, 1, 1, 200, 392, 72},
      {"fp8 700 tokens, halves within scale blocks", 700, 2, 4, 3, 256, 192, 128, kF8},
      {"fp8 260 tokens, one expert", 260, 1, 1, 1, 384, 256, 128, kF8},
      {"fp8 400 tokens, no shared", 400, 4, 8, 8, 256, 256, 0, kF8},
  });
}

}  // namespace
}  // namespace hadal
