#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/tensor_map.h"
#include "kernels/cuda/experts/moe_combine.h"
#include "kernels/cuda/experts/moe_tile.h"
#include "kernels/cuda/rows/quantise.cuh"
#include "kernels/cuda/weights/weight_view.cuh"

namespace hadal::cuda {
namespace {

int RoundUp8(int64_t n) { return static_cast<int>((n + 7) / 8 * 8); }

}  // namespace

CUtensorMap WeightMap(const TilePart& part, DType dtype, int box_rows) {
  const int64_t row_bytes = part.w.stride * DTypeSize(dtype);
  return TensorMap2d(part.w.data, row_bytes / 2, part.w.n * part.matrices, row_bytes, box_rows);
}

namespace {

// Rounded activations, one scale per 128 columns. `count`: device, the rows that there are; null:
// all.
QuantiseParams Rounding(const bf16* x, int rows, const int32_t* count, int columns,
                        CudaContext& context) {
  const int blocks = (columns + 127) / 128;
  return {.x = x,
          .x_stride = columns,
          .row_count = count,
          .rows = rows,
          .columns = columns,
          .codes = context.scratch.Allocate<uint8_t>(int64_t{rows} * columns),
          .code_stride = columns,
          .scales = context.scratch.Allocate<float>(int64_t{rows} * blocks),
          .scale_row_stride = blocks,
          .scale_block_stride = 1};
}

void SetOperand(const QuantiseParams& rounded, TilePart& part) {
  part.x = rounded.codes;
  part.x_scale = rounded.scales;
  part.x_blocks = static_cast<int>(rounded.scale_row_stride);
  part.x_stride = part.k = static_cast<int>(rounded.columns);
}
void SetOperand(const bf16* x, int k, TilePart& part) {
  part.x = x;
  part.x_stride = part.k = k;
}

// Tiles of 64 rows while experts have half of that in the mean, so that few experts have more.
int TileRowsFor(int rows, int experts) {
  return rows <= kSmallTileRows / 2 * experts ? kSmallTileRows : kTileRows;
}
// Of an item of such tiles: wide ones fetch rows half as often, narrow ones come out even. On an
// H200 a step of the lite model takes, narrow and wide, in bf16 7,342 and 7,350 us at 1.5 rows per
// expert, 8,967 and 8,919 at 6, 10,787 and 10,532 at 24; of FP8 5,637 and 5,673 at 6, 7,721 and
// 7,657 at 24.
int WeightRowsFor(bool fp8, int rows, int experts) {
  return rows >= (fp8 ? 12 : 4) * experts ? 256 : 128;
}

void SetWeights(const PackedWeight* w, int64_t n, TilePart& part) {
  part.w = ViewOf(w);
  part.matrices = w->count;
  part.n = static_cast<int>(n);
}
void SetOut(bf16* out, int stride, TilePart& part) {
  part.out = out;
  part.out_stride = stride;
}

void SetCodes(const QuantiseParams& rounded, TilePart& part) {
  part.codes = rounded.codes;
  part.code_scale = rounded.scales;
}

// What a Moe() works with.
struct TileRun {
  const MoeParams& p;
  CudaContext& context;
  const bool fp8 = p.w13->dtype == DType::kF8E4M3, has_shared = p.shared.w13 != nullptr;
  const int rows = p.tokens * p.top_k, dim = static_cast<int>(p.dim);
  const int width = RoundUp8(p.width), shared_width = RoundUp8(p.shared.width);
  MoeRows sorted = {};
  TileArgs args = {};
  QuantiseParams rounded, rounded_shared;  // hidden values beside FP8 weights
  bf16* hidden = context.scratch.Allocate<bf16>(int64_t{rows} * width);
  bf16* out = context.scratch.Allocate<bf16>(int64_t{rows} * dim);
  bf16* shared_hidden = context.scratch.Allocate<bf16>(int64_t{p.tokens} * shared_width);
  bf16* shared_out = context.scratch.Allocate<bf16>(has_shared ? int64_t{p.tokens} * dim : 0);

