#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "kernels/cuda/weights/packed_weight.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/kernels/cuda/device_fixture.h"

namespace hadal::testing {

// Random matrices in the device's layout, elements of about 1 / sqrt(k), and what they mean.
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
    } else {
      Fill(rng, size);
    }
  }

  ~RandomDeviceWeight() { weight.data = nullptr; }  // data_ frees it
  RandomDeviceWeight(const RandomDeviceWeight&) = delete;
  RandomDeviceWeight& operator=(const RandomDeviceWeight&) = delete;

  const float* matrix(int64_t i) const { return values.data() + i * weight.n * weight.k; }

  CudaPackedWeight weight;
  std::vector<float> values;  // [count, n, k]

 private:
  void Fill(std::mt19937_64& rng, float size) {
    const int64_t rows = weight.count * weight.n, k = weight.k, stride = weight.stride;
    values = RandomFloats(rows * k, rng, size);
    ToAct(values, weight.dtype);  // rounds
    std::vector<float> padded(static_cast<size_t>(rows * stride));
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(values.begin() + r * k, k, padded.begin() + r * stride);
    }
    data_ = std::make_unique<GuardedBuffer>(ToAct(padded, weight.dtype));
    weight.data = data_->data();
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
    for (int64_t row = 0; row < weight.count * weight.n; ++row) {
      const int64_t i = row / weight.n, r = row % weight.n;
      for (int64_t c = 0; c < weight.k; ++c) {
        auto code = static_cast<uint8_t>(rng());
        if ((code & 0x7f) == 0x7f) code ^= 1;
        codes[static_cast<size_t>(row * weight.stride + c)] = code;
        const int64_t s = (i * weight.scale_n + r / options.scale_rows) * weight.k_blocks +
                          (c + options.k_lead) / 128;
        values[static_cast<size_t>(row * weight.k + c)] =
            F8E4M3ToFloat(code) * scales[static_cast<size_t>(s)];
      }
    }
    data_ = std::make_unique<GuardedBuffer>(codes);
    scale_ = std::make_unique<GuardedBuffer>(scales);
    weight.data = data_->data();
    weight.scale = scale_->as<float>();
  }

  std::unique_ptr<GuardedBuffer> data_;
  std::unique_ptr<GuardedBuffer> scale_;
};

}  // namespace hadal::testing
