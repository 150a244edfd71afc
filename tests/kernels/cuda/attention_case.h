#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/check.h"
#include "common/dtype.h"
#include "common/step_plan.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/mla_paths.h"
#include "kernels/cuda/ops.h"

// What the tests of the attention family share: values that are on the device in their type and on
// the host as the float that this type holds; a paged cache; comparison.

namespace hadal::testing {

using Rng = std::mt19937_64;

inline bool HaveCudaDevice() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) return true;
  std::printf("skipped: no CUDA device\n");
  return false;
}

inline bool IsHopper() {
  cudaDeviceProp properties{};
  HADAL_CUDA(cudaGetDeviceProperties(&properties, 0));
  return properties.major == 9;
}

// Device memory between two zones that no kernel may write.
class GuardedMemory {
 public:
  static constexpr size_t kGuard = 4096;

  explicit GuardedMemory(size_t bytes) : bytes_(bytes) {
    HADAL_CUDA(cudaMalloc(&block_, bytes + 2 * kGuard));
    HADAL_CUDA(cudaMemset(block_, 0xff, bytes + 2 * kGuard));  // NaN in every type
  }
  ~GuardedMemory() { cudaFree(block_); }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  char* data() const { return static_cast<char*>(block_) + kGuard; }
  void Upload(const void* host) {
    HADAL_CUDA(cudaMemcpy(data(), host, bytes_, cudaMemcpyHostToDevice));
  }
  void Download(void* host) const {
    HADAL_CUDA(cudaMemcpy(host, data(), bytes_, cudaMemcpyDeviceToHost));
  }
  bool GuardsIntact() const {
    std::vector<unsigned char> all(bytes_ + 2 * kGuard);
    HADAL_CUDA(cudaMemcpy(all.data(), block_, all.size(), cudaMemcpyDeviceToHost));
    const auto intact = [](unsigned char c) { return c == 0xff; };
    return std::all_of(all.begin(), all.begin() + kGuard, intact) &&
           std::all_of(all.end() - kGuard, all.end(), intact);
  }

 private:
  size_t bytes_;
  void* block_ = nullptr;
};

// Floats on the host, the same values in `dtype` on the device.
struct Values {
  DType dtype;
  std::vector<float> host;
  std::unique_ptr<GuardedMemory> device;

  Values(std::vector<float> values, DType type) : dtype(type), host(std::move(values)) {
    device = std::make_unique<GuardedMemory>(host.size() * static_cast<size_t>(DTypeSize(dtype)));
    std::vector<bf16_t> halves;
    if (dtype == DType::kBF16) {
      for (float& x : host) {
        halves.push_back(FloatToBf16(x));
        x = Bf16ToFloat(halves.back());
      }
    }
    device->Upload(dtype == DType::kF32 ? static_cast<const void*>(host.data()) : halves.data());
  }
  void* data() const { return device->data(); }
};

inline std::vector<float> RandomValues(int64_t count, Rng& rng, float deviation = 1) {
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& x : values) x = normal(rng);
  return values;
}

// Poisoned memory that an op writes.
struct Output {
  DType dtype;
  size_t count;
  GuardedMemory device;

  Output(int64_t n, DType type)
      : dtype(type),
        count(static_cast<size_t>(n)),
        device(static_cast<size_t>(n * DTypeSize(type))) {}
  void* data() const { return device.data(); }
  std::vector<float> Read() const {
    std::vector<float> values(count);
    if (dtype == DType::kF32) {
      device.Download(values.data());
    } else {
      std::vector<bf16_t> halves(count);
      device.Download(halves.data());
      std::transform(halves.begin(), halves.end(), values.begin(), Bf16ToFloat);
    }
    return values;
  }
};

template <typename T>
std::unique_ptr<GuardedMemory> OnDevice(const std::vector<T>& values) {
  auto memory = std::make_unique<GuardedMemory>(values.size() * sizeof(T));
  memory->Upload(values.data());
  return memory;
}

