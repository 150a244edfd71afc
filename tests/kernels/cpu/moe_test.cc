// The MoE layer as one op: routing to the experts of this rank, the shared MLP, the weighted sum.
#include <cstring>
#include <random>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/ops.h"
#include "tests/kernels/cpu/bits.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::RandomFloats;
using testing::RandomWeight;
using testing::RelativeError;

// One gated MLP with its answer in float64.
struct TestMlp {
  TestMlp(int64_t d, int64_t w, std::mt19937_64& rng)
      : dim(d), width(w), gate({.n = w, .k = d, .dtype = DType::kF32}, rng),
        up({.n = w, .k = d, .dtype = DType::kF32}, rng),
        down({.n = d, .k = w, .dtype = DType::kF32}, rng) {}

  // out += weight * mlp(x)
  void AddTo(const float* x, double weight, double* out) const {
    for (int64_t j = 0; j < width; ++j) {
      double g = 0, u = 0;
      for (int64_t i = 0; i < dim; ++i) {
        g += gate.At(j, i) * x[i];
        u += up.At(j, i) * x[i];
      }
      const double hidden = weight * g / (1 + std::exp(-g)) * u;
      for (int64_t i = 0; i < dim; ++i) out[i] += down.At(i, j) * hidden;
    }
  }
  StackedSource w13() const { return {gate.source(), up.source()}; }
  StackedSource w2() const { return {down.source()}; }

  int64_t dim, width;
  RandomWeight gate, up, down;
};

TEST_CASE("the MoE op equals float64, with experts elsewhere, padding and a shared MLP") {
  std::mt19937_64 rng(testing::RandomSeed());
  const int64_t dim = 45, width = 30, shared_width = 37;
  const int experts = 7, top_k = 3, tokens = 33;
  ThreadPool pool(2);
  std::vector<TestMlp> mlps;
  std::vector<int32_t> local_index(experts, -1);
  std::vector<StackedSource> w13, w2;
  for (int e = 0; e < experts; ++e) {
    mlps.emplace_back(dim, width, rng);
    if (e % 3 == 1) continue;  // of another rank
    local_index[e] = static_cast<int32_t>(w13.size());
    w13.push_back(mlps.back().w13());
    w2.push_back(mlps.back().w2());
  }
  const TestMlp shared(dim, shared_width, rng);
  const auto packed13 = PackCpuWeight(w13, pool), packed2 = PackCpuWeight(w2, pool);
  const auto shared13 = PackCpuWeight({shared.w13()}, pool), shared2 = PackCpuWeight({shared.w2()}, pool);
  const std::vector<float> x = RandomFloats(tokens * dim, rng);
  const std::vector<float> weights = RandomFloats(tokens * top_k, rng);
  std::vector<int32_t> ids;
  for (int i = 0; i < tokens * top_k; ++i) {
    ids.push_back(i / top_k % 8 == 5 ? -1 : static_cast<int32_t>((i * 2 + rng() % 2) % experts));
  }
  for (const bool with_shared : {false, true}) {
    std::vector<double> expected(x.size(), 0.0);
    for (int t = 0; t < tokens; ++t) {
      double* out = &expected[static_cast<size_t>(t * dim)];
      if (with_shared) shared.AddTo(&x[static_cast<size_t>(t * dim)], 1, out);
      for (int j = t * top_k; j < (t + 1) * top_k; ++j) {
        if (ids[j] < 0 || local_index[ids[j]] < 0) continue;
        mlps[ids[j]].AddTo(&x[static_cast<size_t>(t * dim)], weights[j], out);
      }
    }
    MoeParams p{.x = x.data(), .ids = ids.data(), .weights = weights.data(),
                .local_index = local_index.data(), .w13 = packed13.get(), .w2 = packed2.get(),
                .shared = {}, .tokens = tokens, .top_k = top_k, .experts = experts, .dim = dim,
                .width = width};
    if (with_shared) {
      p.shared = {.w13 = shared13.get(), .w2 = shared2.get(), .width = shared_width};
    }
    for (const CpuIsa isa : SupportedCpuIsas()) {
      CAPTURE(CpuIsaName(isa), with_shared);
      CpuContext context(&pool, isa);
      std::vector<float> out(x.size(), NAN);
      p.out = out.data();
      Moe(p, context);
      CHECK(RelativeError(out, expected) < 1e-5);
      // A token alone has the same bits.
      MoeParams one = p;
      const int t = static_cast<int>(rng() % tokens);
      std::vector<float> alone(dim, NAN);
      one.x = x.data() + t * dim;
      one.ids += t * top_k;
      one.weights += t * top_k;
      one.out = alone.data();
      one.tokens = 1;
      Moe(one, context);
      CHECK(testing::SameBits(alone, testing::Rows(out, dim, t, 1)));
    }
  }
}

TEST_CASE("added rows and stored tokens land where they belong") {
  ThreadPool pool(1);
  CpuContext context(&pool, CpuIsa::kPortable);
  const std::vector<float> rows = {1, 2, 10, 20, 100, 200};
  const std::vector<int32_t> row_of = {2, 0, -1, -1, 1, -1};
  for (const bool accumulate : {false, true}) {
    std::vector<float> out = {5, 6, 7, 8, 9, 10};
    AddRows({.rows = rows.data(), .row_of = row_of.data(), .out = out.data(),
             .accumulate = accumulate, .tokens = 3, .width = 2, .dim = 2}, context);
    CHECK(out == (accumulate ? std::vector<float>{106, 208, 7, 8, 19, 30}
                             : std::vector<float>{101, 202, 0, 0, 10, 20}));
  }
  const std::vector<SampledToken> drawn = {{.token = 11}, {.token = 12}, {.token = 13}};
  const std::vector<int32_t> slots = {2, -1, 0};
  std::vector<int32_t> last = {1, 1, 1};
  StoreTokens({.tokens = drawn.data(), .slots = slots.data(), .last_tokens = last.data(), .rows = 3},
              context);
  CHECK(last == std::vector<int32_t>{13, 1, 11});
}

}  // namespace
}  // namespace hadal
