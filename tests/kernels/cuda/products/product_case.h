#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/products/matmul.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/kernels/cuda/compare.h"
#include "tests/kernels/cuda/device_fixture.h"

namespace hadal::testing {

// A random product: operands on the device and on the host.
struct ProductShape {
  int m = 1;
  int matrices = 1;
  WeightShape weight;
  int64_t x_pad = 0;  // elements behind each token
  bool float_out = false;
};

class ProductCase {
 public:
  ProductCase(const ProductShape& shape, DeviceFixture& device, std::mt19937_64& rng)
      : shape_(shape), device_(device), x_stride_(shape.matrices * shape.weight.k + shape.x_pad) {
    std::vector<StackedSource> sources;
    for (int i = 0; i < shape.matrices; ++i) weights_.emplace_back(shape.weight, rng);
    for (const RandomWeight& w : weights_) sources.push_back({w.source()});
    packed_ = PackCudaWeight(sources, device.context);
    x_ = RandomFloats(shape.m * x_stride_, rng);
    x_device_.emplace(ToAct(x_, device.context.act));
  }

  int64_t n() const { return shape_.weight.n; }
  int64_t k() const { return shape_.weight.k; }
  const CudaPackedWeight& packed() const { return static_cast<const CudaPackedWeight&>(*packed_); }
  std::vector<float>& x() { return x_; }

  cuda::Product product(void* y) const {
    return {.x = x_device_->data(),
            .x_stride = x_stride_,
            .x_matrix_stride = k(),
            .w = &packed(),
            .y = y,
            .y_stride = y_stride(),
            .y_matrix_stride = n(),
            .float_out = shape_.float_out,
            .m = shape_.m,
            .matrices = shape_.matrices};
  }

  // [m, matrices, n] in float64, of x() as it is now.
  std::vector<double> Reference() const {
    std::vector<double> y(static_cast<size_t>(shape_.m * shape_.matrices * n()));
    std::vector<double> row(static_cast<size_t>(k()));
    for (int i = 0; i < shape_.matrices; ++i) {
      for (int64_t j = 0; j < n(); ++j) {
        for (int64_t c = 0; c < k(); ++c) row[static_cast<size_t>(c)] = weights_[i].At(j, c);
        for (int t = 0; t < shape_.m; ++t) {
          const float* x = &x_[static_cast<size_t>(t * x_stride_ + i * k())];
          double sum = 0;
          for (int64_t c = 0; c < k(); ++c) sum += row[static_cast<size_t>(c)] * x[c];
          y[static_cast<size_t>((t * shape_.matrices + i) * n() + j)] = sum;
        }
      }
    }
    return y;
  }

  // Rounds x() as 1x128 quantisation does; the last m % 4 rows stay as they are.
  void QuantiseX() {
    for (int t = 0; t < shape_.m / 4 * 4; ++t) {
      for (int64_t c = 0; c < k(); c += 128) {
        float* x = &x_[static_cast<size_t>(t * x_stride_ + c)];
        const int64_t count = std::min<int64_t>(128, k() - c);
        float amax = 0;
        for (int64_t j = 0; j < count; ++j) amax = std::max(amax, std::fabs(x[j]));
        const float scale = std::max(amax, 1e-4f) / 448;
        for (int64_t j = 0; j < count; ++j) x[j] = scale * NearestF8(x[j] / scale);
      }
    }
  }

  // Runs `path`; false when it does not exist for this case. `y` gets [m, matrices, n].
  template <typename Path>
  bool Run(Path path, std::vector<float>* y, std::string* trouble) {
    const DType out = shape_.float_out ? DType::kF32 : device_.context.act;
    GuardedBuffer buffer(shape_.m * y_stride() * DTypeSize(out));
    if (!path(product(buffer.data()), device_.context)) return false;
    const std::vector<float> all = DownloadFloats(buffer, out);
    const int64_t columns = shape_.matrices * n();
    y->clear();
    for (int t = 0; t < shape_.m; ++t) {
      const float* row = &all[static_cast<size_t>(t * y_stride())];
      y->insert(y->end(), row, row + columns);
      for (int64_t c = columns; c < y_stride(); ++c) {
        if (!std::isnan(row[c])) *trouble = "wrote between rows";
      }
    }
    if (!buffer.GuardIntact()) *trouble = "wrote behind the output";
    return true;
  }

 private:
  int64_t y_stride() const { return shape_.matrices * n() + 8; }

  static float NearestF8(float v) {
    int exponent;
    std::frexp(v, &exponent);  // |v| in [2^(e-1), 2^e)
    const float step = std::ldexp(1.0f, std::max(exponent - 4, -9));
    return std::clamp(std::nearbyint(v / step) * step, -448.0f, 448.0f);
  }

  ProductShape shape_;
  DeviceFixture& device_;
  int64_t x_stride_;
  std::vector<RandomWeight> weights_;
  std::unique_ptr<PackedWeight> packed_;
  std::vector<float> x_;
  std::optional<GuardedBuffer> x_device_;
};

}  // namespace hadal::testing
