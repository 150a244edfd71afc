#include "kernels/cuda/products/ops.h"
#include "tests/kernels/cuda/attention/attention_case.h"
#include "tests/kernels/cuda/device_weight.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal::testing {
namespace {

using cuda::MlaPath;
constexpr DType k8 = DType::kF8E4M3;
constexpr int kOutputs = 640;  // of the product behind attention

struct PrefillCase {
  const char* name;
  MlaPath path;
  DType act;
  DType cache;
  DType weights;
  int heads;
  int latent;
  int nope;
  int rope;
  int v;
  std::vector<std::pair<int, int>> rows;  // start_pos, num_tokens
  int piece_keys = 0;                     // 0: as released
};

struct Prefill {
  const PrefillCase& c;
  PagedSequences sequences;
  Values q;
  RandomDeviceWeight w_uk;
  RandomDeviceWeight w_uv;

  Prefill(const PrefillCase& test, std::vector<AttentionRow> rows, Rng& rng)
      : c(test),
        sequences(std::move(rows), c.latent + c.rope, c.cache, rng),
        q(RandomFloats(sequences.tokens * QStride(), rng), c.act),
        w_uk(rng, c.heads, c.nope, c.latent, c.weights, {ScaleRows(c.nope), 0}),
        w_uv(rng, c.heads, c.v, c.latent, c.weights, {ScaleRows(c.v), 0}) {}

  // Matrices of whole scale blocks keep them; the rows of others have scales of their own.
  static int ScaleRows(int n) { return n % 128 == 0 ? 128 : 1; }

  int64_t QStride() const { return int64_t{c.heads} * (c.nope + c.rope); }
  float Scale() const { return 1.5f / std::sqrt(static_cast<float>(c.nope + c.rope)); }

  MlaPrefillParams Params(void* out) const {
    MlaPrefillParams p;
    p.q = q.data();
    p.q_stride = QStride();
    p.out = out;
    p.rows = sequences.Rows(true);
    p.cache = sequences.cache->data();
    p.cache_dtype = c.cache;
    p.w_uk = &w_uk.weight;
    p.w_uv = &w_uv.weight;
    p.heads = c.heads;
    p.latent_rank = c.latent;
    p.nope_dim = c.nope;
    p.rope_dim = c.rope;
    p.v_dim = c.v;
    p.scale = Scale();
    return p;
  }

  // c w^T of every key of a row, for one head.
  std::vector<double> Project(const AttentionRow& row, const RandomDeviceWeight& w, int head,
                              int n) const {
    std::vector<double> out;
    for (int j = 0; j < row.start_pos + row.num_tokens; ++j) {
      const float* latent = sequences.Latent(row, j);
      for (int i = 0; i < n; ++i) {
        const float* matrix = w.matrix(head) + i * c.latent;
        double dot = 0;
        for (int d = 0; d < c.latent; ++d) dot += double{latent[d]} * matrix[d];
        out.push_back(dot);
      }
    }
    return out;
  }

