#include "kernels/cuda/weights/packed_weight.h"
#include "tests/kernels/cuda/attention/attention_case.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal::testing {
namespace {

struct InputCase {
  const char* name;
  DType act;
  DType cache;
  int heads;
  int nope;
  int latent;
  int rope;
  int tokens;
  int pad = 3;  // elements behind a latent row: of a multiple of 8 vectors fit
  // Tokens of the absorbed products that go with it, by weights of this type.
  int absorbed = 0;
  DType weight = kB;
};

struct Input {
  static constexpr int kMaxPosition = 300;
  static constexpr int kBlocks = 9;
  const InputCase& c;
  Values q;     // [tokens, heads, nope + rope]
  Values kv_a;  // [tokens, latent + rope + pad]
  Values weight;
  Values cos_sin;
  std::vector<int32_t> positions;
  std::vector<int64_t> cache_rows;

  Input(const InputCase& test, Rng& rng)
      : c(test),
        q(RandomFloats(int64_t{c.tokens} * c.heads * (c.nope + c.rope), rng), c.act),
        kv_a(RandomFloats(int64_t{c.tokens} * KvStride(), rng, 3), c.act),
        weight(RandomFloats(c.latent, rng), kF),
        cos_sin(Rotations(), kF) {
    std::vector<int64_t> free;
    for (int64_t i = 0; i < kBlocks * kBlockSize; ++i) free.push_back(i);
    std::shuffle(free.begin(), free.end(), rng);
    for (int t = 0; t < c.tokens; ++t) {
      positions.push_back(t % 5 == 3 ? -1 : static_cast<int32_t>(rng() % kMaxPosition));
      cache_rows.push_back(positions.back() < 0 ? int64_t{1} << 40 : free[static_cast<size_t>(t)]);
    }
  }

