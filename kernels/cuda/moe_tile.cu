#include "kernels/cuda/moe_tile.h"

#include "kernels/cuda/moe_combine.h"
#include "kernels/cuda/tensor_map.h"

namespace hadal::cuda {
namespace {

int RoundUp8(int64_t n) { return static_cast<int>((n + 7) / 8 * 8); }

}  // namespace

CUtensorMap WeightMap(const TilePart& part, DType dtype, int box_rows) {
  const int64_t row_bytes = part.w.stride * DTypeSize(dtype);
  return TensorMap2d(part.w.data, row_bytes / 2, part.w.n * part.matrices, row_bytes, box_rows);
}

bool MoeTileFits(const MoeParams& p, const CudaContext& context) {
  const auto fits = [&](const PackedWeight* w) { return w == nullptr || w->dtype == DType::kBF16; };
  if (context.act != DType::kBF16 || context.arch != 90) return false;
  if (p.dim % 8 != 0 || p.w13->count > kMaxLocalExperts) return false;
  return fits(p.w13) && fits(p.w2) && fits(p.shared.w13) && fits(p.shared.w2);
}

void MoeTile(const MoeParams& p, CudaContext& context) {
  DeviceScratch::Scope scope(context.scratch);
  const int rows = p.tokens * p.top_k, dim = static_cast<int>(p.dim);
  const MoeRows sorted =
      SortRows({p.ids, p.local_index, rows, p.experts, p.w13->count}, kTileRows, context);
  const int stride = RoundUp8(p.width), shared_stride = RoundUp8(p.shared.width);
  const bool has_shared = p.shared.w13 != nullptr;
  DeviceScratch& scratch = context.scratch;
  bf16* hidden = scratch.Allocate<bf16>(int64_t{rows} * stride);
  bf16* out = scratch.Allocate<bf16>(int64_t{rows} * dim);
  bf16* shared_hidden =
      has_shared ? scratch.Allocate<bf16>(int64_t{p.tokens} * shared_stride) : nullptr;
  bf16* shared_out = has_shared ? scratch.Allocate<bf16>(int64_t{p.tokens} * dim) : nullptr;

  TileArgs a;
  a.experts = {.x = p.x, .source = sorted.source, .source_div = p.top_k, .x_stride = dim, .k = dim,
               .tiles = sorted.tiles, .num_tiles = sorted.num_tiles, .n = static_cast<int>(p.width),
               .w = ViewOf(p.w13), .matrices = p.w13->count, .out = hidden, .out_stride = stride};
  if (has_shared) {
    a.shared = {.x = p.x, .x_stride = dim, .k = dim, .rows = p.tokens,
                .n = static_cast<int>(p.shared.width), .w = ViewOf(p.shared.w13),
                .out = shared_hidden, .out_stride = shared_stride};
  }
  LaunchTileBf16(a, true, sorted.max_tiles, context);

  a.experts = {.x = hidden, .x_stride = stride, .k = stride, .tiles = sorted.tiles,
               .num_tiles = sorted.num_tiles, .n = dim, .w = ViewOf(p.w2),
               .matrices = p.w2->count, .out = out, .out_stride = dim};
  if (has_shared) {
    a.shared = {.x = shared_hidden, .x_stride = shared_stride, .k = shared_stride, .rows = p.tokens,
                .n = dim, .w = ViewOf(p.shared.w2), .out = shared_out, .out_stride = dim};
  }
  LaunchTileBf16(a, false, sorted.max_tiles, context);
  CombineRows({.shared = shared_out, .rows = out, .row_of = sorted.row_of, .weights = p.weights,
               .out = p.out, .tokens = p.tokens, .top_k = p.top_k, .dim = p.dim},
              DType::kBF16, context);
}

}  // namespace hadal::cuda
