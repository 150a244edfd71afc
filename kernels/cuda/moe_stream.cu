#include <algorithm>

#include "kernels/cuda/moe_combine.h"
#include "kernels/cuda/moe_stream.h"

namespace hadal::cuda {
namespace {

int CeilDiv(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }
int RoundUp8(int64_t n) { return CeilDiv(n, 8) * 8; }

// Tiles of 64 rows read weights once where experts have more than about 20 rows; tiles of 32 leave
// room for more slots.
int TileTokens(const MoeParams& p) {
  return int64_t{p.tokens} * p.top_k > int64_t{20} * p.experts ? 64 : 32;
}

void LaunchPart(const StreamArgs& args, DType dtype, bool gated, int tokens, int max_tiles,
                CudaContext& context) {
  const int rows = gated ? 64 : 128;  // outputs of an item
  const int64_t items = int64_t{CeilDiv(args.shared.rows, tokens)} * CeilDiv(args.shared.n, rows) +
                        int64_t{max_tiles} * CeilDiv(args.experts.n, rows);
  const int bound = static_cast<int>(std::min<int64_t>(items, 1 << 20));
  if (dtype == DType::kBF16) {
    LaunchStreamBf16(args, gated, tokens, bound, context);
  } else {
    LaunchStreamFp8(args, gated, tokens, bound, context);
  }
}

}  // namespace

bool MoeStreamFits(const MoeParams& p, const CudaContext& context) {
  const DType dtype = p.w13->dtype;
  const auto fits = [&](const PackedWeight* w) {
    return w == nullptr ||
           (w->dtype == dtype && static_cast<const CudaPackedWeight*>(w)->k_lead % 16 == 0);
  };
  if (context.act != DType::kBF16 || context.arch < 80 || dtype == DType::kF32) return false;
  if (p.dim % 8 != 0 || p.w13->count > kMaxLocalExperts) return false;
  return fits(p.w13) && fits(p.w2) && fits(p.shared.w13) && fits(p.shared.w2);
}

void MoeStream(const MoeParams& p, CudaContext& context) {
  DeviceScratch::Scope scope(context.scratch);
  const int rows = p.tokens * p.top_k, tokens = TileTokens(p), dim = static_cast<int>(p.dim);
  const MoeRows sorted =
      SortRows({p.ids, p.local_index, rows, p.experts, p.w13->count}, tokens, context);
  const int stride = RoundUp8(p.width), shared_stride = RoundUp8(p.shared.width);
  const bool has_shared = p.shared.w13 != nullptr;
  bf16* hidden = context.scratch.Allocate<bf16>(int64_t{rows} * stride);
  float* out = context.scratch.Allocate<float>(int64_t{rows} * dim);
  bf16* shared_hidden =
      has_shared ? context.scratch.Allocate<bf16>(int64_t{p.tokens} * shared_stride) : nullptr;
  float* shared_out =
      has_shared ? context.scratch.Allocate<float>(int64_t{p.tokens} * dim) : nullptr;

  StreamArgs a;
  a.experts = {.x = static_cast<const bf16*>(p.x),
               .source = sorted.source,
               .source_div = p.top_k,
               .x_stride = dim,
               .k = dim,
               .tiles = sorted.tiles,
               .num_tiles = sorted.num_tiles,
               .n = static_cast<int>(p.width),
               .w = ViewOf(p.w13),
               .out = hidden,
               .out_stride = stride};
  if (has_shared) {
    a.shared = {.x = static_cast<const bf16*>(p.x), .x_stride = dim, .k = dim, .rows = p.tokens,
                .n = static_cast<int>(p.shared.width), .w = ViewOf(p.shared.w13),
                .out = shared_hidden, .out_stride = shared_stride};
  }
  LaunchPart(a, p.w13->dtype, true, tokens, sorted.max_tiles, context);

  a.experts = {.x = hidden, .x_stride = stride, .k = stride, .tiles = sorted.tiles,
               .num_tiles = sorted.num_tiles, .n = dim, .w = ViewOf(p.w2), .out = out,
               .out_stride = dim};
  if (has_shared) {
    a.shared = {.x = shared_hidden, .x_stride = shared_stride, .k = shared_stride, .rows = p.tokens,
                .n = dim, .w = ViewOf(p.shared.w2), .out = shared_out, .out_stride = dim};
  }
  LaunchPart(a, p.w13->dtype, false, tokens, sorted.max_tiles, context);
  CombineRows({.shared = shared_out, .rows = out, .row_of = sorted.row_of, .weights = p.weights,
               .out = p.out, .tokens = p.tokens, .top_k = p.top_k, .dim = p.dim},
              DType::kF32, context);
}

}  // namespace hadal::cuda