class TestContext {
 public:
  explicit TestContext(DType act, int64_t scratch_bytes)
      : scratch_(static_cast<size_t>(scratch_bytes)) {
    context.act = act;
    cudaDeviceProp properties{};
    HADAL_CUDA(cudaGetDeviceProperties(&properties, 0));
    context.sm_count = properties.multiProcessorCount;
    context.arch = 10 * properties.major + properties.minor;
    HADAL_CUDA(cudaStreamCreate(&context.stream));
    HADAL_CUDA(cudaMalloc(&block_, static_cast<size_t>(scratch_bytes) + kGuard));
    HADAL_CUDA(cudaMemset(block_, 0xff, static_cast<size_t>(scratch_bytes) + kGuard));
    context.scratch.Reset(block_, scratch_bytes);
    context.cublas_workspace_bytes = 32 << 20;
    HADAL_CUDA(cudaMalloc(&context.cublas_workspace, 32 << 20));
    HADAL_CHECK(cublasLtCreate(&context.cublas) == CUBLAS_STATUS_SUCCESS);
  }
  ~TestContext() {
    cublasLtDestroy(context.cublas);
    cudaFree(context.cublas_workspace);
    cudaStreamDestroy(context.stream);
    cudaFree(block_);
  }
  TestContext(const TestContext&) = delete;
  TestContext& operator=(const TestContext&) = delete;

  // Waits; false when a kernel failed or wrote behind the scratch.
  bool Finished() {
    const cudaError_t error = cudaStreamSynchronize(context.stream);
    if (error != cudaSuccess) {
      std::printf("  device: %s\n", cudaGetErrorString(error));
      return false;
    }
    std::vector<unsigned char> guard(kGuard);
    HADAL_CUDA(cudaMemcpy(guard.data(), static_cast<char*>(block_) + scratch_, kGuard,
                          cudaMemcpyDeviceToHost));
    return std::all_of(guard.begin(), guard.end(), [](unsigned char c) { return c == 0xff; });
  }

  CudaContext context;

 private:
  static constexpr size_t kGuard = 4096;
  size_t scratch_;
  void* block_ = nullptr;
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
    device_rows_ = OnDevice(rows);
    if (tables_.empty()) tables_.push_back(0);
    device_tables_ = OnDevice(tables_);
  }

  AttentionRows Rows(bool host_rows) const {
    AttentionRows r;
    r.rows = reinterpret_cast<const AttentionRow*>(device_rows_->data());
    r.host_rows = host_rows ? rows.data() : nullptr;
    r.num_rows = static_cast<int>(rows.size());
    r.block_tables = reinterpret_cast<const int32_t*>(device_tables_->data());
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
  std::unique_ptr<GuardedMemory> device_rows_;
  std::unique_ptr<GuardedMemory> device_tables_;
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

// ||out - ref|| / ||ref|| of every row of `width` elements and of all of them; prints the worst
// row.
inline bool Close(const std::string& what, const std::vector<float>& out,
                  const std::vector<double>& ref, int64_t width, double tolerance) {
  double all = 0, all_ref = 0, worst = -1;
  size_t worst_row = 0;
  const auto w = static_cast<size_t>(width);
  for (size_t row = 0; row * w < ref.size(); ++row) {
    double error = 0, norm = 0;
    for (size_t i = row * w; i < (row + 1) * w; ++i) {
      const double d = out[i] - ref[i];
      error += std::isfinite(d) ? d * d : 1e30;
      norm += ref[i] * ref[i];
    }
    all += error;
    all_ref += norm;
    const double relative = std::sqrt(error / std::max(norm, 1e-30));
    if (relative > worst) worst = relative, worst_row = row;
  }
  const double relative = std::sqrt(all / std::max(all_ref, 1e-30));
  const bool close = ref.empty() || (relative <= tolerance && worst <= 2 * tolerance);
  std::printf("%s %s: error %.2e, worst row %zu %.2e (allowed %.0e)\n", close ? "  ok  " : "  FAIL",
              what.c_str(), relative, worst_row, worst, tolerance);
  for (size_t i = 0, shown = 0; !close && i < w && shown < 8; ++i) {
    const size_t at = worst_row * w + i;
    if (std::abs(out[at] - ref[at]) <= 3 * tolerance * (std::abs(ref[at]) + 1e-3)) continue;
    std::printf("    row %zu element %zu: %g, should be %g\n", worst_row, i, double{out[at]},
                ref[at]);
    ++shown;
  }
  return close;
}

}  // namespace hadal::testing
