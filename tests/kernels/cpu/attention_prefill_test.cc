#include <cmath>
#include <limits>
#include <random>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/gemm_kernel.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/packed_weight.h"
#include "tests/kernels/cpu/bits.h"
#include "tests/kernels/cpu/emulated_tiles.h"
#include "tests/kernels/cpu/paged_cache.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::PagedCache;
using testing::RandomFloats;
using testing::RandomWeight;
using testing::SameBits;

struct PrefillShape {
  int heads = 0;
  int latent = 0;
  int nope = 0;
  int rope = 0;
  int v = 0;
  DType weights = DType::kF32;
  DType cache = DType::kF32;
};

// What an op runs on.
struct Path {
  std::string name;
  CpuIsa isa;
  const GemmKernels* gemm;
};

// Those of this machine, and AMX with emulated tiles.
std::vector<Path> Paths() {
  std::vector<Path> paths;
  for (const CpuIsa isa : SupportedCpuIsas()) {
    paths.push_back({std::string(CpuIsaName(isa)), isa, &GemmKernelsFor(isa)});
  }
  paths.push_back({"emulated tiles", CpuIsa::kPortable, &testing::kGemmEmulatedTiles});
  return paths;
}

// Operands of both products are rounded to bf16, or none is.
double Tolerance(const PrefillShape& shape, const Path& path) {
  return path.gemm->bf16_attention && shape.weights != DType::kF32 ? 4e-3 : 1e-5;
}

// A chunk of queries of one sequence: positions [start_pos, start_pos + num_tokens).
struct Chunk {
  size_t sequence = 0;
  int start_pos = 0;
  int num_tokens = 0;
};

// Sequences with queries at all their positions, and the answer in float64.
class PrefillCase {
 public:
  PrefillCase(const PrefillShape& shape, const std::vector<int>& lengths, std::mt19937_64& rng)
      : shape_(shape), lengths_(lengths),
        cache_(lengths, shape.latent + shape.rope, shape.cache, rng) {
    ThreadPool pool(1);
    std::vector<StackedSource> keys_sources, value_sources;
    for (int h = 0; h < shape.heads; ++h) {
      for (const bool keys : {true, false}) {
        const testing::WeightShape w{.n = keys ? shape.nope : shape.v, .k = shape.latent,
                              .dtype = shape.weights, .row_offset = h * 37};
        weights_.emplace_back(w, rng);
        (keys ? keys_sources : value_sources).push_back({weights_.back().source()});
      }
    }
    w_uk_ = PackCpuWeight(keys_sources, pool);
    w_uv_ = PackCpuWeight(value_sources, pool);
    for (const int length : lengths) queries_.push_back(RandomFloats(length * q_width(), rng));
    scale_ = 1 / static_cast<float>(shape.latent);
    if (shape.weights == DType::kF8E4M3) scale_ /= 128;  // random codes are large
  }

  int64_t q_width() const { return int64_t{shape_.heads} * (shape_.nope + shape_.rope); }
  int64_t tile_floats() const {
    return ExpandedTileFloats(shape_.heads, shape_.nope, shape_.rope, shape_.v);
  }
  int64_t out_width() const { return int64_t{shape_.heads} * shape_.v; }

  // [lengths[sequence], heads, v]
  std::vector<double> Expected(size_t sequence) const {
    const int length = lengths_[sequence];
    std::vector<double> out(static_cast<size_t>(length * out_width()));
    for (int h = 0; h < shape_.heads; ++h) {
      const auto keys = Project(sequence, weights_[static_cast<size_t>(2 * h)], shape_.nope);
      const auto values = Project(sequence, weights_[static_cast<size_t>(2 * h + 1)], shape_.v);
      for (int t = 0; t < length; ++t) {
        const float* q =
            queries_[sequence].data() + t * q_width() + h * (shape_.nope + shape_.rope);
        std::vector<double> scores;
        for (int j = 0; j <= t; ++j) scores.push_back(Score(sequence, q, keys, j) * scale_);
        const auto o = testing::SoftmaxSum(scores, values, static_cast<size_t>(shape_.v));
        std::copy(o.begin(), o.end(), out.begin() + t * out_width() + h * shape_.v);
      }
    }
    return out;
  }

