// hadal-kernel-bench: what the CPU kernels reach of this machine's ceilings.

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <vector>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/packed_weight.h"
#include "kernels/cpu/probes.h"

namespace hadal {
namespace {

struct Ceilings {
  double read_gbs = 0;
  double bf16_gflops = 0;
  double f32_gflops = 0;
};

struct Options {
  int threads = 2;
  std::string isa;
  double seconds = 0.2;  // per case
};

// The best time of repeated calls.
double BestSeconds(double budget, const auto& fn) {
  using Clock = std::chrono::steady_clock;
  fn();
  double best = 1e9;
  const auto begin = Clock::now();
  do {
    const auto start = Clock::now();
    fn();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  } while (std::chrono::duration<double>(Clock::now() - begin).count() < budget);
  return best;
}

void Report(const std::string& what, double seconds, double bytes, double flops,
            const Ceilings& ceilings, bool f32) {
  const double gbs = bytes / seconds * 1e-9, gflops = flops / seconds * 1e-9;
  fmt::print("{:<46} {:>10.1f} us {:>7.2f} GB/s ({:>3.0f} %) {:>8.1f} GFLOP/s ({:>3.0f} %)\n", what,
             seconds * 1e6, gbs, 100 * gbs / ceilings.read_gbs, gflops,
             100 * gflops / (f32 ? ceilings.f32_gflops : ceilings.bf16_gflops));
  std::fflush(stdout);
}

// Random bits that make ordinary numbers in every dtype.
class Weights {
 public:
  Weights(int64_t n, int64_t k, DType dtype, ThreadPool& pool) {
    data_.resize(static_cast<size_t>(n * k * DTypeSize(dtype)));
    std::minstd_rand rng(1);
    if (dtype == DType::kF8E4M3) {
      for (uint8_t& b : data_) b = static_cast<uint8_t>((rng() >> 8) & 0xb7);
    } else {
      const int64_t per = DTypeSize(dtype) / 2;
      auto* halves = reinterpret_cast<uint16_t*>(data_.data());
      for (int64_t i = 0; i < n * k; ++i) {
        halves[i * per + per - 1] = static_cast<uint16_t>(((rng() >> 8) & 0x83ff) | 0x3c00);
      }
    }
    scales_.assign(static_cast<size_t>((n / 128 + 1) * (k / 128 + 1)), 1.0f);
    const WeightSource source{.data = data_.data(), .dtype = dtype, .n = n, .k = k, .row_stride = k,
                              .scale = scales_.data(), .scale_stride = k / 128 + 1};
    packed_ = PackCpuWeight({source}, pool);
    data_.clear();
    data_.shrink_to_fit();
  }
  const PackedWeight& packed() const { return *packed_; }

