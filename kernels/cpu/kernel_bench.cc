// hadal-kernel-bench: what the CPU kernels reach of this machine's ceilings.

#include "kernels/cpu/kernel_bench.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <random>
#include <set>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/probes.h"

namespace hadal::bench {

void Report(const std::string& what, double seconds, double bytes, double flops,
            const CpuCeilings& ceilings, bool f32) {
  const double gbs = bytes / seconds * 1e-9, gflops = flops / seconds * 1e-9;
  fmt::print("{:<46} {:>10.1f} us {:>7.2f} GB/s ({:>3.0f} %) {:>8.1f} GFLOP/s ({:>3.0f} %)\n", what,
             seconds * 1e6, gbs, 100 * gbs / ceilings.read_gbs, gflops,
             100 * gflops / (f32 ? ceilings.f32_gflops : ceilings.bf16_gflops));
  std::fflush(stdout);
}

std::unique_ptr<PackedWeight> RandomPacked(int64_t n, int64_t k, DType dtype, ThreadPool& pool,
                                           int count) {
  std::vector<uint8_t> data(static_cast<size_t>(n * k * DTypeSize(dtype)));
  std::minstd_rand rng(1);
  if (dtype == DType::kF8E4M3) {
    for (uint8_t& b : data) b = static_cast<uint8_t>((rng() >> 8) & 0xb7);
  } else {
    const int64_t per = DTypeSize(dtype) / 2;
    auto* halves = reinterpret_cast<uint16_t*>(data.data());
    for (int64_t i = 0; i < n * k; ++i) {
      halves[i * per + per - 1] = static_cast<uint16_t>(((rng() >> 8) & 0x83ff) | 0x3c00);
    }
  }
  const std::vector<float> scales(static_cast<size_t>((n / 128 + 1) * (k / 128 + 1)), 1.0f);
  const WeightSource source{.data = data.data(), .dtype = dtype, .n = n, .k = k, .row_stride = k,
                            .scale = scales.data(), .scale_stride = k / 128 + 1};
  return PackCpuWeight(std::vector<StackedSource>(static_cast<size_t>(count), {source}), pool);
}

namespace {

void BenchMatMul(int64_t n, int64_t k, DType dtype, const Setup& setup) {
  // Several copies, so that small batches read memory and not a cache.
  std::vector<std::unique_ptr<PackedWeight>> copies;
  const int64_t bytes = CpuPackedBytes(n, k, dtype);
  const int count = static_cast<int>(std::clamp<int64_t>((int64_t{600} << 20) / bytes, 1, 64));
  for (int i = 0; i < count; ++i) copies.push_back(RandomPacked(n, k, dtype, *setup.pool));
  for (const CpuCeilings& ceilings : setup.isas) {
    CpuContext context(setup.pool, ceilings.isa);
    for (const int m : {1, 2, 4, 16, 64, 512}) {
      std::vector<float> x(static_cast<size_t>(m * k), 0.5f), y(static_cast<size_t>(m * n));
      size_t next = 0;
      const double seconds = BestSeconds(setup.seconds, [&] {
        MatMul({.x = x.data(), .x_stride = k, .w = copies[next++ % copies.size()].get(),
                .y = y.data(), .y_stride = n, .m = m}, context);
      });
      Report(fmt::format("matmul {} {} {}x{} m={}", CpuIsaName(ceilings.isa), DTypeName(dtype), n,
                         k, m),
             seconds, static_cast<double>(bytes), 2.0 * static_cast<double>(n * k) * m, ceilings,
             dtype == DType::kF32);
    }
  }
}

void BenchMatMuls(const Setup& setup) {
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3, DType::kF32}) {
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{3072, 2048}, {2816, 2048},
                               {10944, 2048}, {2048, 10944}}) {
      BenchMatMul(n, k, dtype, setup);
    }
  }
}

// One product of every expert, whose weights come from memory: what MoeMlp does twice.
void BenchExpertProducts(const std::vector<const CpuPackedWeight*>& experts, int rows,
                         const Setup& setup, const CpuCeilings& ceilings) {
  const CpuPackedWeight& w = *experts[0];
  CpuContext context(setup.pool, ceilings.isa);
  ScratchArena arena;
  ScratchArena::Scope scope(arena);
  const std::vector<float> x(static_cast<size_t>(w.k), 0.5f);
  std::vector<GemmJob> jobs;
  for (const CpuPackedWeight* expert : experts) {
    const GemmRows inputs = AllocateGemmRows(*expert, *context.gemm, rows, arena);
    for (int r = 0; r < rows; ++r) ConvertGemmRow(*expert, *context.gemm, x.data(), inputs.row(r));
    jobs.push_back({expert, inputs, rows, arena.Allocate<float>(rows * w.n), w.n});
  }
  const auto count = static_cast<int>(jobs.size());
  const double seconds = BestSeconds(setup.seconds, [&] {
    RunGemmJobs(jobs.data(), count, context);
  });
  Report(fmt::format("experts {} {} {} x {}x{} m={}", CpuIsaName(ceilings.isa), DTypeName(w.dtype),
                     count, w.n, w.k, rows),
         seconds, static_cast<double>(w.bytes) * count,
         2.0 * static_cast<double>(w.n * w.k) * rows * count, ceilings, false);
}

