#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/packed_weight.h"

namespace hadal::testing {

// Prints the line that says so where there is no device.
inline bool HasDevice() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) return true;
  std::printf("skipped: no CUDA device\n");
  return false;
}

// Device memory with a guard zone behind it.
class DeviceArray {
 public:
  DeviceArray() = default;
  DeviceArray(const void* host, size_t bytes) : DeviceArray(bytes) {
    HADAL_CUDA(cudaMemcpy(data_, host, bytes, cudaMemcpyHostToDevice));
  }
  // Poisoned with 0xff.
  explicit DeviceArray(size_t bytes) : bytes_(bytes) {
    HADAL_CUDA(cudaMalloc(&data_, bytes + kGuard));
    HADAL_CUDA(cudaMemset(data_, 0xff, bytes + kGuard));
  }
  template <typename T>
  explicit DeviceArray(const std::vector<T>& host)
      : DeviceArray(host.data(), host.size() * sizeof(T)) {}
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  template <typename T = void>
  T* as() const {
    return static_cast<T*>(data_);
  }

  template <typename T>
  std::vector<T> Read() const {
    std::vector<T> host(bytes_ / sizeof(T));
    HADAL_CUDA(cudaMemcpy(host.data(), data_, bytes_, cudaMemcpyDeviceToHost));
    return host;
  }
  bool GuardIntact() const {
    std::vector<unsigned char> guard(kGuard);
    HADAL_CUDA(cudaMemcpy(guard.data(), as<char>() + bytes_, kGuard, cudaMemcpyDeviceToHost));
    for (unsigned char c : guard) {
      if (c != 0xff) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 4096;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// A context of the first device, with poisoned scratch.
class DeviceFixture {
 public:
  explicit DeviceFixture(DType act, int64_t scratch_bytes)
      : scratch_(static_cast<size_t>(scratch_bytes)) {
    cudaDeviceProp properties{};
    HADAL_CUDA(cudaGetDeviceProperties(&properties, 0));
    context.act = act;
    context.sm_count = properties.multiProcessorCount;
    context.arch = 10 * properties.major + properties.minor;
    HADAL_CUDA(cudaStreamCreateWithFlags(&context.stream, cudaStreamNonBlocking));
    context.scratch.Reset(scratch_.as<void>(), scratch_bytes);
    HADAL_CUDA(cudaDeviceSynchronize());
  }
  ~DeviceFixture() { cudaStreamDestroy(context.stream); }
  void Finish() { HADAL_CUDA(cudaStreamSynchronize(context.stream)); }
  bool ScratchGuardIntact() const { return scratch_.GuardIntact(); }

  CudaContext context;

 private:
  DeviceArray scratch_;
};

inline std::vector<float> Normal(std::mt19937_64& rng, size_t count, float scale) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& v : values) v = normal(rng);
  return values;
}

// Values of `act` on the device; `values` becomes what they round to.
inline std::vector<char> Encode(std::vector<float>& values, DType dtype) {
  std::vector<char> bytes(values.size() * static_cast<size_t>(DTypeSize(dtype)));
  if (dtype == DType::kF32) {
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
  }
  auto* out = reinterpret_cast<bf16_t*>(bytes.data());
  for (size_t i = 0; i < values.size(); ++i) {
    out[i] = FloatToBf16(values[i]);
    values[i] = Bf16ToFloat(out[i]);
  }
  return bytes;
}

inline std::vector<float> Decode(const DeviceArray& array, DType dtype) {
  if (dtype == DType::kF32) return array.Read<float>();
  const std::vector<bf16_t> codes = array.Read<bf16_t>();
  std::vector<float> values(codes.size());
  for (size_t i = 0; i < codes.size(); ++i) values[i] = Bf16ToFloat(codes[i]);
  return values;
}

// Random matrices in the device's layout and what they mean.
class RandomDeviceWeight {
 public:
  struct Options {
    int scale_rows = 128;
    int k_lead = 0;
  };

