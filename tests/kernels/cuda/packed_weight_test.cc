#include "kernels/cuda/packed_weight.h"

#include <algorithm>
#include <random>

#include "tests/kernels/cpu/random_weight.h"
#include "tests/kernels/cuda/device_fixture.h"
#include "tests/support/catch.h"
#include "tests/support/random_elements.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::DeviceFixture;
using testing::RandomWeight;
using testing::WeightShape;

// A packed weight read back to the host.
struct HostWeight {
  const CudaPackedWeight* w;
  std::vector<uint8_t> data;
  std::vector<float> scale;

  HostWeight(const CudaPackedWeight& weight, CudaContext& context) : w(&weight) {
    HADAL_CUDA(cudaStreamSynchronize(context.stream));
    data.resize(static_cast<size_t>(w->count * w->n * w->stride * DTypeSize(w->dtype)));
    HADAL_CUDA(cudaMemcpy(data.data(), w->data, data.size(), cudaMemcpyDeviceToHost));
    if (w->dtype != DType::kF8E4M3) return;
    scale.resize(static_cast<size_t>(w->count * w->scale_n * w->k_blocks));
    HADAL_CUDA(cudaMemcpy(scale.data(), w->scale, scale.size() * 4, cudaMemcpyDeviceToHost));
  }

  double At(int64_t matrix, int64_t r, int64_t c) const {
    const auto i = static_cast<size_t>((matrix * w->n + r) * w->stride + c);
    if (w->dtype == DType::kF32) return reinterpret_cast<const float*>(data.data())[i];
    if (w->dtype == DType::kBF16) {
      return Bf16ToFloat(reinterpret_cast<const bf16_t*>(data.data())[i]);
    }
    if (c >= w->k) return data[i];
    const int64_t row = matrix * w->scale_n + r / w->scale_rows;
    const double s = scale[static_cast<size_t>(row * w->k_blocks + (c + w->k_lead) / 128)];
    return s * F8E4M3ToFloat(data[i]);
  }
};

// Matrices whose stacked sources have the shapes `shapes`, each drawn anew.
void CheckRoundTrip(int count, const std::vector<WeightShape>& shapes, DeviceFixture& device,
                    std::mt19937_64& rng) {
  std::vector<std::vector<RandomWeight>> weights(static_cast<size_t>(count));
  std::vector<StackedSource> matrices(static_cast<size_t>(count));
  int64_t n = 0;
  for (const WeightShape& shape : shapes) n += shape.n;
  for (size_t i = 0; i < weights.size(); ++i) {
    for (const WeightShape& shape : shapes) weights[i].emplace_back(shape, rng);
    for (const RandomWeight& weight : weights[i]) matrices[i].push_back(weight.source());
  }
  const auto packed = PackCudaWeight(matrices, device.context);
  const auto& w = static_cast<const CudaPackedWeight&>(*packed);
  CAPTURE(count, n, w.k, DTypeName(w.dtype), shapes.size(), w.scale_rows, w.k_lead);
  CHECK(w.count == count);
  CHECK(w.n == n);
  CHECK(w.k == shapes[0].k);
  CHECK(w.stride % 16 == 0);
  CHECK(w.bytes <= count * CudaPackedBytes(n, w.k, w.dtype));
  const HostWeight host(w, device.context);
  int64_t wrong = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    int64_t first = 0;
    for (const RandomWeight& weight : weights[i]) {
      const int64_t rows = weight.source().n;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < w.stride; ++c) {
          const double expected = c < w.k ? weight.At(r, c) : 0;
          const double actual = host.At(static_cast<int64_t>(i), first + r, c);
          if (actual != expected && ++wrong < 5) {
            UNSCOPED_INFO("matrix " << i << " row " << first + r << " column " << c << ": "
                                    << actual << ", not " << expected);
          }
        }
      }
      first += rows;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("a packed weight holds the sources' values, zeros behind each row") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    for (const bool transposed : {false, true}) {
      const auto shape = [&](int64_t n, int64_t k, int64_t row_offset, int64_t col_offset) {
        return WeightShape{.n = n,
                           .k = k,
                           .dtype = dtype,
                           .transposed = transposed,
                           .row_offset = row_offset,
                           .col_offset = col_offset};
      };
      CheckRoundTrip(1, {shape(1, 1, 0, 0)}, device, rng);
      CheckRoundTrip(1, {shape(256, 512, 0, 0)}, device, rng);
      CheckRoundTrip(3, {shape(130, 67, 5, 3)}, device, rng);
      CheckRoundTrip(2, {shape(256, 128, 128, 256), shape(128, 128, 0, 128)}, device, rng);
      CheckRoundTrip(2, {shape(64, 200, 64, 64), shape(64, 200, 192, 192)}, device, rng);
      CheckRoundTrip(5, {shape(100, 40, 0, 128), shape(28, 40, 256, 0), shape(3, 40, 128, 128)},
                     device, rng);
    }
  }
}

