#include "kernels/cpu/probes.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/probe_kernel.h"
#include "kernels/cpu/thread_pool.h"

namespace hadal {
namespace {

constexpr int kRepeats = 8;  // the best counts: the machine may be shared
constexpr int64_t kReadBytes = int64_t{512} << 20;
constexpr int64_t kReadChunk = int64_t{1} << 20;

double SecondsOf(const auto& fn) {
  const auto begin = std::chrono::steady_clock::now();
  fn();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double Gflops(int threads, ProbeFlopsFn probe) {
  ThreadPool pool(threads);
  struct alignas(64) Sink {
    float value = 0;
  };
  std::vector<Sink> sinks(static_cast<size_t>(threads));
  constexpr int64_t kRounds = 20000;
  constexpr int64_t kChunks = 64;
  const double flops = probe(1, &sinks[0].value) * kRounds * kChunks * threads;
  double best = 0;
  for (int i = 0; i < kRepeats; ++i) {
    const double seconds = SecondsOf([&] {
      pool.ParallelFor(kChunks * threads, 1, [&](int64_t, int64_t, int thread) {
        probe(kRounds, &sinks[static_cast<size_t>(thread)].value);
      });
    });
    best = std::max(best, flops / seconds * 1e-9);
  }
  return best;
}

ProbeReadFn BestRead() {
  if (IsSupported(CpuIsa::kAvx512)) return ProbeReadAvx512;
  return IsSupported(CpuIsa::kAvx2) ? ProbeReadAvx2 : ProbeReadPortable;
}

}  // namespace

double ReadBandwidthGBs(int threads) {
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  constexpr size_t kHugePage = size_t{2} << 20;
  void* memory = nullptr;
  // Room behind the end for the probe's prefetches.
  if (posix_memalign(&memory, kHugePage, kReadBytes + 8192) != 0) throw std::bad_alloc();
  const std::unique_ptr<char, Free> data(static_cast<char*>(memory));
  madvise(memory, kReadBytes, MADV_HUGEPAGE);
  ThreadPool pool(threads);
  std::vector<float> sinks(static_cast<size_t>(threads) * 16);
  pool.ParallelFor(kReadBytes / kReadChunk, 1, [&](int64_t begin, int64_t, int) {
    std::memset(data.get() + begin * kReadChunk, 1, kReadChunk);
  });
  const ProbeReadFn read = BestRead();
  double best = 0;
  for (int i = 0; i < kRepeats; ++i) {
    const double seconds = SecondsOf([&] {
      pool.ParallelFor(kReadBytes / kReadChunk, 1, [&](int64_t begin, int64_t, int thread) {
        sinks[static_cast<size_t>(thread) * 16] +=
            read(data.get() + begin * kReadChunk, kReadChunk);
      });
    });
    best = std::max(best, static_cast<double>(kReadBytes) / seconds * 1e-9);
  }
  return best;
}

double F32CeilingGflops(int threads, CpuIsa isa) {
  if (isa >= CpuIsa::kAvx512) return Gflops(threads, ProbeFlopsAvx512);
  return Gflops(threads, isa == CpuIsa::kAvx2 ? ProbeFlopsAvx2 : ProbeFlopsPortable);
}

double MatMulCeilingGflops(int threads, CpuIsa isa) {
  if (isa == CpuIsa::kAmx) return Gflops(threads, ProbeFlopsAmx);
  return isa == CpuIsa::kAvx512Bf16 ? Gflops(threads, ProbeFlopsAvx512Bf16)
                                    : F32CeilingGflops(threads, isa);
}

}  // namespace hadal
