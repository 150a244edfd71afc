#include <algorithm>

#include "kernels/cuda/experts/moe.h"
#include "kernels/cuda/experts/moe_combine.h"
#include "kernels/cuda/experts/moe_few.h"
#include "kernels/cuda/experts/moe_stream.h"
#include "kernels/cuda/experts/moe_tile.h"
#include "kernels/cuda/products/grouped_general.h"
#include "kernels/cuda/routing/ops.h"
#include "kernels/cuda/weights/weight_view.cuh"

namespace hadal::cuda {
namespace {

const CudaPackedWeight& Cuda(const PackedWeight* w) {
  return *static_cast<const CudaPackedWeight*>(w);
}

int64_t RoundUp16(int64_t n) { return (n + 15) / 16 * 16; }
int CeilDiv(int a, int b) { return (a + b - 1) / b; }

// The shared MLP over all tokens, in float: [tokens, dim].
float* SharedGeneral(const MoeParams& p, CudaContext& context) {
  char* hidden = context.scratch.Allocate<char>(p.tokens * p.shared.width * DTypeSize(context.act));
  float* out = context.scratch.Allocate<float>(p.tokens * p.dim);
  GroupedArgs a{.x = p.x,
                .x_stride = p.dim,
                .max_tiles = CeilDiv(p.tokens, kGeneralTileRows),
                .rows = p.tokens,
                .w = ViewOf(p.shared.w13),
                .n = p.shared.width,
                .k = p.dim,
                .out = hidden,
                .out_stride = p.shared.width};
  GroupedGeneral(a, p.shared.w13->dtype, true, context);
  a.x = hidden;
  a.x_stride = a.k = p.shared.width;
  a.w = ViewOf(p.shared.w2);
  a.n = a.out_stride = p.dim;
  a.out = out;
  GroupedGeneral(a, p.shared.w2->dtype, false, context);
  return out;
}

void RunGeneral(const MoeParams& p, CudaContext& context) {
  DeviceScratch::Scope scope(context.scratch);
  const int rows = p.tokens * p.top_k;
  const MoeRows sorted =
      SortRows({p.ids, p.local_index, p.tokens, p.top_k, p.experts, Cuda(p.w13).count},
               kGeneralTileRows, context);
  char* hidden = context.scratch.Allocate<char>(rows * p.width * DTypeSize(context.act));
  float* out = context.scratch.Allocate<float>(rows * p.dim);
  GroupedArgs a{.x = p.x,
                .x_stride = p.dim,
                .source = sorted.source,
                .tiles = sorted.tiles,
                .num_tiles = sorted.num_tiles,
                .max_tiles = sorted.max_tiles,
                .w = ViewOf(p.w13),
                .n = p.width,
                .k = p.dim,
                .out = hidden,
                .out_stride = p.width};
  GroupedGeneral(a, p.w13->dtype, true, context);
  a.x = hidden;
  a.x_stride = a.k = p.width;
  a.source = nullptr;
  a.w = ViewOf(p.w2);
  a.n = a.out_stride = p.dim;
  a.out = out;
  GroupedGeneral(a, p.w2->dtype, false, context);
  const float* shared = p.shared.w13 == nullptr ? nullptr : SharedGeneral(p, context);
  CombineRows({.shared = shared,
               .rows = out,
               .row_of = sorted.row_of,
               .weights = p.weights,
               .out = p.out,
               .tokens = p.tokens,
               .top_k = p.top_k,
               .dim = p.dim},
              DType::kF32, context);
}

}  // namespace

bool MoePathFits(const MoeParams& p, MoePath path, const CudaContext& context) {
  switch (path) {
    case MoePath::kFew:
      return MoeFewFits(p, context);
    case MoePath::kStream:
      return MoeStreamFits(p, context);
    case MoePath::kTile:
      return MoeTileFits(p, context);
    default:
      return true;
  }
}

// The paths that keep outputs of rows in FP32 take so many tokens at a time.
constexpr int kChunkTokens = 1024;

// Whether tiles are faster than streams, by rows per expert. On an H200, stream and tile take of
// the lite model in bf16 236 and 215 us at 1.5 rows, 276 and 256 at 3; of FP8 102 and 92 at 0.75,
// 137 and 125 at 1.5; of one of 8 ranks of 671B, FP8, 100 and 97 at 0.25, 245 and 243 at 1. Tiles
// round FP8 activations.
bool TilesPay(const MoeParams& p) {
  return Cuda(p.w13).dtype == DType::kF8E4M3 || int64_t{p.tokens} * p.top_k >= p.experts;
}

// The fastest that fits. A few tokens are as fast by tiles at 4 tokens of FP8 weights, which is as
// many as MoeFew() takes of those; of bf16, 8 tokens take 150 us and by tiles 160.
MoePath ChoosePath(const MoeParams& p, const CudaContext& context) {
  const MoePath many = TilesPay(p) ? MoePath::kTile : MoePath::kStream;
  for (const MoePath path : {MoePath::kFew, many, MoePath::kStream}) {
    if (MoePathFits(p, path, context)) return path;
  }
  return MoePath::kGeneral;
}

void RunPath(const MoeParams& p, MoePath path, CudaContext& context) {
  switch (path) {
    case MoePath::kFew:
      return MoeFew(p, context);
    case MoePath::kStream:
      return MoeStream(p, context);
    case MoePath::kTile:
      return MoeTile(p, context);
    default:
      return RunGeneral(p, context);
  }
}

void RunMoe(const MoeParams& p, MoePath path, CudaContext& context) {
  if (p.tokens == 0) return;
  if (path == MoePath::kAuto) path = ChoosePath(p, context);
  if (path == MoePath::kTile) return RunPath(p, path, context);
  const int64_t row_bytes = p.dim * DTypeSize(context.act);
  for (int first = 0; first < p.tokens; first += kChunkTokens) {
    MoeParams chunk = p;
    chunk.tokens = std::min(kChunkTokens, p.tokens - first);
    chunk.x = static_cast<const char*>(p.x) + first * row_bytes;
    chunk.out = static_cast<char*>(p.out) + first * row_bytes;
    chunk.ids = p.ids + int64_t{first} * p.top_k;
    chunk.weights = p.weights + int64_t{first} * p.top_k;
    RunPath(chunk, path, context);
  }
}

void Moe(const MoeParams& p, CudaContext& context) { RunMoe(p, MoePath::kAuto, context); }

int64_t MoeScratchBytes(const OpLimits& limits, DType act) {
  const auto aligned = [](int64_t bytes) { return DeviceScratch::Aligned(bytes); };
  const int64_t tokens = std::min<int64_t>(limits.moe_tokens, kChunkTokens);
  const int64_t rows = tokens * limits.top_k;
  const int64_t chunk = SortRowsBytes(rows, limits.local_experts, kGeneralTileRows) +
                        aligned(rows * RoundUp16(limits.moe_width) * DTypeSize(act)) +
                        aligned(rows * limits.dim * 4) +
                        aligned(tokens * RoundUp16(limits.mlp_width) * DTypeSize(act)) +
                        aligned(tokens * limits.dim * 4) + StreamF8Bytes(tokens, limits);
  const int64_t moe = act == DType::kBF16 ? std::max(chunk, MoeTileBytes(limits)) : chunk;
  return limits.experts == 0 ? 0 : std::max(RouteScratchBytes(limits), moe);
}

}  // namespace hadal::cuda