  RandomDeviceWeight(std::mt19937_64& rng, int count, int64_t n, int64_t k, DType dtype,
                     Options options)
      : values(static_cast<size_t>(count * n * k)) {
    weight.count = count;
    weight.n = n;
    weight.k = k;
    weight.dtype = dtype;
    weight.stride = (k + 15) / 16 * 16;
    const float size = 1.0f / std::sqrt(static_cast<float>(k));
    if (dtype == DType::kF8E4M3) {
      FillFp8(rng, size, options);
      return;
    }
    values = Normal(rng, values.size(), size);
    std::vector<float> padded(static_cast<size_t>(count * n * weight.stride));
    std::vector<char> bytes = Encode(values, dtype);  // rounds
    Pad(padded);
    bytes = Encode(padded, dtype);
    data_ = std::make_unique<DeviceArray>(bytes);
    weight.data = data_->as<void>();
  }

  ~RandomDeviceWeight() { weight.data = nullptr; }  // data_ frees it
  RandomDeviceWeight(const RandomDeviceWeight&) = delete;
  RandomDeviceWeight& operator=(const RandomDeviceWeight&) = delete;

  const float* matrix(int64_t i) const { return values.data() + i * weight.n * weight.k; }

  CudaPackedWeight weight;
  std::vector<float> values;  // [count, n, k]

 private:
  template <typename T>
  void Pad(std::vector<T>& padded) const {
    for (int64_t r = 0; r < weight.count * weight.n; ++r) {
      for (int64_t c = 0; c < weight.k; ++c) {
        padded[static_cast<size_t>(r * weight.stride + c)] =
            static_cast<T>(values[static_cast<size_t>(r * weight.k + c)]);
      }
    }
  }

  void FillFp8(std::mt19937_64& rng, float size, Options options) {
    weight.scale_rows = options.scale_rows;
    weight.k_lead = options.k_lead;
    weight.scale_n = (weight.n + options.scale_rows - 1) / options.scale_rows;
    weight.k_blocks = (weight.k + options.k_lead + 127) / 128;
    std::uniform_real_distribution<float> spread(0.5f, 2.0f);
    std::vector<float> scales(static_cast<size_t>(weight.count * weight.scale_n * weight.k_blocks));
    // Codes are uniform over all finite ones, subnormals included: about 100 in the mean.
    for (float& s : scales) s = size * spread(rng) / 100.0f;
    std::vector<uint8_t> codes(static_cast<size_t>(weight.count * weight.n * weight.stride));
    for (int64_t i = 0; i < weight.count; ++i) {
      for (int64_t r = 0; r < weight.n; ++r) {
        for (int64_t c = 0; c < weight.k; ++c) {
          auto code = static_cast<uint8_t>(rng());
          if ((code & 0x7f) == 0x7f) code ^= 1;
          const int64_t row = i * weight.n + r;
          codes[static_cast<size_t>(row * weight.stride + c)] = code;
          const int64_t s = (i * weight.scale_n + r / options.scale_rows) * weight.k_blocks +
                            (c + options.k_lead) / 128;
          values[static_cast<size_t>(row * weight.k + c)] =
              F8E4M3ToFloat(code) * scales[static_cast<size_t>(s)];
        }
      }
    }
    data_ = std::make_unique<DeviceArray>(codes);
    scale_ = std::make_unique<DeviceArray>(scales);
    weight.data = data_->as<void>();
    weight.scale = scale_->as<float>();
  }

  std::unique_ptr<DeviceArray> data_;
  std::unique_ptr<DeviceArray> scale_;
};

// ||a - b|| / ||b||; infinity when something is not finite.
inline double RelativeError(const std::vector<float>& a, const std::vector<double>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double d = a[i] - b[i];
    difference += d * d;
    norm += b[i] * b[i];
  }
  if (!std::isfinite(difference)) return INFINITY;
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

// The first few elements that differ by more than `tolerance` of the reference's root mean square.
inline void PrintMismatches(const std::vector<float>& a, const std::vector<double>& b,
                            int64_t columns, double tolerance) {
  double norm = 0;
  for (double v : b) norm += v * v;
  const double limit = tolerance * std::sqrt(norm / static_cast<double>(b.size()));
  int printed = 0;
  size_t bad = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    if (std::abs(a[i] - b[i]) <= limit) continue;
    ++bad;
    if (printed++ < 6) {
      std::printf("  [%lld, %lld] got %g, expected %g\n", static_cast<long long>(i) / columns,
                  static_cast<long long>(i) % columns, a[i], b[i]);
    }
  }
  std::printf("  %zu of %zu elements are off by more than %g\n", bad, b.size(), limit);
}

}  // namespace hadal::testing
