#include "kernels/cuda/moe_combine.h"
#include "kernels/cuda/moe_tile.h"
#include "kernels/cuda/quantise.cuh"
#include "kernels/cuda/tensor_map.h"

namespace hadal::cuda {
namespace {

int RoundUp8(int64_t n) { return static_cast<int>((n + 7) / 8 * 8); }

}  // namespace

CUtensorMap WeightMap(const TilePart& part, DType dtype, int box_rows) {
  const int64_t row_bytes = part.w.stride * DTypeSize(dtype);
  return TensorMap2d(part.w.data, row_bytes / 2, part.w.n * part.matrices, row_bytes, box_rows);
}

namespace {

// Activations as the products read them, one scale per 128 columns beside FP8 weights.
struct Operand {
  const void* x = nullptr;
  const float* scale = nullptr;
  int blocks = 0;
};

// `count`: device, the rows that there are; null: all.
Operand Quantised(const bf16* x, int rows, const int32_t* count, int columns,
                  CudaContext& context) {
  const int blocks = (columns + 127) / 128;
  auto* codes = context.scratch.Allocate<uint8_t>(int64_t{rows} * columns);
  auto* scales = context.scratch.Allocate<float>(int64_t{rows} * blocks);
  Quantise({.x = x,
            .x_stride = columns,
            .row_count = count,
            .rows = rows,
            .columns = columns,
            .codes = codes,
            .code_stride = columns,
            .scales = scales,
            .scale_row_stride = blocks,
            .scale_block_stride = 1},
           context);
  return {codes, scales, blocks};
}

void SetOperand(const Operand& operand, int k, TilePart& part) {
  part.x = operand.x;
  part.x_scale = operand.scale;
  part.x_blocks = operand.blocks;
  part.x_stride = part.k = k;
}

// What a Moe() works with.
struct TileRun {
  const MoeParams& p;
  CudaContext& context;
  bool fp8_weights;
  MoeRows sorted;
  TileArgs args;

  Operand Prepare(const bf16* x, int rows, const int32_t* count, int columns) {
    return fp8_weights ? Quantised(x, rows, count, columns, context) : Operand{x};
  }
  void Launch(bool gated) {
    fp8_weights ? LaunchTileFp8(args, gated, sorted.max_tiles, context)
                : LaunchTileBf16(args, gated, sorted.max_tiles, context);
  }
  void SetWeights(const PackedWeight* w, int n, TilePart& part) {
    part.w = ViewOf(w);
    part.matrices = w->count;
    part.n = n;
  }
  void SetOut(bf16* out, int stride, TilePart& part) {
    part.out = out;
    part.out_stride = stride;
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
  DeviceScratch& scratch = context.scratch;
  DeviceScratch::Scope scope(scratch);
  const int rows = p.tokens * p.top_k, dim = static_cast<int>(p.dim);
  const int width = RoundUp8(p.width), shared_width = RoundUp8(p.shared.width);
  const bool has_shared = p.shared.w13 != nullptr;
  const bool fp8 = p.w13->dtype == DType::kF8E4M3;
  const bool in_pairs = TilesInPairs(fp8, rows, p.experts);
  TileRun run{p, context, fp8,
              SortRows({p.ids, p.local_index, rows, p.experts, p.w13->count}, kTileRows, context,
                       in_pairs)};
  const MoeRows& sorted = run.sorted;
  auto* hidden = scratch.Allocate<bf16>(int64_t{rows} * width);
  auto* out = scratch.Allocate<bf16>(int64_t{rows} * dim);
  auto* shared_hidden = scratch.Allocate<bf16>(int64_t{p.tokens} * shared_width);
  auto* shared_out = scratch.Allocate<bf16>(has_shared ? int64_t{p.tokens} * dim : 0);

  TilePart& experts = run.args.experts;
  TilePart& shared = run.args.shared;
  const Operand x = run.Prepare(static_cast<const bf16*>(p.x), p.tokens, nullptr, dim);
  experts.source = sorted.source;
  experts.source_div = p.top_k;
  experts.tiles = sorted.tiles;
  experts.num_tiles = sorted.num_tiles;
  SetOperand(x, dim, experts);
  run.SetWeights(p.w13, static_cast<int>(p.width), experts);
  run.SetOut(hidden, width, experts);
  if (has_shared) {
    shared.rows = p.tokens;
    SetOperand(x, dim, shared);
    run.SetWeights(p.shared.w13, static_cast<int>(p.shared.width), shared);
    run.SetOut(shared_hidden, shared_width, shared);
  }
  run.args.in_pairs = in_pairs;
  run.Launch(true);

  run.args.tiles_known = true;
  experts.source = nullptr;
  SetOperand(run.Prepare(hidden, rows, sorted.num_rows, width), width, experts);
  run.SetWeights(p.w2, dim, experts);
  run.SetOut(out, dim, experts);
  if (has_shared) {
    SetOperand(run.Prepare(shared_hidden, p.tokens, nullptr, shared_width), shared_width, shared);
    run.SetWeights(p.shared.w2, dim, shared);
    run.SetOut(shared_out, dim, shared);
  }
  run.Launch(false);
  CombineRows({.shared = has_shared ? shared_out : nullptr,
               .rows = out,
               .row_of = sorted.row_of,
               .weights = p.weights,
               .out = p.out,
               .tokens = p.tokens,
               .top_k = p.top_k,
               .dim = p.dim},
              DType::kBF16, context);
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
  return SortRowsBytes(rows, limits.local_experts, kTileRows) + values(rows, limits.moe_width) +
         values(rows, limits.dim) + values(tokens, limits.mlp_width) + values(tokens, limits.dim) +
         codes(tokens, limits.dim) + codes(rows, limits.moe_width) +
         codes(tokens, limits.mlp_width);
}

}  // namespace hadal::cuda