 private:
  std::vector<uint8_t> data_;
  std::vector<float> scales_;
  std::unique_ptr<PackedWeight> packed_;
};

void BenchMatMul(int64_t n, int64_t k, DType dtype, const std::vector<CpuIsa>& isas,
                 ThreadPool& pool, const std::vector<Ceilings>& ceilings, double budget) {
  // Several copies, so that small batches read memory and not a cache.
  std::vector<std::unique_ptr<Weights>> copies;
  const int64_t bytes = CpuPackedBytes(n, k, dtype);
  const int count = static_cast<int>(std::clamp<int64_t>((int64_t{600} << 20) / bytes, 1, 64));
  for (int i = 0; i < count; ++i) copies.push_back(std::make_unique<Weights>(n, k, dtype, pool));
  for (size_t i = 0; i < isas.size(); ++i) {
    CpuContext context(&pool, isas[i]);
    for (const int m : {1, 2, 4, 16, 64, 512}) {
      std::vector<float> x(static_cast<size_t>(m * k), 0.5f), y(static_cast<size_t>(m * n));
      size_t next = 0;
      const double seconds = BestSeconds(budget, [&] {
        const Weights& w = *copies[next++ % copies.size()];
        MatMul({.x = x.data(), .x_stride = k, .w = &w.packed(), .y = y.data(), .y_stride = n,
                .m = m}, context);
      });
      Report(fmt::format("matmul {} {} {}x{} m={}", CpuIsaName(isas[i]), DTypeName(dtype), n, k, m),
             seconds, static_cast<double>(bytes), 2.0 * static_cast<double>(n * k) * m, ceilings[i],
             dtype == DType::kF32);
    }
  }
}

void BenchMoe(DType dtype, const std::vector<CpuIsa>& isas, ThreadPool& pool,
              const std::vector<Ceilings>& ceilings, double budget) {
  const int experts = 40;
  const int64_t dim = 2048, width = 1408;
  std::vector<std::unique_ptr<Weights>> weights;
  std::vector<const PackedWeight*> w13, w2;
  for (int e = 0; e < experts; ++e) {
    weights.push_back(std::make_unique<Weights>(2 * width, dim, dtype, pool));
    w13.push_back(&weights.back()->packed());
    weights.push_back(std::make_unique<Weights>(dim, width, dtype, pool));
    w2.push_back(&weights.back()->packed());
  }
  for (size_t i = 0; i < isas.size(); ++i) {
    CpuContext context(&pool, isas[i]);
    for (const auto& [active, rows_each] : {std::pair{6, 1}, {40, 1}, {40, 2}, {40, 4}, {40, 48}}) {
      const int rows = active * rows_each;
      std::vector<float> x(static_cast<size_t>(rows * dim), 0.5f), out(x.size());
      std::vector<int32_t> token(static_cast<size_t>(rows));
      for (int r = 0; r < rows; ++r) token[static_cast<size_t>(r)] = r;
      int first = 0;
      const double seconds = BestSeconds(budget, [&] {
        std::vector<int32_t> offsets = {0};
        for (int e = 0; e < experts; ++e) {
          const bool used = (e + experts - first) % experts < active;
          offsets.push_back(offsets.back() + (used ? rows_each : 0));
        }
        first = (first + active) % experts;
        MoeMlp({.x = x.data(), .w13 = w13.data(), .w2 = w2.data(), .experts = experts,
                .expert_offsets = offsets.data(), .row_token = token.data(), .row_out = out.data(),
                .rows = rows, .dim = dim, .width = width}, context);
      });
      const double bytes = active * static_cast<double>(w13[0]->bytes + w2[0]->bytes);
      Report(fmt::format("moe {} {} {} experts x {} rows", CpuIsaName(isas[i]), DTypeName(dtype),
                         active, rows_each),
             seconds, bytes, 2.0 * rows * 3.0 * static_cast<double>(dim * width), ceilings[i], false);
    }
  }
}

void BenchHeads(const std::vector<CpuIsa>& isas, ThreadPool& pool,
                const std::vector<Ceilings>& ceilings, double budget) {
  const int heads = 16;
  const int64_t n = 512, k = 128;
  std::vector<std::unique_ptr<Weights>> weights;
  std::vector<const PackedWeight*> w;
  for (int h = 0; h < heads; ++h) {
    weights.push_back(std::make_unique<Weights>(n, k, DType::kBF16, pool));
    w.push_back(&weights.back()->packed());
  }
  for (size_t i = 0; i < isas.size(); ++i) {
    CpuContext context(&pool, isas[i]);
    for (const int m : {1, 16, 512}) {
      std::vector<float> x(static_cast<size_t>(m * heads * k), 0.5f);
      std::vector<float> y(static_cast<size_t>(m * heads * n));
      const double seconds = BestSeconds(budget, [&] {
        HeadMatMul({.x = x.data(), .x_stride = heads * k, .x_head_stride = k, .w = w.data(),
                    .y = y.data(), .y_stride = heads * n, .y_head_stride = n, .m = m,
                    .heads = heads}, context);
      });
      Report(fmt::format("head matmul {} 16 heads {}x{} m={}", CpuIsaName(isas[i]), n, k, m), seconds,
             static_cast<double>(heads * w[0]->bytes), 2.0 * heads * static_cast<double>(n * k) * m,
             ceilings[i], false);
    }
  }
}

int Main(int argc, char** argv) {
  CLI::App app("Time, bandwidth and FLOP/s of the CPU kernels beside this machine's ceilings");
  Options options;
  std::string only;
  app.add_option("--threads", options.threads, "threads of the pool")->check(CLI::Range(1, 1024));
  app.add_option("--isa", options.isa, "only this instruction set");
  app.add_option("--seconds", options.seconds, "time per case");
  app.add_option("--only", only, "matmul, moe or heads");
  CLI11_PARSE(app, argc, argv);

  std::vector<CpuIsa> isas = SupportedCpuIsas();
  if (!options.isa.empty()) {
    const auto isa = ParseCpuIsa(options.isa);
    if (!isa.ok()) {
      fmt::print(stderr, "{}\n", isa.status().message());
      return 2;
    }
    isas = {*isa};
  }
  for (int threads = 1; threads <= options.threads; ++threads) {
    fmt::print("read bandwidth, {} threads: {:.1f} GB/s\n", threads, ReadBandwidthGBs(threads));
  }
  std::vector<Ceilings> ceilings;
  const double read_gbs = ReadBandwidthGBs(options.threads);
  for (const CpuIsa isa : isas) {
    ceilings.push_back({read_gbs, MatMulCeilingGflops(options.threads, isa),
                        F32CeilingGflops(options.threads, isa)});
    fmt::print("{}: bf16 matmul ceiling {:.0f} GFLOP/s, f32 {:.0f} GFLOP/s\n", CpuIsaName(isa),
               ceilings.back().bf16_gflops, ceilings.back().f32_gflops);
  }
  ThreadPool pool(options.threads);
  if (only.empty() || only == "matmul") {
    for (const DType dtype : {DType::kBF16, DType::kF8E4M3, DType::kF32}) {
      for (const auto& [n, k] : {std::pair<int64_t, int64_t>{3072, 2048}, {2816, 2048},
                                 {10944, 2048}, {2048, 10944}}) {
        BenchMatMul(n, k, dtype, isas, pool, ceilings, options.seconds);
      }
    }
  }
  if (only.empty() || only == "moe") {
    for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
      BenchMoe(dtype, isas, pool, ceilings, options.seconds);
    }
  }
  if (only.empty() || only == "heads") BenchHeads(isas, pool, ceilings, options.seconds);
  return 0;
}

}  // namespace
}  // namespace hadal

int main(int argc, char** argv) { return hadal::Main(argc, argv); }
