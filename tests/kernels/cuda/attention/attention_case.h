#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "common/step_plan.h"
#include "kernels/cuda/attention/mla_paths.h"
#include "kernels/cuda/attention/ops.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/kernels/cuda/compare.h"
#include "tests/kernels/cuda/device_fixture.h"

// What the tests of the attention family share: values that are on the device in their type and on
// the host as the float that this type holds; a paged cache; softmax in float64.

namespace hadal::testing {

using Rng = std::mt19937_64;

// Short, for tables of cases.
inline constexpr DType kF = DType::kF32, kB = DType::kBF16;

// Floats on the host, the same values in `dtype` on the device.
struct Values {
  DType dtype;
  std::vector<float> host;
  GuardedBuffer device;

  Values(std::vector<float> values, DType type)
      : dtype(type), host(std::move(values)), device(ToAct(host, type)) {}
  void* data() const { return device.data(); }
  std::vector<float> Read() const { return DownloadFloats(device, dtype); }
};

// Poisoned memory that an op writes.
struct Output {
  DType dtype;
  GuardedBuffer device;

  Output(int64_t n, DType type) : dtype(type), device(n * DTypeSize(type)) {}
  void* data() const { return device.data(); }
  std::vector<float> Read() const { return DownloadFloats(device, dtype); }
};

// Sequences whose blocks lie scattered in a cache; rows of the cache that hold no key are NaN.
class PagedSequences {
 public:
  PagedSequences(std::vector<AttentionRow> sequences, int64_t dim, DType dtype, Rng& rng)
      : rows(std::move(sequences)), dim_(dim) {
    std::vector<int32_t> free;
    int blocks = 3;
    for (const AttentionRow& row : rows) blocks += Blocks(row);
    for (int32_t b = 0; b < blocks; ++b) free.push_back(b);
    std::shuffle(free.begin(), free.end(), rng);
    std::vector<float> values(static_cast<size_t>(blocks * kBlockSize * dim), NAN);
    std::normal_distribution<float> normal;
    for (AttentionRow& row : rows) {
      row.first_block = static_cast<int32_t>(tables_.size());
      for (int b = 0; b < Blocks(row); ++b, free.pop_back()) tables_.push_back(free.back());
      if (row.num_tokens == 0) row.first_block = 1 << 29;  // nobody may follow it
      max_row_tokens = std::max(max_row_tokens, row.num_tokens);
      tokens = std::max(tokens, row.first_token + row.num_tokens);
      if (row.num_tokens > 0) max_context = std::max(max_context, row.start_pos + row.num_tokens);
      for (int p = 0; row.num_tokens > 0 && p < row.start_pos + row.num_tokens; ++p) {
        for (int64_t i = 0; i < dim; ++i)
          values[static_cast<size_t>(Index(row, p) + i)] = normal(rng);
      }
    }
    cache = std::make_unique<Values>(std::move(values), dtype);
    device_rows_ = std::make_unique<GuardedBuffer>(rows);
    if (tables_.empty()) tables_.push_back(0);
    device_tables_ = std::make_unique<GuardedBuffer>(tables_);
  }

  AttentionRows Rows(bool host_rows) const {
    AttentionRows r;
    r.rows = device_rows_->as<AttentionRow>();
    r.host_rows = host_rows ? rows.data() : nullptr;
    r.num_rows = static_cast<int>(rows.size());
    r.block_tables = device_tables_->as<int32_t>();
    r.tokens = tokens;
    r.max_row_tokens = max_row_tokens;
    r.max_context = max_context;
    return r;
  }
  const float* Latent(const AttentionRow& row, int position) const {
    return cache->host.data() + Index(row, position);
  }

  std::vector<AttentionRow> rows;
  int tokens = 0;
  int max_row_tokens = 0;
  int max_context = 0;
  std::unique_ptr<Values> cache;

 private:
  static int Blocks(const AttentionRow& row) {
    return row.num_tokens == 0 ? 0 : (row.start_pos + row.num_tokens + kBlockSize - 1) / kBlockSize;
  }
  int64_t Index(const AttentionRow& row, int position) const {
    const int64_t block = tables_[static_cast<size_t>(row.first_block + position / kBlockSize)];
    return (block * kBlockSize + position % kBlockSize) * dim_;
  }

  int64_t dim_;
  std::vector<int32_t> tables_;
  std::unique_ptr<GuardedBuffer> device_rows_;
  std::unique_ptr<GuardedBuffer> device_tables_;
};

// f(0) .. f(count - 1) on all cores: references in float64 take longer than the device.
template <typename F>
void ParallelFor(int64_t count, const F& f) {
  std::atomic<int64_t> next = 0;
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i) {
    threads.emplace_back([&] {
      for (int64_t at; (at = next++) < count;) f(at);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// One query: softmax over `keys` scores, then the weighted sum of value(j), a [dim] vector.
template <typename Value>
std::vector<double> SoftmaxSum(const std::vector<double>& scores, int64_t dim, const Value& value) {
  const double top = *std::max_element(scores.begin(), scores.end());
  std::vector<double> out(static_cast<size_t>(dim), 0.0);
  double total = 0;
  for (size_t j = 0; j < scores.size(); ++j) {
    const double weight = std::exp(scores[j] - top);
    total += weight;
    const auto* v = value(static_cast<int>(j));
    for (int64_t i = 0; i < dim; ++i) out[static_cast<size_t>(i)] += weight * v[i];
  }
  for (double& x : out) x /= total;
  return out;
}

}  // namespace hadal::testing