TEST_CASE("a weight larger than the upload buffers arrives whole") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16);
  CheckRoundTrip(3, {{.n = 3001, .k = 5000, .dtype = DType::kBF16}}, device, rng);
}

// Slices of random matrices, the same once to be read and once to be made.
struct RandomSources {
  std::vector<RandomWeight> shapes;  // own the scales
  std::vector<std::vector<uint8_t>> bytes;
  std::vector<StackedSource> read, made;

  RandomSources(int count, const std::vector<WeightShape>& pieces, std::mt19937_64& rng)
      : read(static_cast<size_t>(count)), made(static_cast<size_t>(count)) {
    for (int i = 0; i < count; ++i) {
      for (const WeightShape& piece : pieces) Add(static_cast<size_t>(i), piece, rng);
    }
  }

  void Add(size_t matrix, const WeightShape& shape, std::mt19937_64& rng) {
    WeightSource s = shapes.emplace_back(shape, rng).source();
    const RandomElements random{.seed = rng(), .first = static_cast<int64_t>(rng() >> 23)};
    const int64_t rows = s.transposed ? s.k : s.n;
    s.data = bytes.emplace_back(testing::RandomBytes(s.dtype, random, rows * s.row_stride)).data();
    read[matrix].push_back(s);
    s.data = bytes.emplace_back(bytes.back().size(), uint8_t{0x55}).data();  // not to be read
    s.random = random;
    made[matrix].push_back(s);
  }
};

// -1: none.
template <typename T>
int64_t FirstDifference(const std::vector<T>& a, const std::vector<T>& b) {
  const auto [at, other] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  return at == a.end() && other == b.end() ? -1 : at - a.begin();
}

void CheckSameMemory(const std::vector<StackedSource>& read, const std::vector<StackedSource>& made,
                     DeviceFixture& device) {
  const auto expected = PackCudaWeight(read, device.context);
  const auto actual = PackCudaWeight(made, device.context);
  const auto& w = static_cast<const CudaPackedWeight&>(*actual);
  CAPTURE(w.count, w.n, w.k, DTypeName(w.dtype), w.scale_rows, w.k_lead);
  CHECK(w.bytes == expected->bytes);
  const HostWeight from_host(static_cast<const CudaPackedWeight&>(*expected), device.context);
  const HostWeight on_device(w, device.context);
  CHECK(FirstDifference(on_device.data, from_host.data) == -1);
  CHECK(FirstDifference(on_device.scale, from_host.scale) == -1);
}

TEST_CASE("random weights made on the device are those of the host, bit by bit") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    for (const bool transposed : {false, true}) {
      const auto check = [&](int count, std::vector<WeightShape> pieces) {
        for (WeightShape& piece : pieces) piece.dtype = dtype, piece.transposed = transposed;
        const RandomSources sources(count, pieces, rng);
        CAPTURE(transposed, pieces.size());
        CheckSameMemory(sources.read, sources.made, device);
      };
      check(1, {{.n = 1, .k = 1}});
      check(1, {{.n = 256, .k = 512}});
      check(3, {{.n = 131, .k = 67, .row_offset = 5, .col_offset = 3}});
      check(2, {{.n = 128, .k = 1001, .col_offset = 129}, {.n = 77, .k = 1001, .col_offset = 1}});
      check(5, {{.n = 100, .k = 40}, {.n = 28, .k = 40, .row_offset = 256}, {.n = 3, .k = 40}});
      check(75, {{.n = 7, .k = 19}, {.n = 2, .k = 19}});  // more than one launch takes
      check(1, {{.n = 70001, .k = 3}});
    }
  }
}

TEST_CASE("random weights beside others, or of different places in a scale block, are read") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16);
  const WeightShape shape{.n = 33, .k = 130, .dtype = DType::kF8E4M3};
  RandomSources sources(2, {shape, shape}, rng);
  for (size_t i = 0; i < 2; ++i) {
    for (size_t j = 0; j < 2; ++j) sources.made[i][j].data = sources.read[i][j].data;
  }
  std::vector<StackedSource> mixed = sources.made;
  mixed[1][0].random.reset();
  CheckSameMemory(sources.read, mixed, device);
  for (std::vector<StackedSource>* matrices : {&sources.read, &sources.made}) {
    (*matrices)[1][0].col_offset = 1;
  }
  CheckSameMemory(sources.read, sources.made, device);
}

TEST_CASE("FP8 stays near one byte an element on the device") {
  const int64_t elements = 2048 * 7168;
  CHECK(CudaPackedBytes(2048, 7168, DType::kBF16) == 2 * elements);
  CHECK(static_cast<double>(CudaPackedBytes(2048, 7168, DType::kF8E4M3)) <
        1.01 * static_cast<double>(elements));
}

}  // namespace
}  // namespace hadal
