#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/packed_weight.h"
#include "kernels/cpu/thread_pool.h"

namespace hadal::bench {

// What the machine can do with one instruction set.
struct CpuCeilings {
  CpuIsa isa = CpuIsa::kPortable;
  double read_gbs = 0;
  double bf16_gflops = 0;
  double f32_gflops = 0;
};

// What every bench runs with.
struct Setup {
  std::vector<CpuCeilings> isas;
  ThreadPool* pool = nullptr;
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

// One line: time, and how much of the ceilings that is.
void Report(const std::string& what, double seconds, double bytes, double flops,
            const CpuCeilings& ceilings, bool f32);

// An [n, k] matrix of random bits that make ordinary numbers in every dtype.
std::unique_ptr<PackedWeight> RandomPacked(int64_t n, int64_t k, DType dtype, ThreadPool& pool,
                                           int count = 1);

void BenchDecodeAttention(const Setup& setup);
void BenchPrefillAttention(const Setup& setup);

}  // namespace hadal::bench