  // Rows by expert; x as the products read it.
  void Begin() {
    args.in_pairs = TilesInPairs(fp8, rows, p.experts);
    args.tile_rows = TileRowsFor(rows, p.experts);
    args.weight_rows = WeightRowsFor(fp8, rows, p.experts);
    const auto* x = static_cast<const bf16*>(p.x);
    QuantiseParams rounded_x;
    if (fp8) rounded_x = Rounding(x, p.tokens, nullptr, dim, context);
    sorted = SortRows({p.ids, p.local_index, p.tokens, p.top_k, p.experts, p.w13->count},
                      args.tile_rows, context, args.in_pairs, fp8 ? &rounded_x : nullptr);
    for (TilePart* part : {&args.experts, &args.shared}) {
      fp8 ? SetOperand(rounded_x, *part) : SetOperand(x, dim, *part);
    }
    args.experts.source = sorted.source;
    args.experts.tiles = sorted.tiles;
    args.experts.num_tiles = sorted.num_tiles;
    args.shared.rows = has_shared ? p.tokens : 0;
  }
  void MultiplyW13() {
    SetWeights(p.w13, p.width, args.experts);
    SetOut(hidden, width, args.experts);
    if (has_shared) SetWeights(p.shared.w13, p.shared.width, args.shared);
    SetOut(shared_hidden, shared_width, args.shared);
    if (fp8) {
      rounded = Rounding(hidden, rows, sorted.num_rows, width, context);
      SetCodes(rounded, args.experts);
      rounded_shared = Rounding(shared_hidden, p.tokens, nullptr, shared_width, context);
      SetCodes(rounded_shared, args.shared);
    }
    Launch(true);
  }
  void MultiplyW2() {
    if (fp8) {
      if (!TilesRound(args)) QuantiseBoth(rounded, rounded_shared, context);
      SetOperand(rounded, args.experts);
      SetOperand(rounded_shared, args.shared);
    } else {
      SetOperand(hidden, width, args.experts);
      SetOperand(shared_hidden, shared_width, args.shared);
    }
    args.tiles_known = true;
    args.experts.source = nullptr;
    SetWeights(p.w2, dim, args.experts);
    SetOut(out, dim, args.experts);
    if (has_shared) SetWeights(p.shared.w2, dim, args.shared);
    SetOut(shared_out, dim, args.shared);
    Launch(false);
  }
  void Combine() {
    CombineRows({.shared = has_shared ? shared_out : nullptr,
                 .rows = out,
                 .row_of = sorted.row_of,
                 .weights = p.weights,
                 .choices_known = true,
                 .out = p.out,
                 .tokens = p.tokens,
                 .top_k = p.top_k,
                 .dim = p.dim},
                DType::kBF16, context);
  }

 private:
  void Launch(bool gated) {
    fp8 ? LaunchTileFp8(args, gated, sorted.max_tiles, context)
        : LaunchTileBf16(args, gated, sorted.max_tiles, context);
  }
};

bool WeightFits(const PackedWeight* packed, DType dtype) {
  if (packed == nullptr) return true;
  const auto* w = static_cast<const CudaPackedWeight*>(packed);
  if (w->dtype != dtype) return false;
  return dtype == DType::kBF16 ||
         (w->scale_rows == 128 && w->k_lead == 0 && w->n % 128 == 0 && w->k % 16 == 0);
}

}  // namespace

bool MoeTileFits(const MoeParams& p, const CudaContext& context) {
  const DType dtype = p.w13->dtype;
  if (context.act != DType::kBF16 || context.arch != 90 || dtype == DType::kF32) return false;
  if (p.dim % 8 != 0 || p.w13->count > kMaxLocalExperts) return false;
  return WeightFits(p.w13, dtype) && WeightFits(p.w2, dtype) && WeightFits(p.shared.w13, dtype) &&
         WeightFits(p.shared.w2, dtype);
}

void MoeTile(const MoeParams& p, CudaContext& context) {
  DeviceScratch::Scope scope(context.scratch);
  TileRun run{p, context};
  run.Begin();
  run.MultiplyW13();
  run.MultiplyW2();
  run.Combine();
}

int64_t MoeTileBytes(const OpLimits& limits) {
  const auto aligned = [](int64_t bytes) { return DeviceScratch::Aligned(bytes); };
  const int64_t tokens = limits.moe_tokens, rows = tokens * limits.top_k;
  const auto values = [&](int64_t count, int64_t columns) {
    return aligned(count * RoundUp8(columns) * 2);
  };
  // FP8 codes and scales.
  const auto codes = [&](int64_t count, int64_t columns) {
    return aligned(count * RoundUp8(columns)) + aligned(count * ((columns + 127) / 128) * 4);
  };
  return SortRowsBytes(rows, limits.local_experts, kSmallTileRows) +
         values(rows, limits.moe_width) + values(rows, limits.dim) +
         values(tokens, limits.mlp_width) + values(tokens, limits.dim) + codes(tokens, limits.dim) +
         codes(rows, limits.moe_width) + codes(tokens, limits.mlp_width);
}

}  // namespace hadal::cuda