void BenchMoe(DType dtype, const Setup& setup) {
  const int experts = 40;
  const int64_t dim = 2048, width = 1408;
  const auto gate_up = RandomPacked(2 * width, dim, dtype, *setup.pool, experts);
  const auto down = RandomPacked(dim, width, dtype, *setup.pool, experts);
  const auto &w13 = CpuMatrices(gate_up.get()), &w2 = CpuMatrices(down.get());
  for (const CpuCeilings& ceilings : setup.isas) {
    for (const int rows : {16, 32, 48, 56, 96}) {
      BenchExpertProducts(w13, rows, setup, ceilings);
      BenchExpertProducts(w2, rows, setup, ceilings);
    }
  }
  for (const CpuCeilings& ceilings : setup.isas) {
    CpuContext context(setup.pool, ceilings.isa);
    for (const auto& load : {std::pair{6, 1}, {40, 1}, {40, 2}, {40, 4}, {40, 48}}) {
      const int active = load.first, rows_each = load.second;
      const int rows = active * rows_each;
      std::vector<float> x(static_cast<size_t>(rows * dim), 0.5f), out(x.size());
      std::vector<int32_t> token(static_cast<size_t>(rows));
      for (int r = 0; r < rows; ++r) token[static_cast<size_t>(r)] = r;
      int first = 0;
      const double seconds = BestSeconds(setup.seconds, [&] {
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
      Report(fmt::format("moe {} {} {} experts x {} rows", CpuIsaName(ceilings.isa),
                         DTypeName(dtype), active, rows_each),
             seconds, bytes, 2.0 * rows * 3.0 * static_cast<double>(dim * width), ceilings, false);
    }
  }
}

void BenchHeads(const Setup& setup) {
  const int heads = 16;
  const int64_t n = 512, k = 128;
  const auto w = RandomPacked(n, k, DType::kBF16, *setup.pool, heads);
  for (const CpuCeilings& ceilings : setup.isas) {
    CpuContext context(setup.pool, ceilings.isa);
    for (const int m : {1, 16, 512}) {
      std::vector<float> x(static_cast<size_t>(m * heads * k), 0.5f);
      std::vector<float> y(static_cast<size_t>(m * heads * n));
      const double seconds = BestSeconds(setup.seconds, [&] {
        HeadMatMul({.x = x.data(), .x_stride = heads * k, .x_head_stride = k, .w = w.get(),
                    .y = y.data(), .y_stride = heads * n, .y_head_stride = n, .m = m,
                    .heads = heads}, context);
      });
      Report(fmt::format("head matmul {} 16 heads {}x{} m={}", CpuIsaName(ceilings.isa), n, k, m),
             seconds, static_cast<double>(w->bytes),
             2.0 * heads * static_cast<double>(n * k) * m, ceilings, false);
    }
  }
}

std::vector<CpuCeilings> Probe(const std::vector<CpuIsa>& isas, int threads) {
  for (int t = 1; t < threads; ++t) {
    fmt::print("read bandwidth, {} threads: {:.1f} GB/s\n", t, ReadBandwidthGBs(t));
  }
  const double read_gbs = ReadBandwidthGBs(threads);
  fmt::print("read bandwidth, {} threads: {:.1f} GB/s\n", threads, read_gbs);
  std::vector<CpuCeilings> ceilings;
  for (const CpuIsa isa : isas) {
    ceilings.push_back({isa, read_gbs, MatMulCeilingGflops(threads, isa),
                        F32CeilingGflops(threads, isa)});
    fmt::print("{}: bf16 matmul ceiling {:.0f} GFLOP/s, f32 {:.0f} GFLOP/s\n", CpuIsaName(isa),
               ceilings.back().bf16_gflops, ceilings.back().f32_gflops);
  }
  return ceilings;
}

int Main(int argc, char** argv) {
  CLI::App app("Time, bandwidth and FLOP/s of the CPU kernels beside this machine's ceilings");
  int threads = 2;
  std::string isa_name;
  double seconds = 0.2;
  std::set<std::string> only;
  app.add_option("--threads", threads, "threads of the pool")->check(CLI::Range(1, 1024));
  app.add_option("--isa", isa_name, "only this instruction set");
  app.add_option("--seconds", seconds, "time per case");
  app.add_option("--only", only, "some of them")
      ->check(CLI::IsMember({"matmul", "moe", "heads", "decode", "prefill"}));
  CLI11_PARSE(app, argc, argv);

  std::vector<CpuIsa> isas = SupportedCpuIsas();
  if (!isa_name.empty()) {
    const auto isa = ParseCpuIsa(isa_name);
    if (!isa.ok()) {
      fmt::print(stderr, "{}\n", isa.status().message());
      return 2;
    }
    isas = {*isa};
  }
  ThreadPool pool(threads);
  const Setup setup{Probe(isas, threads), &pool, seconds};
  const auto wanted = [&](const char* name) { return only.empty() || only.count(name) > 0; };
  if (wanted("matmul")) BenchMatMuls(setup);
  if (wanted("moe")) {
    BenchMoe(DType::kBF16, setup);
    BenchMoe(DType::kF8E4M3, setup);
  }
  if (wanted("heads")) BenchHeads(setup);
  if (wanted("decode")) BenchDecodeAttention(setup);
  if (wanted("prefill")) BenchPrefillAttention(setup);
  return 0;
}

}  // namespace
}  // namespace hadal::bench

int main(int argc, char** argv) { return hadal::bench::Main(argc, argv); }
