#include "tests/kernels/cuda/attention/attention_case.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal::testing {
namespace {

using cuda::MlaPath;

struct DecodeCase {
  const char* name;
  MlaPath path;
  DType act;
  DType cache;
  int heads;
  int latent;
  int rope;
  std::vector<std::pair<int, int>> rows;  // start_pos, num_tokens
  int64_t context_bound = 0;              // max_context at least so
  int row_bound = 0;                      // max_row_tokens at least so
};

std::vector<AttentionRow> MakeRows(const std::vector<std::pair<int, int>>& rows) {
  std::vector<AttentionRow> result;
  int32_t token = 0;
  for (const auto& [start, count] : rows) {
    result.push_back({token, count, start, 0});
    token += count;
  }
  return result;
}

// Of up to `context` tokens, every seventh nobody's.
std::vector<std::pair<int, int>> RandomRows(int count, int context, int max_tokens, Rng& rng) {
  std::vector<std::pair<int, int>> rows;
  for (int i = 0; i < count; ++i) {
    const int tokens = i % 7 == 6 ? 0 : 1 + static_cast<int>(rng() % max_tokens);
    rows.emplace_back(static_cast<int>(rng() % (context - max_tokens + 1)), tokens);
  }
  return rows;
}

struct Decode {
  const DecodeCase& c;
  PagedSequences sequences;
  Values q_latent;
  Values q;  // [tokens, heads, 16 + rope]: the rotary part lies inside
  static constexpr int kLead = 16;

  Decode(const DecodeCase& test, Rng& rng)
      : c(test),
        sequences(MakeRows(test.rows), test.latent + test.rope, test.cache, rng),
        q_latent(RandomFloats(int64_t{sequences.tokens} * c.heads * c.latent, rng), c.act),
        q(RandomFloats(int64_t{sequences.tokens} * c.heads * (kLead + c.rope), rng), c.act) {}

  float Scale() const { return 1.5f / std::sqrt(static_cast<float>(c.latent + c.rope)); }

  MlaDecodeParams Params(void* out) const {
    MlaDecodeParams p;
    p.q_latent = q_latent.data();
    p.q_rope = static_cast<char*>(q.data()) + kLead * DTypeSize(c.act);
    p.q_rope_stride = int64_t{c.heads} * (kLead + c.rope);
    p.q_rope_head_stride = kLead + c.rope;
    p.out = out;
    p.rows = sequences.Rows(false);
    p.rows.max_context = std::max(p.rows.max_context, c.context_bound);
    p.rows.max_row_tokens = std::max(p.rows.max_row_tokens, c.row_bound);
    p.cache = sequences.cache->data();
    p.cache_dtype = c.cache;
    p.heads = c.heads;
    p.latent_rank = c.latent;
    p.rope_dim = c.rope;
    p.scale = Scale();
    return p;
  }

