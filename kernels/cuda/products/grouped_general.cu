#include <type_traits>

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/products/grouped_general.h"
#include "kernels/cuda/weights/weight_view.cuh"

namespace hadal::cuda {
namespace {

constexpr int kTile = kGeneralTileRows;  // rows, outputs and k of a block's step
constexpr int kThreads = 256;
constexpr int kPerThread = kTile * kTile / kThreads;

struct Tiles {
  float x[kTile][kTile + 1];
  float gate[kTile][kTile + 1];
  float up[kTile][kTile + 1];
};

template <typename W>
__device__ void LoadWeights(const GroupedArgs& a, int expert, int64_t first, int64_t limit,
                            int64_t k0, float (*to)[kTile + 1]) {
  const int c = threadIdx.x % kTile;
  for (int r = threadIdx.x / kTile; r < kTile; r += kThreads / kTile) {
    const int64_t row = first + r;
    float value = 0;
    if (row < limit && k0 + c < a.k) {
      const float* scales = sizeof(W) == 1 ? a.w.scales(expert, row) : nullptr;
      value = WeightAt(a.w.matrix<W>(expert) + row * a.w.stride, scales, a.w.k_lead, k0 + c);
    }
    to[r][c] = value;
  }
}

template <typename Act>
__device__ void LoadActivations(const GroupedArgs& a, const RowTile& tile, int64_t k0,
                                float (*to)[kTile + 1]) {
  const int c = threadIdx.x % kTile;
  for (int r = threadIdx.x / kTile; r < kTile; r += kThreads / kTile) {
    float value = 0;
    if (r < tile.count && k0 + c < a.k) {
      const int row = tile.first + r;
      const int64_t from = a.source == nullptr ? row : a.source[row];
      value = ToFloat(static_cast<const Act*>(a.x)[from * a.x_stride + k0 + c]);
    }
    to[r][c] = value;
  }
}

__device__ RowTile TileOf(const GroupedArgs& a, int i) {
  if (a.tiles == nullptr) return {0, i * kTile, min(kTile, a.rows - i * kTile)};
  return i < *a.num_tiles ? a.tiles[i] : RowTile{0, 0, 0};
}

template <typename Act, typename W, bool kGated>
__global__ void __launch_bounds__(kThreads) GroupedGeneralKernel(GroupedArgs a) {
  __shared__ Tiles s;
  WaitForPrevious();
  AllowNext();
  const RowTile tile = TileOf(a, static_cast<int>(blockIdx.y));
  if (tile.count <= 0) return;
  const int64_t n0 = int64_t{blockIdx.x} * kTile;
  const int column = threadIdx.x % kTile, row0 = threadIdx.x / kTile * kPerThread;
  float gate[kPerThread] = {}, up[kPerThread] = {};
  for (int64_t k0 = 0; k0 < a.k; k0 += kTile) {
    LoadActivations<Act>(a, tile, k0, s.x);
    LoadWeights<W>(a, tile.expert, n0, a.n, k0, s.gate);
    if (kGated) LoadWeights<W>(a, tile.expert, a.n + n0, 2 * a.n, k0, s.up);
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < kTile; ++k) {
      const float g = s.gate[column][k], u = kGated ? s.up[column][k] : 0;
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        gate[i] += s.x[row0 + i][k] * g;
        if (kGated) up[i] += s.x[row0 + i][k] * u;
      }
    }
    __syncthreads();
  }
  if (n0 + column >= a.n) return;
  using Out = std::conditional_t<kGated, Act, float>;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (row0 + i >= tile.count) continue;
    const float value = kGated ? SiluMul(gate[i], up[i]) : gate[i];
    static_cast<Out*>(a.out)[(tile.first + row0 + i) * a.out_stride + n0 + column] =
        FromFloat<Out>(value);
  }
}

template <typename Act, typename W>
void LaunchGeneral(const GroupedArgs& a, bool gated, CudaContext& context) {
  const dim3 grid(static_cast<unsigned>((a.n + kTile - 1) / kTile),
                  static_cast<unsigned>(a.max_tiles));
  if (gated) {
    Launch(GroupedGeneralKernel<Act, W, true>, grid, kThreads, 0, context, a);
  } else {
    Launch(GroupedGeneralKernel<Act, W, false>, grid, kThreads, 0, context, a);
  }
}

template <typename Act>
void LaunchForWeight(const GroupedArgs& a, DType weight, bool gated, CudaContext& context) {
  switch (weight) {
    case DType::kF32:
      return LaunchGeneral<Act, float>(a, gated, context);
    case DType::kBF16:
      return LaunchGeneral<Act, bf16>(a, gated, context);
    case DType::kF8E4M3:
      return LaunchGeneral<Act, fp8>(a, gated, context);
  }
}

}  // namespace

void GroupedGeneral(const GroupedArgs& args, DType weight, bool gated, CudaContext& context) {
  if (args.max_tiles == 0 || args.n == 0) return;
  if (context.act == DType::kF32) {
    LaunchForWeight<float>(args, weight, gated, context);
  } else {
    LaunchForWeight<bf16>(args, weight, gated, context);
  }
}

}  // namespace hadal::cuda