  // The outputs of all chunks, run as the rows of one call.
  std::vector<float> Run(const std::vector<Chunk>& chunks, int threads, const Path& path,
                         const ExpandedKeys& expanded = {}) const {
    ThreadPool pool(threads);
    CpuContext context(&pool, path.isa);
    context.gemm = path.gemm;
    std::vector<float> q;
    std::vector<AttentionRow> rows;
    int32_t token = 0;
    for (const Chunk& c : chunks) {
      rows.push_back({token, c.num_tokens, c.start_pos, cache_.first_block(c.sequence)});
      const auto part = testing::Rows(queries_[c.sequence], q_width(), c.start_pos, c.num_tokens);
      q.insert(q.end(), part.begin(), part.end());
      token += c.num_tokens;
    }
    std::vector<float> out(static_cast<size_t>(token * out_width()), -7.0f);
    MlaPrefill({.q = q.data(), .q_stride = q_width(), .out = out.data(),
                .rows = cache_.Rows(rows), .cache = cache_.data(),
                .cache_dtype = shape_.cache, .w_uk = w_uk_.get(), .w_uv = w_uv_.get(),
                .heads = shape_.heads, .latent_rank = shape_.latent, .nope_dim = shape_.nope,
                .rope_dim = shape_.rope, .v_dim = shape_.v, .scale = scale_, .expanded = expanded},
               context);
    return out;
  }

 private:
  std::vector<double> Project(size_t sequence, const RandomWeight& w, int n) const {
    std::vector<double> out;
    for (int j = 0; j < lengths_[sequence]; ++j) {
      const float* row = cache_.Row(sequence, j);
      for (int i = 0; i < n; ++i) {
        double sum = 0;
        for (int k = 0; k < shape_.latent; ++k) sum += w.At(i, k) * row[k];
        out.push_back(sum);
      }
    }
    return out;
  }

  double Score(size_t sequence, const float* q, const std::vector<double>& keys, int j) const {
    double score = 0;
    for (int i = 0; i < shape_.nope; ++i) {
      score += q[i] * keys[static_cast<size_t>(j * shape_.nope + i)];
    }
    const float* k_pe = cache_.Row(sequence, j) + shape_.latent;
    for (int i = 0; i < shape_.rope; ++i)
      score += static_cast<double>(q[shape_.nope + i]) * k_pe[i];
    return score;
  }

  PrefillShape shape_;
  std::vector<int> lengths_;
  PagedCache cache_;
  std::vector<RandomWeight> weights_;  // w_uk, w_uv of head 0, of head 1, ...
  std::unique_ptr<PackedWeight> w_uk_, w_uv_;
  std::vector<std::vector<float>> queries_;  // [length, heads, nope + rope]
  float scale_ = 1;
};

TEST_CASE("prefill attention equals float64: odd widths, several sequences, all weight types") {
  std::mt19937_64 rng(testing::RandomSeed());
  const std::vector<int> lengths = {1, 64, 150, 67};
  // With weights other than F32 some kernels round the latent row to bf16: a bf16 cache is exact.
  for (const PrefillShape& shape :
       {PrefillShape{3, 40, 13, 6, 21}, {3, 40, 13, 6, 21, DType::kBF16, DType::kBF16},
        {2, 192, 128, 64, 128, DType::kF32, DType::kBF16}, {1, 7, 1, 2, 1},
        {2, 150, 33, 10, 48, DType::kF8E4M3, DType::kBF16}}) {
    const PrefillCase c(shape, lengths, rng);
    std::vector<double> expected;
    for (size_t s = 0; s < lengths.size(); ++s) {
      const auto part = c.Expected(s);
      expected.insert(expected.end(), part.begin(), part.end());
    }
    for (const Path& path : Paths()) {
      CAPTURE(path.name, shape.heads, shape.latent, shape.nope, shape.v,
              DTypeName(shape.weights), DTypeName(shape.cache));
      const auto out = c.Run({{0, 0, 1}, {1, 0, 64}, {2, 0, 150}, {3, 0, 67}}, 2, path);
      CHECK(testing::RelativeError(out, expected) < Tolerance(shape, path));
    }
  }
}

