#include <cstring>
#include <random>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/packed_weight.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::RandomFloats;
using testing::RandomWeight;
using testing::RelativeError;

struct Experts {
  Experts(int experts, int64_t d, int64_t w, DType dtype, ThreadPool& pool, std::mt19937_64& rng)
      : count(experts), dim(d), width(w) {
    for (int e = 0; e < count; ++e) {
      gate.emplace_back(testing::WeightShape{.n = width, .k = dim, .dtype = dtype}, rng);
      up.emplace_back(testing::WeightShape{.n = width, .k = dim, .dtype = dtype}, rng);
      down.emplace_back(testing::WeightShape{.n = dim, .k = width, .dtype = dtype}, rng);
      packed.push_back(PackCpuWeight({{gate.back().source(), up.back().source()}}, pool));
      w13.push_back(CpuMatrices(packed.back().get())[0]);
      packed.push_back(PackCpuWeight({{down.back().source()}}, pool));
      w2.push_back(CpuMatrices(packed.back().get())[0]);
    }
  }

  std::vector<double> Reference(int e, const float* x) const {
    const auto at = static_cast<size_t>(e);
    std::vector<double> hidden(static_cast<size_t>(width)), out(static_cast<size_t>(dim));
    for (int64_t j = 0; j < width; ++j) {
      double g = 0, u = 0;
      for (int64_t i = 0; i < dim; ++i) {
        g += gate[at].At(j, i) * x[i];
        u += up[at].At(j, i) * x[i];
      }
      hidden[static_cast<size_t>(j)] = g / (1 + std::exp(-g)) * u;
    }
    for (int64_t j = 0; j < dim; ++j) {
      for (int64_t i = 0; i < width; ++i) {
        out[static_cast<size_t>(j)] += down[at].At(j, i) * hidden[static_cast<size_t>(i)];
      }
    }
    return out;
  }

  int count;
  int64_t dim, width;
  std::vector<RandomWeight> gate, up, down;
  std::vector<std::unique_ptr<PackedWeight>> packed;
  std::vector<const CpuPackedWeight*> w13, w2;
};

// Runs rows (token, expert), sorted by expert.
std::vector<float> Run(const Experts& experts, const std::vector<float>& x,
                       const std::vector<std::vector<int32_t>>& tokens_of, CpuContext& context) {
  std::vector<int32_t> offsets = {0}, row_token;
  for (const auto& tokens : tokens_of) {
    row_token.insert(row_token.end(), tokens.begin(), tokens.end());
    offsets.push_back(static_cast<int32_t>(row_token.size()));
  }
  std::vector<float> out(row_token.size() * static_cast<size_t>(experts.dim));
  MoeMlp({.x = x.data(), .w13 = experts.w13.data(), .w2 = experts.w2.data(),
          .experts = experts.count, .expert_offsets = offsets.data(),
          .row_token = row_token.data(), .row_out = out.data(),
          .rows = static_cast<int>(row_token.size()), .dim = experts.dim, .width = experts.width},
         context);
  return out;
}

TEST_CASE("the expert MLP equals float64 for empty, small and crowded experts") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool pool(2);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    const Experts experts(5, 67, 130, dtype, pool, rng);
    const std::vector<float> x = RandomFloats(40 * 67, rng);
    std::vector<std::vector<int32_t>> tokens_of = {{3}, {}, {}, {39, 0, 7}, {}};
    for (int32_t t = 0; t < 33; ++t) tokens_of[2].push_back(t);
    for (const CpuIsa isa : SupportedCpuIsas()) {
      CAPTURE(DTypeName(dtype), CpuIsaName(isa));
      CpuContext context(&pool, isa);
      const std::vector<float> out = Run(experts, x, tokens_of, context);
      std::vector<double> expected;
      for (int e = 0; e < 5; ++e) {
        for (const int32_t t : tokens_of[static_cast<size_t>(e)]) {
          const auto row = experts.Reference(e, x.data() + t * 67);
          expected.insert(expected.end(), row.begin(), row.end());
        }
      }
      CHECK(RelativeError(out, expected) < (dtype == DType::kF32 ? 1e-5 : 4e-3));
    }
  }
}

// 24 experts on three threads are taken whole, rows alone and those of few experts are not.
TEST_CASE("an expert row has the same bits whatever else is in the batch") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool one(1), three(3);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    const Experts experts(24, 96, 70, dtype, one, rng);
    const std::vector<float> x = RandomFloats(50 * 96, rng);
    std::vector<std::vector<int32_t>> even(24), crowded(24);
    for (size_t e = 0; e < 24; ++e) {
      for (auto t = static_cast<int32_t>(e % 3); t < 50; t += 3 - static_cast<int32_t>(e % 2)) {
        even[e].push_back(t);
        if (e % 8 == 0) crowded[e].push_back(t);
      }
    }
    for (const CpuIsa isa : SupportedCpuIsas()) {
      CAPTURE(DTypeName(dtype), CpuIsaName(isa));
      CpuContext single(&one, isa), multi(&three, isa);
      for (const auto& crowd : {even, crowded}) {
        const std::vector<float> all = Run(experts, x, crowd, multi);
        size_t row = 0, same = 0;
        for (size_t e = 0; e < 24; ++e) {
          for (const int32_t t : crowd[e]) {
            std::vector<std::vector<int32_t>> alone(24);
            alone[e] = {t};
            const std::vector<float> out = Run(experts, x, alone, single);
            same += std::memcmp(out.data(), all.data() + row * 96, 96 * sizeof(float)) == 0;
            ++row;
          }
        }
        CHECK(same == row);
      }
    }
  }
}

TEST_CASE("the expert MLP without rows does nothing") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool pool(2);
  const Experts experts(2, 32, 16, DType::kBF16, pool, rng);
  CpuContext context(&pool, CpuIsa::kPortable);
  CHECK(Run(experts, {}, {{}, {}}, context).empty());
}

}  // namespace
}  // namespace hadal
