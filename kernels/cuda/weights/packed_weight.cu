#include <algorithm>
#include <cstring>
#include <functional>
#include <thread>

#include "common/rounding.h"
#include "kernels/cuda/device/cuda_check.h"
#include "kernels/cuda/weights/fill_random.h"
#include "kernels/cuda/weights/packed_weight.h"
#include "kernels/cuda/weights/widen.h"

namespace hadal {
namespace {

constexpr int64_t kScaleBlock = 128;
constexpr int64_t kRowAlign = 16;     // elements
constexpr int64_t kScaleAlign = 256;  // bytes; where the scales start behind the elements

// Offset of a source's first output (input) in the whole matrix that its scales describe.
int64_t OutputOffset(const WeightSource& s) { return s.transposed ? s.col_offset : s.row_offset; }
int64_t InputOffset(const WeightSource& s) { return s.transposed ? s.row_offset : s.col_offset; }

float ScaleAt(const WeightSource& s, int64_t output, int64_t input_block) {
  const int64_t output_block = (OutputOffset(s) + output) / kScaleBlock;
  const int64_t row = s.transposed ? input_block : output_block;
  const int64_t col = s.transposed ? output_block : input_block;
  return s.scale[row * s.scale_stride + col];
}

// Inputs of its first scale block that a source leaves out.
int BlockPlace(const WeightSource& s) { return static_cast<int>(InputOffset(s) % kScaleBlock); }

// Two pinned buffers: the host fills one while the other travels.
class Uploader {
 public:
  static constexpr int64_t kBytes = 32 << 20;

  Uploader() {
    for (int i = 0; i < 2; ++i) {
      HADAL_CUDA(cudaMallocHost(&buffers_[i], kBytes));
      HADAL_CUDA(cudaEventCreateWithFlags(&events_[i], cudaEventDisableTiming));
    }
  }

  // The buffer to fill next; waits until its last contents have left.
  char* Next() {
    at_ = 1 - at_;
    HADAL_CUDA(cudaEventSynchronize(events_[at_]));
    return static_cast<char*>(buffers_[at_]);
  }

  void Send(void* device, int64_t bytes, cudaStream_t stream) {
    HADAL_CUDA(cudaMemcpyAsync(device, buffers_[at_], static_cast<size_t>(bytes),
                               cudaMemcpyHostToDevice, stream));
    HADAL_CUDA(cudaEventRecord(events_[at_], stream));
  }

