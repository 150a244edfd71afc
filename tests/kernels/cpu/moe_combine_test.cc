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
using testing::SameBits;

TEST_CASE("combine adds the weighted rows of a token and skips those of other ranks") {
  std::mt19937_64 rng(testing::RandomSeed());
  for (const int64_t dim : {1, 67, 2048}) {
    for (const bool accumulate : {false, true}) {
      const int tokens = 29, top_k = 5, rows = 40;
      const std::vector<float> row_out = RandomFloats(rows * dim, rng);
      const std::vector<float> weights = RandomFloats(tokens * top_k, rng);
      const std::vector<float> before = RandomFloats(tokens * dim, rng);
      std::vector<int32_t> row_of;
      for (int i = 0; i < tokens * top_k; ++i) {
        // Tokens 0 and 7 have no row here at all.
        const bool none = i / top_k % 7 == 0 && i / top_k < 8;
        row_of.push_back(none || rng() % 4 == 0 ? -1 : static_cast<int32_t>(rng() % rows));
      }
      std::vector<double> expected(before.size(), 0.0);
      if (accumulate) expected.assign(before.begin(), before.end());
      for (size_t i = 0; i < row_of.size(); ++i) {
        for (int64_t c = 0; c < dim && row_of[i] >= 0; ++c) {
          expected[i / top_k * static_cast<size_t>(dim) + static_cast<size_t>(c)] +=
              static_cast<double>(weights[i]) * row_out[static_cast<size_t>(row_of[i] * dim + c)];
        }
      }
      for (const CpuIsa isa : SupportedCpuIsas()) {
        std::vector<float> first;
        for (const int threads : {1, 2, 3}) {
          CAPTURE(CpuIsaName(isa), dim, accumulate, threads);
          ThreadPool pool(threads);
          CpuContext context(&pool, isa);
          std::vector<float> out = before;
          MoeCombineParams p{.row_out = row_out.data(), .row_of = row_of.data(),
                             .weights = weights.data(), .out = out.data(), .accumulate = accumulate,
                             .tokens = tokens, .top_k = top_k, .dim = dim};
          MoeCombine(p, context);
          CHECK(testing::RelativeError(out, expected) < 1e-6);
          if (first.empty()) first = out;
          CHECK(SameBits(out, first));
          const auto t = static_cast<int64_t>(rng() % tokens);
          std::vector<float> alone = testing::Rows(before, dim, t, 1);
          p.row_of += t * top_k;
          p.weights += t * top_k;
          p.out = alone.data();
          p.tokens = 1;
          MoeCombine(p, context);
          CHECK(SameBits(alone, testing::Rows(first, dim, t, 1)));
        }
      }
    }
  }
}

}  // namespace
}  // namespace hadal
