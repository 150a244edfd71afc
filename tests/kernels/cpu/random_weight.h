#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"

namespace hadal::testing {

// Where a slice stands in its whole matrix, and how it is stored.
struct WeightShape {
  int64_t n = 0;
  int64_t k = 0;
  DType dtype = DType::kBF16;
  bool transposed = false;
  int64_t row_offset = 0;   // of the slice in the stored matrix
  int64_t col_offset = 0;
  int64_t scale_block = 128;
};

// A random slice of a random matrix with everything a WeightSource points to, and its true values.
class RandomWeight {
 public:
  template <typename Rng>
  RandomWeight(const WeightShape& shape, Rng& rng) : shape_(shape) {
    rows_ = shape.row_offset + (shape.transposed ? shape.k : shape.n) + 3;
    cols_ = shape.col_offset + (shape.transposed ? shape.n : shape.k) + 5;
    scale_cols_ = (cols_ + shape.scale_block - 1) / shape.scale_block;
    const int64_t scale_rows = (rows_ + shape.scale_block - 1) / shape.scale_block;
    std::uniform_real_distribution<float> scale(0.25f, 4.0f);
    scales_.resize(static_cast<size_t>(scale_rows * scale_cols_));
    for (float& s : scales_) s = scale(rng);
    std::normal_distribution<float> normal(0, 0.5f);
    data_.resize(static_cast<size_t>(rows_ * cols_ * DTypeSize(shape.dtype)));
    for (int64_t i = 0; i < rows_ * cols_; ++i) Set(i, normal(rng), static_cast<uint32_t>(rng()));
  }

  WeightSource source() const {
    WeightSource s;
    s.data = data_.data() + (shape_.row_offset * cols_ + shape_.col_offset) *
                                DTypeSize(shape_.dtype);
    s.dtype = shape_.dtype;
    s.n = shape_.n;
    s.k = shape_.k;
    s.row_stride = cols_;
    s.transposed = shape_.transposed;
    if (shape_.dtype == DType::kF8E4M3) {
      s.scale = scales_.data();
      s.scale_stride = scale_cols_;
      s.scale_block = shape_.scale_block;
      s.row_offset = shape_.row_offset;
      s.col_offset = shape_.col_offset;
    }
    return s;
  }

  double At(int64_t n, int64_t k) const {
    const int64_t r = shape_.row_offset + (shape_.transposed ? k : n);
    const int64_t c = shape_.col_offset + (shape_.transposed ? n : k);
    const int64_t i = r * cols_ + c;
    if (shape_.dtype == DType::kF32) return reinterpret_cast<const float*>(data_.data())[i];
    if (shape_.dtype == DType::kBF16) {
      return Bf16ToFloat(reinterpret_cast<const bf16_t*>(data_.data())[i]);
    }
    const double scale = scales_[static_cast<size_t>(r / shape_.scale_block * scale_cols_ +
                                                     c / shape_.scale_block)];
    return scale * F8E4M3ToFloat(data_[static_cast<size_t>(i)]);
  }

 private:
  void Set(int64_t i, float normal, uint32_t bits) {
    if (shape_.dtype == DType::kF32) {
      reinterpret_cast<float*>(data_.data())[i] = normal;
    } else if (shape_.dtype == DType::kBF16) {
      reinterpret_cast<bf16_t*>(data_.data())[i] = FloatToBf16(normal);
    } else {
      auto code = static_cast<uint8_t>(bits >> 7);
      if ((code & 0x7f) == 0x7f) code = 0;
      data_[static_cast<size_t>(i)] = code;
    }
  }

  WeightShape shape_;
  int64_t rows_ = 0, cols_ = 0, scale_cols_ = 0;
  std::vector<uint8_t> data_;
  std::vector<float> scales_;
};

// ||actual - expected|| / ||expected||.
inline double RelativeError(const std::vector<float>& actual, const std::vector<double>& expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(actual[i] - expected[i], 2);
    norm += expected[i] * expected[i];
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

template <typename Rng>
std::vector<float> RandomFloats(int64_t n, Rng& rng, float deviation = 1) {
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = normal(rng);
  return x;
}

}  // namespace hadal::testing
