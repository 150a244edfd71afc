#include <algorithm>

#include "common/random_weights.h"
#include "kernels/cuda/device/cuda_check.h"
#include "kernels/cuda/weights/fill_random.h"

namespace hadal {
namespace {

constexpr int kThreads = 256;
constexpr int kBatch = 64;  // sources of one launch; experts come by the hundred

// One source and its rows in the packed matrices.
struct Piece {
  uint64_t seed = 0;
  int64_t first = 0;        // index of its element (0, 0) in the sequence
  int64_t output_step = 0;  // what the next output and the next input add to the index
  int64_t input_step = 0;
  int64_t n = 0;
  int64_t row = 0;          // packed row of its output 0, counted through all matrices
};

struct Batch {
  Piece pieces[kBatch];
};

// Block (r, i) makes row r of piece i, where there is one.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    FillRandomKernel(const __grid_constant__ Batch batch, int64_t k, int64_t stride, T* out) {
  const Piece& piece = batch.pieces[blockIdx.y];
  const int64_t r = blockIdx.x;
  if (r >= piece.n) return;
  T* row = out + (piece.row + r) * stride;
  const int64_t first = piece.first + r * piece.output_step;
  for (int64_t c = threadIdx.x; c < stride; c += kThreads) {
    row[c] = c < k ? RandomElement<T>(piece.seed, first + c * piece.input_step) : T{0};
  }
}

std::vector<Piece> PiecesOf(const std::vector<StackedSource>& matrices) {
  std::vector<Piece> pieces;
  int64_t row = 0;
  for (const StackedSource& sources : matrices) {
    for (const WeightSource& s : sources) {
      pieces.push_back({.seed = s.random->seed,
                        .first = s.random->first,
                        .output_step = s.transposed ? 1 : s.row_stride,
                        .input_step = s.transposed ? s.row_stride : 1,
                        .n = s.n,
                        .row = row});
      row += s.n;
    }
  }
  return pieces;
}

template <typename T>
void Fill(const std::vector<Piece>& pieces, const CudaPackedWeight& w, CudaContext& context) {
  T* out = static_cast<T*>(const_cast<void*>(w.data));
  for (size_t begin = 0; begin < pieces.size(); begin += kBatch) {
    const size_t count = std::min<size_t>(kBatch, pieces.size() - begin);
    Batch batch;
    int64_t rows = 0;
    for (size_t i = 0; i < count; ++i) {
      batch.pieces[i] = pieces[begin + i];
      rows = std::max(rows, batch.pieces[i].n);
    }
    if (rows == 0) continue;
    const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(count));
    FillRandomKernel<T><<<grid, kThreads, 0, context.stream>>>(batch, w.k, w.stride, out);
    HADAL_CUDA_LAUNCHED();
  }
}

}  // namespace

bool AllRandom(const std::vector<StackedSource>& matrices) {
  return std::ranges::all_of(matrices, [](const StackedSource& sources) {
    return std::ranges::all_of(sources, [](const WeightSource& s) { return s.random.has_value(); });
  });
}

void FillRandom(const std::vector<StackedSource>& matrices, const CudaPackedWeight& w,
                CudaContext& context) {
  const std::vector<Piece> pieces = PiecesOf(matrices);
  switch (w.dtype) {
    case DType::kF32: Fill<float>(pieces, w, context); break;
    case DType::kBF16: Fill<bf16_t>(pieces, w, context); break;
    case DType::kF8E4M3: Fill<uint8_t>(pieces, w, context); break;
  }
  HADAL_CUDA(cudaStreamSynchronize(context.stream));
}

}  // namespace hadal