  std::vector<double> Reference() const {
    std::vector<double> out(static_cast<size_t>(sequences.tokens) * c.heads * c.latent);
    for (const AttentionRow& row : sequences.rows) {
      ParallelFor(row.num_tokens * c.heads, [&](int64_t i) {
        const int64_t at = int64_t{row.first_token} * c.heads + i;
        const float* ql = q_latent.host.data() + at * c.latent;
        const float* qr = q.host.data() + at * (kLead + c.rope) + kLead;
        std::vector<double> scores;
        for (int j = 0; j <= row.start_pos + i / c.heads; ++j) {
          const float* key = sequences.Latent(row, j);
          double dot = 0;
          for (int d = 0; d < c.latent; ++d) dot += double{ql[d]} * key[d];
          for (int d = 0; d < c.rope; ++d) dot += double{qr[d]} * key[c.latent + d];
          scores.push_back(dot * Scale());
        }
        const auto sum =
            SoftmaxSum(scores, c.latent, [&](int j) { return sequences.Latent(row, j); });
        std::copy(sum.begin(), sum.end(), out.begin() + at * c.latent);
      });
    }
    return out;
  }
};

OpLimits Limits(const DecodeCase& c) {
  OpLimits limits;
  limits.tokens = 64;
  limits.heads = c.heads;
  limits.latent_rank = c.latent;
  limits.rope_dim = c.rope;
  limits.nope_dim = limits.v_dim = 16;
  limits.max_context = 4096;
  return limits;
}

// No sum depends on the order in which blocks run.
bool Same(const char* name, const std::vector<float>& a, const std::vector<float>& b) {
  if (a == b) return true;
  std::printf("%s: two runs differ\n", name);
  return false;
}

// Twice: eagerly, and replayed from a graph; into poisoned memory both times.
bool Holds(const DecodeCase& c, Rng& rng) {
  const Decode decode(c, rng);
  const std::vector<double> reference = decode.Reference();
  DeviceFixture test(c.act, cuda::AttentionScratchBytes(Limits(c), c.act));
  const int64_t count = int64_t{decode.sequences.tokens} * c.heads * c.latent;
  const double tolerance = c.act == DType::kF32 ? 1e-5 : 8e-3;
  bool good = true;
  Output eager(count, c.act), replayed(count, c.act);
  cuda::MlaDecodeWith(c.path, decode.Params(eager.data()), test.context);
  good &= test.Finished() && eager.device.GuardIntact();
  good &= Close(c.name, eager.Read(), reference, c.latent, tolerance);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  HADAL_CUDA(cudaStreamBeginCapture(test.context.stream, cudaStreamCaptureModeThreadLocal));
  cuda::MlaDecodeWith(c.path, decode.Params(replayed.data()), test.context);
  HADAL_CUDA(cudaStreamEndCapture(test.context.stream, &graph));
  HADAL_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  for (int i = 0; i < 3; ++i) HADAL_CUDA(cudaGraphLaunch(exec, test.context.stream));
  good &= test.Finished() && replayed.device.GuardIntact();
  good &= Close("   (replayed)", replayed.Read(), reference, c.latent, tolerance);
  good &= Same(c.name, eager.Read(), replayed.Read());
  HADAL_CUDA(cudaGraphExecDestroy(exec));
  HADAL_CUDA(cudaGraphDestroy(graph));
  return good;
}

TEST_CASE("MlaDecode, general path: any heads, dims and types, padded rows, several queries") {
  if (!HaveCudaDevice()) return;
  Rng rng(RandomSeed());
  const std::vector<std::pair<int, int>> rows = {{0, 1}, {63, 1},  {64, 2},
                                                 {7, 0}, {200, 3}, {511, 1}};
  const std::vector<DecodeCase> cases = {
      {"3 heads, 32 + 8, float", MlaPath::kGeneral, kF, kF, 3, 32, 8, rows, 0, 0},
      {"3 heads, 36 + 6, float with bf16 cache", MlaPath::kGeneral, kF, kB, 3, 36, 6, rows, 900, 5},
      {"9 heads, 576 + 192, float", MlaPath::kGeneral, kF, kF, 9, 576, 192, rows, 0, 0},
      {"16 heads, 512 + 64, bf16", MlaPath::kGeneral, kB, kB, 16, 512, 64, rows, 0, 0},
      {"5 heads, 66 + 10, bf16 with float cache", MlaPath::kGeneral, kB, kF, 5, 66, 10, rows, 0, 0},
      {"1 head, one long row", MlaPath::kGeneral, kF, kF, 1, 64, 16, {{1999, 1}}, 4096, 0},
      {"nobody's rows only", MlaPath::kGeneral, kF, kF, 2, 32, 8, {{9, 0}, {70, 0}}, 128, 1},
      {"many queries in a row", MlaPath::kGeneral, kB, kB, 2, 64, 16, {{10, 50}}, 0, 0},
  };
  for (const DecodeCase& c : cases) CHECK(Holds(c, rng));
}

TEST_CASE("MlaDecode, tensor cores: 512 + 64, heads in pieces of 16, any split of the keys") {
  if (!HaveCudaDevice() || !IsHopper()) return;
  Rng rng(RandomSeed());
  std::vector<std::pair<int, int>> many;
  for (int i = 0; i < 300; ++i) many.emplace_back(static_cast<int>(rng() % 300), i % 13 ? 1 : 0);
  const auto whole = RandomRows(264, 512, 1, rng), wide = RandomRows(60, 512, 1, rng);
  const std::vector<std::pair<int, int>> mixed = {{0, 1},   {5, 0},   {63, 1},  {64, 2}, {62, 4},
                                                  {200, 3}, {511, 1}, {126, 2}, {0, 4}};
  const std::vector<DecodeCase> cases = {
      {"16 heads, one key", MlaPath::kMma, kB, kB, 16, 512, 64, {{0, 1}}, 0, 0},
      {"16 heads, one tile", MlaPath::kMma, kB, kB, 16, 512, 64, {{63, 1}}, 0, 0},
      {"16 heads, batch 1 x 512", MlaPath::kMma, kB, kB, 16, 512, 64, {{511, 1}}, 0, 0},
      {"16 heads, batch 1, bound 4096", MlaPath::kMma, kB, kB, 16, 512, 64, {{1234, 1}}, 4096, 0},
      {"16 heads, 3 rows", MlaPath::kMma, kB, kB, 16, 512, 64, {{900, 1}, {0, 1}, {3000, 1}}, 0, 0},
      {"16 heads, mixed rows", MlaPath::kMma, kB, kB, 16, 512, 64, mixed, 700, 4},
      {"16 heads, 300 rows", MlaPath::kMma, kB, kB, 16, 512, 64, many, 512, 0},
      {"8 heads, mixed rows", MlaPath::kMma, kB, kB, 8, 512, 64, mixed, 0, 0},
      {"4 heads, mixed rows", MlaPath::kMma, kB, kB, 4, 512, 64, mixed, 0, 0},
      {"2 heads, mixed rows", MlaPath::kMma, kB, kB, 2, 512, 64, mixed, 0, 0},
      {"5 heads, mixed rows", MlaPath::kMma, kB, kB, 5, 512, 64, mixed, 0, 0},
      {"32 heads, mixed rows", MlaPath::kMma, kB, kB, 32, 512, 64, mixed, 0, 0},
      {"16 heads, 264 rows, none is cut", MlaPath::kMma, kB, kB, 16, 512, 64, whole, 512, 0},
      {"nobody's rows only", MlaPath::kMma, kB, kB, 16, 512, 64, {{9, 0}, {70, 0}}, 128, 1},
      {"w 16 heads, one key", MlaPath::kWgmma, kB, kB, 16, 512, 64, {{0, 1}}, 0, 0},
      {"w 64 heads, one tile", MlaPath::kWgmma, kB, kB, 64, 512, 64, {{63, 1}}, 0, 0},
      {"w 64 heads, two tiles", MlaPath::kWgmma, kB, kB, 64, 512, 64, {{100, 1}}, 0, 0},
      {"w 128 heads, 3 rows",
       MlaPath::kWgmma,
       kB,
       kB,
       128,
       512,
       64,
       {{9, 1}, {0, 1}, {900, 1}},
       0,
       0},
      {"w 64 heads, one long row", MlaPath::kWgmma, kB, kB, 64, 512, 64, {{9000, 1}}, 0, 0},
      {"w 16 heads, mixed rows", MlaPath::kWgmma, kB, kB, 16, 512, 64, mixed, 700, 4},
      {"w 16 heads, 300 rows", MlaPath::kWgmma, kB, kB, 16, 512, 64, many, 512, 0},
      {"w 32 heads, mixed rows", MlaPath::kWgmma, kB, kB, 32, 512, 64, mixed, 0, 0},
      {"w 100 heads, mixed rows", MlaPath::kWgmma, kB, kB, 100, 512, 64, mixed, 0, 0},
      {"w 128 heads, 60 rows, none is cut", MlaPath::kWgmma, kB, kB, 128, 512, 64, wide, 512, 0},
      {"w nobody's rows only", MlaPath::kWgmma, kB, kB, 128, 512, 64, {{9, 0}, {70, 0}}, 128, 1},
      {"the path of choice, 30 queries", MlaPath::kAuto, kB, kB, 16, 512, 64, {{70, 30}}, 0, 0},
      {"the path of choice", MlaPath::kAuto, kB, kB, 16, 512, 64, mixed, 0, 0},
  };
  for (const DecodeCase& c : cases) CHECK(Holds(c, rng));
}

TEST_CASE("MlaDecode, clusters: 512 + 64, an item's keys in 1 to 16 parts") {
  if (!HaveCudaDevice() || !IsHopper()) return;
  Rng rng(RandomSeed());
  const std::vector<std::pair<int, int>> mixed = {{0, 1},   {5, 0},   {63, 1},  {64, 2}, {62, 4},
                                                  {200, 3}, {511, 1}, {126, 2}, {0, 4}};
  constexpr MlaPath kPath = MlaPath::kCluster;
  std::vector<DecodeCase> cases = {
      {"c one key", kPath, kB, kB, 16, 512, 64, {{0, 1}}, 0, 0},
      {"c one tile", kPath, kB, kB, 16, 512, 64, {{63, 1}}, 0, 0},
      {"c one tile of a bound of 16", kPath, kB, kB, 16, 512, 64, {{40, 1}}, 1024, 0},
      {"c a tile each", kPath, kB, kB, 16, 512, 64, {{511, 1}}, 0, 0},
      {"c a tile and a key", kPath, kB, kB, 16, 512, 64, {{512, 1}}, 0, 0},
      {"c 16 parts", kPath, kB, kB, 16, 512, 64, {{1000, 1}}, 0, 0},
      {"c long parts", kPath, kB, kB, 16, 512, 64, {{9000, 1}, {77, 1}}, 0, 0},
      {"c very different rows", kPath, kB, kB, 16, 512, 64, {{900, 1}, {0, 1}, {3000, 1}}, 0, 0},
      {"c mixed rows, wide bounds", kPath, kB, kB, 16, 512, 64, mixed, 700, 4},
      {"c nobody's rows only", kPath, kB, kB, 16, 512, 64, {{9, 0}, {70, 0}}, 512, 1},
      {"the path of choice, 128 heads", MlaPath::kAuto, kB, kB, 128, 512, 64, {{511, 1}}, 0, 0},
      {"the path of choice, 3 x 128 heads",
       MlaPath::kAuto,
       kB,
       kB,
       128,
       512,
       64,
       {{511, 1}, {9, 0}, {300, 1}},
       0,
       0},
  };
  for (const int heads : {1, 2, 5, 8, 32, 100, 128}) {
    cases.push_back({"c mixed rows, heads", kPath, kB, kB, heads, 512, 64, mixed, 0, 0});
  }
  for (const int rows : {2, 7, 13, 20, 50, 100, 140}) {
    const int context = 500 + static_cast<int>(rng() % 700);
    cases.push_back(
        {"c many rows", kPath, kB, kB, 16, 512, 64, RandomRows(rows, context, 1, rng), context, 0});
    cases.push_back({"c many rows of several queries", kPath, kB, kB, 8, 512, 64,
                     RandomRows(rows, 300, 2, rng), 300, 0});
  }
  for (const DecodeCase& c : cases) CHECK(Holds(c, rng));
}

}  // namespace
}  // namespace hadal::testing