TEST_CASE("chunks of a prompt have the bits of the whole, in any company, on any thread count") {
  std::mt19937_64 rng(testing::RandomSeed());
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const std::vector<int> lengths = {300, 90};
    const PrefillCase c({3, 56, 24, 10, 35, dtype, DType::kBF16}, lengths, rng);
    for (const Path& path : Paths()) {
      CAPTURE(path.name, DTypeName(dtype));
      const std::vector<float> whole = c.Run({{0, 0, 300}}, 1, path);
      CHECK(SameBits(c.Run({{0, 0, 300}}, 2, path), whole));
      CHECK(SameBits(c.Run({{0, 0, 300}}, 3, path), whole));
      const auto both = c.Run({{1, 0, 90}, {0, 0, 300}}, 2, path);
      CHECK(SameBits(testing::Rows(both, c.out_width(), 90, 300), whole));
      for (int start = 0; start < 300;) {
        const int tokens = std::min<int>(1 + static_cast<int>(rng() % 130), 300 - start);
        CAPTURE(start, tokens);
        const int threads = 1 + static_cast<int>(rng() % 3);
        const auto chunk = c.Run({{0, start, tokens}}, threads, path);
        CHECK(SameBits(chunk, testing::Rows(whole, c.out_width(), start, tokens)));
        start += tokens;
      }
    }
  }
}

TEST_CASE("keys kept from chunk to chunk change no bit") {
  std::mt19937_64 rng(testing::RandomSeed());
  constexpr int kTiles = 3, kHeads = 5;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const std::vector<int> lengths = {300, 90};
    const PrefillCase c({kHeads, 56, 24, 10, 35, dtype, DType::kBF16}, lengths, rng);
    for (const Path& path : Paths()) {
      CAPTURE(path.name, DTypeName(dtype));
      const std::vector<float> whole = c.Run({{0, 0, 300}}, 1, path);
      std::vector<float> kept(static_cast<size_t>(kTiles * c.tile_floats()),
                              std::numeric_limits<float>::quiet_NaN());
      ExpandedKeys expanded{.data = kept.data(), .tiles = kTiles};
      for (int start = 0; start < 300;) {
        const int tokens = std::min<int>(1 + static_cast<int>(rng() % 170), 300 - start);
        CAPTURE(start, tokens, expanded.filled);
        expanded.row = static_cast<int>(rng() % 2);
        std::vector<Chunk> chunks = {{0, start, tokens}};
        chunks.insert(expanded.row == 0 ? chunks.end() : chunks.begin(), Chunk{1, 0, 90});
        const auto out = c.Run(chunks, 1 + static_cast<int>(rng() % 3), path, expanded);
        const auto chunk =
            testing::Rows(out, c.out_width(), expanded.row == 0 ? 0 : 90, tokens);
        CHECK(SameBits(chunk, testing::Rows(whole, c.out_width(), start, tokens)));
        start += tokens;
        expanded.filled = std::min(kTiles, start / kBlockSize);
      }
      // What was kept is what was used: other values there show.
      std::fill(kept.begin(), kept.end(), 0.0f);
      CHECK(!SameBits(c.Run({{0, 290, 10}}, 1, path, {.row = 0, .data = kept.data(),
                                                      .tiles = kTiles, .filled = kTiles}),
                      testing::Rows(whole, c.out_width(), 290, 10)));
    }
  }
}

TEST_CASE("prefill attention of a late chunk equals float64") {
  std::mt19937_64 rng(testing::RandomSeed());
  const PrefillCase c({2, 30, 11, 4, 9}, {1100}, rng);
  const std::vector<double> expected = c.Expected(0);
  for (const Path& path : Paths()) {
    CAPTURE(path.name);
    const int start = 1001, tokens = 99;
    const std::vector<double> part(expected.begin() + start * c.out_width(), expected.end());
    CHECK(testing::RelativeError(c.Run({{0, start, tokens}}, 2, path), part) < 1e-5);
  }
}

}  // namespace
}  // namespace hadal
