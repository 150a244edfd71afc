#include "kernels/cuda/weights/packed_weight.h"

#include <algorithm>
#include <random>

#include "kernels/cuda/cuda_backend.h"
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

using MatrixShapes = std::vector<WeightShape>;  // of the stacked sources of a matrix

// Matrices of random sources, packed for `use` as `dtype`.
void CheckRoundTrip(const std::vector<MatrixShapes>& shapes, WeightUse use, DType dtype,
                    DeviceFixture& device, std::mt19937_64& rng) {
  std::vector<std::vector<RandomWeight>> weights(shapes.size());
  std::vector<StackedSource> matrices(shapes.size());
  const auto count = static_cast<int64_t>(shapes.size());
  int64_t n = 0;
  for (const WeightShape& shape : shapes[0]) n += shape.n;
  for (size_t i = 0; i < weights.size(); ++i) {
    for (const WeightShape& shape : shapes[i]) weights[i].emplace_back(shape, rng);
    for (const RandomWeight& weight : weights[i]) matrices[i].push_back(weight.source());
  }
  const auto packed = PackCudaWeight(matrices, device.context, use);
  const auto& w = static_cast<const CudaPackedWeight&>(*packed);
  CAPTURE(count, n, w.k, DTypeName(w.dtype), shapes[0].size(), w.scale_rows, w.k_lead);
  const bool widened = dtype != shapes[0][0].dtype;
  REQUIRE(w.dtype == dtype);
  CHECK(w.count == count);
  CHECK(w.n == n);
  CHECK(w.k == shapes[0][0].k);
  CHECK(w.stride % 16 == 0);
  CHECK(w.bytes <= count * CudaPackedBytes(n, w.k, dtype));
  if (dtype != DType::kF8E4M3) CHECK(w.bytes == count * n * w.stride * DTypeSize(dtype));
  const HostWeight host(w, device.context);
  int64_t wrong = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    int64_t first = 0;
    for (const RandomWeight& weight : weights[i]) {
      const int64_t rows = weight.source().n;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < w.stride; ++c) {
          double expected = c < w.k ? weight.At(r, c) : 0;
          if (widened) expected = Bf16ToFloat(FloatToBf16(static_cast<float>(expected)));
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

// The same shapes in every matrix, each drawn anew.
void CheckRoundTrip(size_t count, const MatrixShapes& shapes, DeviceFixture& device,
                    std::mt19937_64& rng) {
  CheckRoundTrip(std::vector(count, shapes), WeightUse::kStream, shapes[0].dtype, device, rng);
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

// Rows [first, first + size) of the `width` rows of each head of a matrix with 77 columns.
std::vector<MatrixShapes> Heads(DType dtype, bool transposed, int heads, int64_t width,
                                int64_t first, int64_t size) {
  std::vector<MatrixShapes> shapes;
  for (int h = 0; h < heads; ++h) {
    shapes.push_back({{.n = transposed ? 77 : size,
                       .k = transposed ? size : 77,
                       .dtype = dtype,
                       .transposed = transposed,
                       .row_offset = (3 + h) * width + first}});
  }
  return shapes;
}

TEST_CASE("FP8 heads beside bf16 activations are packed in bf16, as element times scale") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16);
  const auto check = [&](const std::vector<MatrixShapes>& shapes) {
    CheckRoundTrip(shapes, WeightUse::kHeads, DType::kBF16, device, rng);
  };
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    for (const bool transposed : {false, true}) {
      check(Heads(dtype, transposed, 16, 256, 128, 128));
      check(Heads(dtype, transposed, 1, 3, 1, 1));
      check(Heads(dtype, transposed, 5, 256, 56, 200));  // transposed: all leave 56 inputs out...
      check(Heads(dtype, transposed, 7, 67, 33, 34));    // ... each another number of them
      const auto part = [&](int64_t n, int64_t row, int64_t column) {
        return WeightShape{.n = n, .k = 300, .dtype = dtype, .transposed = transposed,
                           .row_offset = row, .col_offset = column};
      };
      check({{part(64, 5, 133), part(31, 133, 5)}, {part(70, 5, 5), part(25, 133, 133)}});
    }
  }
}

TEST_CASE("FP8 heads keep one byte beside float activations, where one place describes them") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kF32);
  const DType f8 = DType::kF8E4M3;
  const auto same = Heads(f8, /*transposed=*/true, 5, 256, 56, 200);
  const auto different = Heads(f8, /*transposed=*/true, 7, 67, 33, 34);
  CheckRoundTrip(same, WeightUse::kHeads, f8, device, rng);
  CheckRoundTrip(different, WeightUse::kHeads, DType::kBF16, device, rng);
}

TEST_CASE("packed heads take the memory that was said before") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  constexpr std::pair<int64_t, int64_t> kSizes[] = {{512, 128}, {128, 512}, {130, 67}};
  for (const DType act : {DType::kBF16, DType::kF32}) {
    const auto backend = std::move(*MakeCudaBackend({.activation = act}));
    for (const auto& [n, k] : kSizes) {
      const RandomWeight weight({.n = n, .k = k, .dtype = DType::kF8E4M3}, rng);
      const std::vector<StackedSource> heads(3, {weight.source()});
      const int64_t said = backend->PackedBytes(n, k, DType::kF8E4M3, WeightUse::kHeads);
      const int64_t stream = backend->PackedBytes(n, k, DType::kF8E4M3, WeightUse::kStream);
      CAPTURE(DTypeName(act), n, k, said, stream);
      const int64_t bytes = backend->Pack(heads, WeightUse::kHeads)->bytes;
      CHECK(bytes <= 3 * said);
      CHECK((act == DType::kBF16 ? bytes == 3 * 2 * n * ((k + 15) / 16 * 16) : said == stream));
      CHECK(backend->Pack(heads, WeightUse::kStream)->bytes <= 3 * stream);
    }
  }
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
                     WeightUse use, DeviceFixture& device) {
  const auto expected = PackCudaWeight(read, device.context, use);
  const auto actual = PackCudaWeight(made, device.context, use);
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
        CheckSameMemory(sources.read, sources.made, WeightUse::kStream, device);
        CheckSameMemory(sources.read, sources.made, WeightUse::kHeads, device);
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

TEST_CASE("random weights beside others are read; of different places in a scale block, made") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16);
  const WeightShape shape{.n = 33, .k = 130, .dtype = DType::kF8E4M3};
  RandomSources sources(2, {shape, shape}, rng);
  std::vector<StackedSource> mixed = sources.made;
  for (size_t i = 0; i < 2; ++i) {
    for (size_t j = 0; j < 2; ++j) mixed[i][j].data = sources.read[i][j].data;
  }
  mixed[1][0].random.reset();
  CheckSameMemory(sources.read, mixed, WeightUse::kStream, device);
  for (std::vector<StackedSource>* matrices : {&sources.read, &sources.made}) {
    for (WeightSource& source : (*matrices)[1]) source.col_offset = 1;
  }
  CheckSameMemory(sources.read, sources.made, WeightUse::kStream, device);
}

TEST_CASE("FP8 stays near one byte an element on the device") {
  const int64_t elements = 2048 * 7168;
  CHECK(CudaPackedBytes(2048, 7168, DType::kBF16) == 2 * elements);
  CHECK(static_cast<double>(CudaPackedBytes(2048, 7168, DType::kF8E4M3)) <
        1.01 * static_cast<double>(elements));
}

}  // namespace
}  // namespace hadal