  std::vector<double> Reference() const {
    std::vector<double> out(static_cast<size_t>(sequences.tokens) * c.heads * c.v);
    for (const AttentionRow& row : sequences.rows) {
      ParallelFor(row.num_tokens > 0 ? c.heads : 0, [&](int64_t head) {
        const int h = static_cast<int>(head);
        const auto keys = Project(row, w_uk, h, c.nope), values = Project(row, w_uv, h, c.v);
        for (int i = 0; i < row.num_tokens; ++i) {
          const int64_t at = int64_t{row.first_token + i} * c.heads + h;
          const float* query = q.host.data() + at * (c.nope + c.rope);
          std::vector<double> scores;
          for (int j = 0; j <= row.start_pos + i; ++j) {
            double dot = 0;
            for (int d = 0; d < c.nope; ++d) dot += query[d] * keys[size_t(j) * c.nope + d];
            for (int d = 0; d < c.rope; ++d) {
              dot += double{query[c.nope + d]} * sequences.Latent(row, j)[c.latent + d];
            }
            scores.push_back(dot * Scale());
          }
          const auto sum =
              SoftmaxSum(scores, c.v, [&](int j) { return values.data() + int64_t{j} * c.v; });
          std::copy(sum.begin(), sum.end(), out.begin() + at * c.v);
        }
      });
    }
    return out;
  }
};

std::vector<AttentionRow> RowsOf(const PrefillCase& c) {
  std::vector<AttentionRow> rows;
  int32_t token = 0;
  for (const auto& [start, count] : c.rows) {
    rows.push_back({token, count, start, 0});
    token += count;
  }
  return rows;
}

OpLimits LimitsOf(const PrefillCase& c, int tokens) {
  OpLimits limits;
  limits.tokens = tokens;
  limits.heads = c.heads;
  limits.latent_rank = c.latent;
  limits.nope_dim = c.nope;
  limits.rope_dim = c.rope;
  limits.v_dim = c.v;
  limits.max_context = 4096;
  return limits;
}

bool Holds(const PrefillCase& c, Rng& rng) {
  const Prefill prefill(c, RowsOf(c), rng);
  const int token = prefill.sequences.tokens;
  // With small pieces the state of the softmax needs memory that no released shape needs here.
  const int64_t state = c.piece_keys > 0 ? int64_t{token} * 16 * (c.v * 4 + 8) + 4096 : 0;
  DeviceFixture test(c.act, cuda::AttentionScratchBytes(LimitsOf(c, token), c.act) + state);
  Output out(int64_t{token} * c.heads * c.v, c.act);
  const int64_t key_bytes = int64_t{std::min(c.heads, 16)} * (c.nope + c.v) * DTypeSize(c.act);
  cuda::MlaPrefillWith(c.path, prefill.Params(out.data()), test.context,
                       c.piece_keys > 0 ? c.piece_keys * key_bytes : cuda::kPrefillPieceBytes);
  bool good = test.Finished() && out.device.GuardIntact();
  good &= Close(c.name, out.Read(), prefill.Reference(), c.v, c.act == kF ? 1e-5 : 1.2e-2);
  return good;
}

TEST_CASE("MlaPrefill, general path: any heads, dims and types, chunks, pieces, FP8 weights") {
  if (!HaveCudaDevice()) return;
  Rng rng(RandomSeed());
  const std::vector<std::pair<int, int>> rows = {{0, 1}, {0, 70}, {100, 33}, {9, 0}, {63, 2}};
  const std::vector<PrefillCase> cases = {
      {"3 heads, 12 + 6, v 10, float", MlaPath::kGeneral, kF, kF, kF, 3, 37, 12, 6, 10, rows},
      {"the same in pieces of 64", MlaPath::kGeneral, kF, kF, kF, 3, 37, 12, 6, 10, rows, 64},
      {"the same in pieces of 128", MlaPath::kGeneral, kF, kF, kF, 3, 37, 12, 6, 10, rows, 128},
      {"9 heads, 64 + 192, v 64", MlaPath::kGeneral, kF, kF, kF, 9, 576, 64, 192, 64, {{5, 20}}},
      {"bf16 cache and weights", MlaPath::kGeneral, kF, kB, kB, 2, 64, 16, 8, 24, rows},
      {"FP8 weights, float", MlaPath::kGeneral, kF, kF, k8, 3, 160, 48, 16, 40, rows},
      {"20 heads, FP8 weights, bf16", MlaPath::kGeneral, kB, kB, k8, 20, 144, 24, 8, 16, {{3, 9}}},
      {"16 heads, released dims", MlaPath::kGeneral, kB, kB, kB, 16, 512, 128, 64, 128, {{30, 20}}},
      {"nobody", MlaPath::kGeneral, kF, kF, kF, 2, 32, 8, 8, 8, {{7, 0}}},
  };
  for (const PrefillCase& c : cases) CHECK(Holds(c, rng));
  std::vector<std::pair<int, int>> many;
  for (int i = 0; i < 150; ++i) many.emplace_back(i % 7, i % 5);
  CHECK(Holds({"150 rows", MlaPath::kGeneral, kF, kF, kF, 2, 32, 8, 8, 8, many}, rng));
}

TEST_CASE("MlaPrefill, flash kernels: 128 + 64, v 128, chunks and pieces") {
  if (!HaveCudaDevice()) return;
  Rng rng(RandomSeed());
  const std::vector<std::pair<int, int>> rows = {{0, 1}, {0, 64},   {0, 65},  {128, 127},
                                                 {9, 0}, {63, 130}, {300, 3}, {1, 300}};
  for (const MlaPath path : {MlaPath::kMma, MlaPath::kWgmma, MlaPath::kAuto}) {
    if (path == MlaPath::kWgmma && !IsHopper()) continue;
    std::printf("path %d\n", static_cast<int>(path));
    const auto run = [&](const char* name, int heads, DType weights,
                         std::vector<std::pair<int, int>> of, int piece) {
      return Holds({name, path, kB, kB, weights, heads, 512, 128, 64, 128, std::move(of), piece},
                   rng);
    };
    CHECK(run("2 heads, one query", 2, kB, {{0, 1}}, 0));
    CHECK(run("2 heads, 200 queries", 2, kB, {{0, 200}}, 0));
    CHECK(run("2 heads, chunk", 2, kB, {{777, 150}}, 0));
    CHECK(run("2 heads, many rows", 2, kB, rows, 0));
    CHECK(run("2 heads, many rows, pieces of 64", 2, kB, rows, 64));
    CHECK(run("2 heads, many rows, pieces of 192", 2, kB, rows, 192));
    CHECK(run("2 heads, long", 2, kB, {{0, 1100}}, 0));
    CHECK(run("17 heads, FP8 weights", 17, k8, {{10, 40}, {0, 3}}, 0));
  }
}

struct Product {
  std::vector<float> y;
  bool rounded;  // attention left codes, not its outputs
};

// Attention and the product behind it, as one op or as two, into poisoned memory.
Product Multiplied(const Prefill& prefill, const PackedWeight& w, bool as_one,
                   DeviceFixture& test) {
  const int tokens = prefill.sequences.tokens;
  const int64_t width = int64_t{prefill.c.heads} * prefill.c.v;
  const Output between(tokens * width, prefill.c.act), y(tokens * w.n, prefill.c.act);
  const MlaPrefillParams p = prefill.Params(between.data());
  const MatMulParams product{
      .x = between.data(), .x_stride = width, .w = &w, .y = y.data(), .y_stride = w.n, .m = tokens};
  if (as_one) {
    cuda::MlaPrefillAndMatMul(p, product, test.context);
  } else {
    cuda::MlaPrefill(p, test.context);
    cuda::MatMul(product, test.context);
  }
  CHECK((test.Finished() && between.device.GuardIntact() && y.device.GuardIntact()));
  return {y.Read(), std::isnan(between.Read().front())};
}

TEST_CASE("MlaPrefillAndMatMul has the bits of attention and the product behind it") {
  if (!HaveCudaDevice()) return;
  Rng rng(RandomSeed());
  const std::vector<std::pair<int, int>> rows = {{0, 65}, {128, 127}, {9, 0}, {63, 130}, {300, 3}};
  const std::vector<PrefillCase> cases = {
      {"2 heads, 200 queries", MlaPath::kAuto, kB, kB, kB, 2, 512, 128, 64, 128, {{0, 200}}},
      {"16 heads, chunk", MlaPath::kAuto, kB, kB, kB, 16, 512, 128, 64, 128, {{777, 150}}},
      {"5 heads, many rows", MlaPath::kAuto, kB, kB, kB, 5, 512, 128, 64, 128, rows},
      {"2 heads, few", MlaPath::kAuto, kB, kB, kB, 2, 512, 128, 64, 128, {{0, 7}, {3, 2}}},
      {"general", MlaPath::kAuto, kB, kB, kB, 3, 144, 24, 8, 128, {{0, 120}}},
  };
  for (const PrefillCase& c : cases) {
    const Prefill prefill(c, RowsOf(c), rng);
    OpLimits limits = LimitsOf(c, prefill.sequences.tokens);
    limits.dim = kOutputs;
    DeviceFixture test(c.act, std::max(cuda::AttentionScratchBytes(limits, c.act),
                                       cuda::MatMulScratchBytes(limits, c.act)));
    for (const DType type : {kB, k8}) {
      const RandomWeight w({.n = kOutputs, .k = int64_t{c.heads} * c.v, .dtype = type}, rng);
      const auto packed = PackCudaWeight({{w.source()}}, test.context);
      const Product one = Multiplied(prefill, *packed, true, test);
      CHECK(Close(c.name, one.y, {one.y.begin(), one.y.end()}, kOutputs, 0));  // finite
      CHECK(one.y == Multiplied(prefill, *packed, false, test).y);
      if (c.heads == 16) CHECK(one.rounded == (type == k8 && IsHopper()));
    }
  }
}

}  // namespace
}  // namespace hadal::testing