  int64_t KvStride() const { return c.latent + c.rope + c.pad; }
  std::vector<float> Rotations() const {
    std::vector<float> values;
    for (int p = 0; p < kMaxPosition; ++p) {
      for (int i = 0; i < c.rope / 2; ++i) {
        const double angle = p * std::pow(10000.0, -2.0 * i / c.rope);
        values.push_back(static_cast<float>(std::cos(angle)));
        values.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    return values;
  }

  static void Rotate(std::vector<double>& x, size_t at, const float* cos_sin, int dim) {
    for (int i = 0; i < dim; i += 2) {
      const double a = x[at + i], b = x[at + i + 1];
      x[at + i] = a * cos_sin[i] - b * cos_sin[i + 1];
      x[at + i + 1] = a * cos_sin[i + 1] + b * cos_sin[i];
    }
  }

  std::vector<double> Queries() const {
    std::vector<double> out(q.host.begin(), q.host.end());
    for (int i = 0; i < c.tokens * c.heads; ++i) {
      const int position = positions[static_cast<size_t>(i / c.heads)];
      if (position < 0) continue;
      Rotate(out, static_cast<size_t>(i * (c.nope + c.rope) + c.nope),
             cos_sin.host.data() + position * c.rope, c.rope);
    }
    return out;
  }

  std::vector<double> Latent(int t) const {
    const float* in = kv_a.host.data() + t * KvStride();
    std::vector<double> out(in, in + c.latent + c.rope);
    double square = 0;
    for (int i = 0; i < c.latent; ++i) square += out[static_cast<size_t>(i)] * in[i];
    for (int i = 0; i < c.latent; ++i) {
      out[static_cast<size_t>(i)] *=
          weight.host[static_cast<size_t>(i)] / std::sqrt(square / c.latent + 1e-5);
    }
    Rotate(out, static_cast<size_t>(c.latent),
           cos_sin.host.data() + positions[static_cast<size_t>(t)] * c.rope, c.rope);
    return out;
  }
};

// The absorbed products [absorbed, heads, latent] of the queries' first parts.
struct Absorbed {
  const InputCase& c;
  std::vector<RandomWeight> weights;
  std::unique_ptr<PackedWeight> packed;
  Output out;

  Absorbed(const InputCase& test, CudaContext& context, Rng& rng)
      : c(test), out(int64_t{test.absorbed} * test.heads * test.latent, test.act) {
    std::vector<StackedSource> sources;
    for (int h = 0; h < c.heads; ++h) {
      weights.emplace_back(WeightShape{.n = c.latent, .k = c.nope, .dtype = c.weight}, rng);
    }
    for (const RandomWeight& w : weights) sources.push_back({w.source()});
    packed = PackCudaWeight(sources, context);
  }

  HeadMatMulParams Params(const Input& input) const {
    HeadMatMulParams p;
    p.x = input.q.data();
    p.x_stride = int64_t{c.heads} * (c.nope + c.rope);
    p.x_head_stride = c.nope + c.rope;
    p.w = packed.get();
    p.y = out.data();
    p.y_stride = int64_t{c.heads} * c.latent;
    p.y_head_stride = c.latent;
    p.m = c.absorbed;
    p.heads = c.heads;
    return p;
  }

  std::vector<double> Reference(const std::vector<float>& q) const {
    std::vector<double> y;
    for (int i = 0; i < c.absorbed * c.heads; ++i) {
      const float* x = q.data() + i * (c.nope + c.rope);
      for (int n = 0; n < c.latent; ++n) {
        double sum = 0;
        for (int k = 0; k < c.nope; ++k)
          sum += weights[static_cast<size_t>(i % c.heads)].At(n, k) * x[k];
        y.push_back(sum);
      }
    }
    return y;
  }

  bool Holds(const Input& input) const {
    return out.device.GuardIntact() && Close(std::string(c.name) + ", absorbed", out.Read(),
                                             Reference(input.q.host), c.latent, 4e-3);
  }
};

bool Holds(const InputCase& c, Rng& rng) {
  const Input input(c, rng);
  const int64_t dim = c.latent + c.rope;
  Output cache(Input::kBlocks * kBlockSize * dim, c.cache);
  const GuardedBuffer positions(input.positions), cache_rows(input.cache_rows);
  DeviceFixture test(c.act, 1024);
  MlaInputParams p;
  p.q_rope = static_cast<char*>(input.q.data()) + c.nope * DTypeSize(c.act);
  p.q_rope_stride = int64_t{c.heads} * (c.nope + c.rope);
  p.q_rope_head_stride = c.nope + c.rope;
  p.heads = c.heads;
  p.kv_a = input.kv_a.data();
  p.kv_a_stride = input.KvStride();
  p.weight = static_cast<const float*>(input.weight.data());
  p.eps = 1e-5f;
  p.latent_rank = c.latent;
  p.rope_dim = c.rope;
  p.positions = positions.as<int32_t>();
  p.cos_sin = static_cast<const float*>(input.cos_sin.data());
  p.cache_rows = cache_rows.as<int64_t>();
  p.cache = cache.data();
  p.cache_dtype = c.cache;
  p.tokens = c.tokens;
  const Absorbed absorbed(c, test.context, rng);
  if (c.absorbed > 0) {
    cuda::MlaInputAndAbsorb(p, absorbed.Params(input), test.context);
  } else {
    cuda::MlaInput(p, test.context);
  }
  bool good = test.Finished() && (c.absorbed == 0 || absorbed.Holds(input)) &&
              cache.device.GuardIntact() && input.q.device.GuardIntact();

  good &= Close(std::string(c.name) + ", queries", input.q.Read(), input.Queries(), c.nope + c.rope,
                c.act == DType::kF32 ? 1e-6 : 4e-3);

  const std::vector<float> written = cache.Read();
  std::vector<double> expected(written.size(), 0.0);
  std::vector<float> seen(written.size(), 0.0f);
  std::vector<bool> used(static_cast<size_t>(Input::kBlocks * kBlockSize));
  for (int t = 0; t < c.tokens; ++t) {
    if (input.positions[static_cast<size_t>(t)] < 0) continue;
    const int64_t row = input.cache_rows[static_cast<size_t>(t)];
    used[static_cast<size_t>(row)] = true;
    const std::vector<double> latent = input.Latent(t);
    std::copy(latent.begin(), latent.end(), expected.begin() + row * dim);
    std::copy_n(written.begin() + row * dim, dim, seen.begin() + row * dim);
  }
  good &= Close(std::string(c.name) + ", cache", seen, expected, dim,
                c.cache == DType::kF32 ? 1e-6 : 4e-3);
  for (size_t i = 0; i < written.size(); ++i) {
    if (!used[i / static_cast<size_t>(dim)] && !std::isnan(written[i])) {
      std::printf("  FAIL %s: cache row %zu was written\n", c.name, i / static_cast<size_t>(dim));
      return false;
    }
  }
  return good;
}

TEST_CASE("MlaInput turns the queries and writes normalised, turned latent rows") {
  if (!HaveCudaDevice()) return;
  Rng rng(RandomSeed());
  const std::vector<InputCase> cases = {
      {"3 heads 5 + 6, latent 37, float", kF, kF, 3, 5, 37, 6, 11},
      {"9 heads 64 + 192, latent 576, float with bf16 cache", kF, kB, 9, 64, 576, 192, 7},
      {"16 heads 128 + 64, latent 512, bf16", kB, kB, 16, 128, 512, 64, 130},
      {"128 heads 128 + 64, latent 512, bf16", kB, kB, 128, 128, 512, 64, 9},
      {"3 heads 8 + 16, latent 264, bf16", kB, kB, 3, 8, 264, 16, 19},
      {"2 heads 7 + 2, latent 33, bf16 with float cache", kB, kF, 2, 7, 33, 2, 1},
      {"16 heads 128 + 64, latent 512, bf16, vectors", kB, kB, 16, 128, 512, 64, 130, 8},
      {"128 heads 128 + 64, latent 512, bf16, vectors", kB, kB, 128, 128, 512, 64, 9, 0},
      {"3 heads 8 + 16, latent 264, bf16, vectors", kB, kB, 3, 8, 264, 16, 19, 16},
  };
  for (const InputCase& c : cases) CHECK(Holds(c, rng));
}

TEST_CASE("MlaInputAndAbsorb makes the absorbed products as well", "[held]") {
  if (!HaveCudaDevice()) return;
  Rng rng(RandomSeed());
  for (const DType weight : {kB, DType::kF8E4M3}) {
    const std::vector<InputCase> cases = {
        {"16 heads, 1 token", kB, kB, 16, 128, 512, 64, 1, 0, 1, weight},
        {"16 heads, 8 tokens", kB, kB, 16, 128, 512, 64, 8, 8, 8, weight},
        {"16 heads, 5 of 7 tokens", kB, kB, 16, 128, 512, 64, 7, 8, 5, weight},
        {"128 heads, 3 tokens", kB, kB, 128, 128, 512, 64, 3, 8, 3, weight},
        {"3 heads 136 + 16, latent 264, 4 tokens", kB, kB, 3, 136, 264, 16, 4, 8, 4, weight},
        {"in turn: 9 tokens", kB, kB, 16, 128, 512, 64, 9, 8, 9, weight},
        {"in turn: 2 of 40 tokens", kB, kB, 16, 128, 512, 64, 40, 8, 2, weight},
        {"in turn: odd rows", kB, kB, 16, 128, 512, 64, 4, 3, 4, weight},
    };
    for (const InputCase& c : cases) CHECK(Holds(c, rng));
  }
}

}  // namespace
}  // namespace hadal::testing