 private:
  void* buffers_[2] = {};
  cudaEvent_t events_[2] = {};
  int at_ = 0;
};

// Weights are packed by the thousand; pinning costs more than copying. Lives as long as the thread
// that packs.
Uploader& ThreadUploader() {
  static thread_local Uploader uploader;
  return uploader;
}

void ParallelFor(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
  const int64_t threads =
      std::clamp<int64_t>(CeilDiv(count, grain), 1, std::min<int64_t>(8, cores));
  const int64_t share = CeilDiv(count, threads);
  std::vector<std::thread> others;
  for (int64_t i = 1; i < threads; ++i) {
    others.emplace_back([&, i] { body(i * share, std::min(count, (i + 1) * share)); });
  }
  body(0, std::min(count, share));
  for (std::thread& thread : others) thread.join();
}

// Writes rows [begin, end) of a source to dst, `stride` elements apart, zeros behind each.
template <typename T>
void CopyRows(const WeightSource& s, int64_t begin, int64_t end, int64_t stride, T* dst) {
  const T* src = static_cast<const T*>(s.data);
  const auto tail = static_cast<size_t>(stride - s.k) * sizeof(T);
  for (int64_t r = begin; r < end; ++r) {
    T* row = dst + (r - begin) * stride;
    if (!s.transposed)
      std::memcpy(row, src + r * s.row_stride, static_cast<size_t>(s.k) * sizeof(T));
    std::memset(row + s.k, 0, tail);
  }
  if (!s.transposed) return;
  constexpr int64_t kTile = 32;  // both sides of a tile stay in the first-level cache
  for (int64_t r0 = begin; r0 < end; r0 += kTile) {
    for (int64_t c0 = 0; c0 < s.k; c0 += kTile) {
      for (int64_t c = c0; c < std::min(s.k, c0 + kTile); ++c) {
        for (int64_t r = r0; r < std::min(end, r0 + kTile); ++r) {
          dst[(r - begin) * stride + c] = src[c * s.row_stride + r];
        }
      }
    }
  }
}

void CopyRows(const WeightSource& s, int64_t begin, int64_t end, int64_t stride, char* dst) {
  switch (s.dtype) {
    case DType::kF32:
      return CopyRows(s, begin, end, stride, reinterpret_cast<uint32_t*>(dst));
    case DType::kBF16:
      return CopyRows(s, begin, end, stride, reinterpret_cast<uint16_t*>(dst));
    case DType::kF8E4M3:
      return CopyRows(s, begin, end, stride, reinterpret_cast<uint8_t*>(dst));
  }
}

// Rows [begin, end) of all matrices, counted through, to dst.
void FillRows(const std::vector<StackedSource>& matrices, const CudaPackedWeight& w, int64_t begin,
              int64_t end, char* dst) {
  const int64_t row_bytes = w.stride * DTypeSize(w.dtype);
  int64_t matrix = begin / w.n;
  int64_t first = matrix * w.n;  // row of the source under hand
  while (begin < end) {
    for (const WeightSource& s : matrices[static_cast<size_t>(matrix)]) {
      const int64_t stop = std::min(end, first + s.n);
      if (begin < stop) {
        CopyRows(s, begin - first, stop - first, w.stride, dst);
        dst += (stop - begin) * row_bytes;
        begin = stop;
      }
      first += s.n;
    }
    ++matrix;
  }
}

void UploadElements(const std::vector<StackedSource>& matrices, const CudaPackedWeight& w,
                    CudaContext& context) {
  const int64_t row_bytes = w.stride * DTypeSize(w.dtype);
  const int64_t rows = w.count * w.n;
  HADAL_CHECK(row_bytes <= Uploader::kBytes, "a row of {} bytes", row_bytes);
  const int64_t slab = Uploader::kBytes / row_bytes;
  char* device = const_cast<char*>(w.matrix(0));
  Uploader& uploader = ThreadUploader();
  for (int64_t begin = 0; begin < rows; begin += slab) {
    const int64_t count = std::min(slab, rows - begin);
    char* host = uploader.Next();
    const int64_t grain = std::max<int64_t>(1, (1 << 20) / row_bytes);
    ParallelFor(count, grain, [&](int64_t from, int64_t to) {
      if (from < to) FillRows(matrices, w, begin + from, begin + to, host + from * row_bytes);
    });
    uploader.Send(device + begin * row_bytes, count * row_bytes, context.stream);
  }
}

void UploadScales(const std::vector<StackedSource>& matrices, const CudaPackedWeight& w,
                  CudaContext& context) {
  std::vector<float> scale(static_cast<size_t>(w.count * w.scale_n * w.k_blocks));
  float* out = scale.data();
  for (const StackedSource& sources : matrices) {
    for (const WeightSource& s : sources) {
      const int64_t first = InputOffset(s) / kScaleBlock;
      for (int64_t r = 0; r < s.n; r += w.scale_rows) {
        for (int64_t b = 0; b < w.k_blocks; ++b) *out++ = ScaleAt(s, r, first + b);
      }
    }
  }
  HADAL_CUDA(cudaMemcpyAsync(const_cast<float*>(w.scale), scale.data(),
                             scale.size() * sizeof(float), cudaMemcpyHostToDevice, context.stream));
  HADAL_CUDA(cudaStreamSynchronize(context.stream));
}

// Checks that the sources of all matrices agree; sets everything but the pointers, for elements of
// `type`.
void SetShape(const std::vector<StackedSource>& matrices, DType type, CudaPackedWeight* w) {
  const WeightSource& first = matrices.front().front();
  const bool f8 = first.dtype == DType::kF8E4M3;
  bool whole_blocks = true;
  for (const StackedSource& sources : matrices) {
    int64_t n = 0;
    for (const WeightSource& s : sources) {
      HADAL_CHECK(s.k == first.k && s.dtype == first.dtype, "stacked sources differ in k or dtype");
      if (f8) {
        HADAL_CHECK(s.scale != nullptr && s.scale_block == kScaleBlock, "FP8 needs 128x128 scales");
        HADAL_CHECK(BlockPlace(s) == BlockPlace(sources.front()), "stacked blocks are not aligned");
      }
      whole_blocks = whole_blocks && n % kScaleBlock == 0 && OutputOffset(s) % kScaleBlock == 0;
      n += s.n;
    }
    HADAL_CHECK(w->n == 0 || w->n == n, "matrices of {} and {} outputs", w->n, n);
    w->n = n;
  }
  w->count = static_cast<int>(matrices.size());
  w->k = first.k;
  w->dtype = type;
  w->stride = RoundUp(w->k, kRowAlign);
  w->bytes = w->count * w->n * w->stride * DTypeSize(w->dtype);
  if (type != DType::kF8E4M3) return;
  w->k_lead = BlockPlace(first);
  w->k_blocks = CeilDiv(w->k_lead + w->k, kScaleBlock);
  w->scale_rows = whole_blocks ? kScaleBlock : 1;
  w->scale_n = CeilDiv(w->n, w->scale_rows);
}

void* Malloc(int64_t bytes) {
  void* memory = nullptr;
  HADAL_CUDA(cudaMalloc(&memory, static_cast<size_t>(std::max<int64_t>(bytes, 1))));
  return memory;
}

// REQUIRES: FP8 matrices have one BlockPlace().
std::unique_ptr<CudaPackedWeight> PackAsStored(const std::vector<StackedSource>& matrices,
                                               CudaContext& context) {
  auto w = std::make_unique<CudaPackedWeight>();
  SetShape(matrices, matrices.front().front().dtype, w.get());
  const int64_t scale_bytes = w->count * w->scale_n * w->k_blocks * int64_t{sizeof(float)};
  const int64_t scale_at = RoundUp(w->bytes, kScaleAlign);
  char* memory = static_cast<char*>(Malloc(scale_bytes > 0 ? scale_at + scale_bytes : w->bytes));
  w->data = memory;
  w->bytes += scale_bytes;
  if (AllRandom(matrices)) {
    FillRandom(matrices, *w, context);
  } else {
    UploadElements(matrices, *w, context);
  }
  if (scale_bytes > 0) {
    w->scale = reinterpret_cast<const float*>(memory + scale_at);
    UploadScales(matrices, *w, context);
  }
  return w;
}

// FP8 matrices in bf16, each run of one BlockPlace() by way of its codes.
std::unique_ptr<CudaPackedWeight> PackWidened(const std::vector<StackedSource>& matrices,
                                              CudaContext& context) {
  auto w = std::make_unique<CudaPackedWeight>();
  SetShape(matrices, DType::kBF16, w.get());
  w->data = Malloc(w->bytes);
  for (auto begin = matrices.begin(); begin != matrices.end();) {
    const auto end = std::find_if(begin, matrices.end(), [&](const StackedSource& sources) {
      return BlockPlace(sources.front()) != BlockPlace(begin->front());
    });
    const auto codes = PackAsStored({begin, end}, context);
    char* out = const_cast<char*>(w->matrix(begin - matrices.begin()));
    cuda::WidenF8(*codes, 0, codes->count, w->dtype, out, context);
    HADAL_CUDA(cudaStreamSynchronize(context.stream));
    begin = end;
  }
  return w;
}

}  // namespace

CudaPackedWeight::~CudaPackedWeight() { cudaFree(const_cast<void*>(data)); }

std::unique_ptr<PackedWeight> PackCudaWeight(const std::vector<StackedSource>& matrices,
                                             CudaContext& context, WeightUse use) {
  HADAL_CHECK(!matrices.empty() && !matrices.front().empty(), "nothing to pack");
  const WeightSource& first = matrices.front().front();
  if (first.dtype != PackedType(first.dtype, use, context.act)) {
    return PackWidened(matrices, context);
  }
  // One k_lead must describe all FP8 ones. Of no released model do heads begin at different places.
  const bool one_place = std::ranges::all_of(matrices, [&](const StackedSource& sources) {
    return BlockPlace(sources.front()) == BlockPlace(first);
  });
  const bool described = one_place || first.dtype != DType::kF8E4M3;
  return described ? PackAsStored(matrices, context) : PackWidened(matrices, context);
}

int64_t CudaPackedBytes(int64_t n, int64_t k, DType type) {
  const int64_t elements = n * RoundUp(k, kRowAlign) * DTypeSize(type);
  if (type != DType::kF8E4M3) return elements;
  // Whether blocks are whole depends on where the slices start. In a tensor-parallel split they
  // start at multiples of their size, of which two may be stacked: these sizes are safe.
  const bool whole = n % (2 * kScaleBlock) == 0 && k % kScaleBlock == 0;
  const int64_t scale_n = whole ? n / kScaleBlock : n;
  const int64_t k_blocks = CeilDiv(k, kScaleBlock) + (whole ? 0 : 1);
  return elements + scale_n * k_blocks * int64_t{sizeof(float)};
}

}  // namespace hadal
