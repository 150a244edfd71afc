#include <algorithm>

#include "common/rounding.h"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/experts/moe_combine.h"
#include "kernels/cuda/experts/moe_stream.h"
#include "kernels/cuda/weights/weight_view.cuh"

namespace hadal::cuda {
namespace {

int RoundUp8(int64_t n) { return static_cast<int>(RoundUp(n, 8)); }

// Tiles of 64 rows read weights once where experts have more than about 20 rows; tiles of 32 leave
// room for more slots.
int TileTokens(const MoeParams& p, const CudaContext& context) {
  if (StreamF8Fits(p, context)) return kStreamF8Tokens;
  return int64_t{p.tokens} * p.top_k > int64_t{20} * p.experts ? 64 : 32;
}

void LaunchPart(const StreamArgs& args, const MoeParams& p, const StreamRows& rows, bool gated,
                int tokens, int max_tiles, CudaContext& context) {
  const int outputs = gated ? 64 : 128;  // of an item
  const int64_t items =
      int64_t{CeilDiv(args.shared.rows, tokens)} * CeilDiv(args.shared.n, outputs) +
      int64_t{max_tiles} * CeilDiv(args.experts.n, outputs);
  const int bound = static_cast<int>(std::min<int64_t>(items, 1 << 20));
  if (StreamF8Fits(p, context)) {
    LaunchStreamF8(args, rows, gated, bound, context);
  } else if (p.w13->dtype == DType::kBF16) {
    LaunchStreamBf16(args, gated, tokens, bound, context);
  } else {
    LaunchStreamFp8(args, gated, tokens, bound, context);
  }
}

void SetInput(const void* x, int k, StreamPart& part) {
  part.x = static_cast<const bf16*>(x);
  part.x_stride = part.k = k;
}

void SetOutput(const PackedWeight* w, int64_t n, void* out, int stride, StreamPart& part) {
  part.w = ViewOf(w);
  part.n = static_cast<int>(n);
  part.out = out;
  part.out_stride = stride;
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
  DeviceScratch& scratch = context.scratch;
  DeviceScratch::Scope scope(scratch);
  const int rows = p.tokens * p.top_k, dim = static_cast<int>(p.dim);
  const int tokens = TileTokens(p, context);
  const MoeRows sorted =
      SortRows({p.ids, p.local_index, p.tokens, p.top_k, p.experts, p.w13->count}, tokens, context);
  const int stride = RoundUp8(p.width), shared_stride = RoundUp8(p.shared.width);
  const bool has_shared = p.shared.w13 != nullptr;
  bf16* hidden = scratch.Allocate<bf16>(int64_t{rows} * stride);
  float* out = scratch.Allocate<float>(int64_t{rows} * dim);
  bf16* shared_hidden = scratch.Allocate<bf16>(int64_t{p.tokens} * shared_stride);
  float* shared_out = scratch.Allocate<float>(has_shared ? int64_t{p.tokens} * dim : 0);

  StreamArgs a;
  a.experts.source = sorted.source;
  a.experts.tiles = sorted.tiles;
  a.experts.num_tiles = sorted.num_tiles;
  SetInput(p.x, dim, a.experts);
  SetOutput(p.w13, p.width, hidden, stride, a.experts);
  if (has_shared) {
    a.shared.rows = p.tokens;
    SetInput(p.x, dim, a.shared);
    SetOutput(p.shared.w13, p.shared.width, shared_hidden, shared_stride, a.shared);
  }
  LaunchPart(a, p, {p.tokens, nullptr, p.w13->count}, true, tokens, sorted.max_tiles, context);

  a.experts.source = nullptr;
  SetInput(hidden, stride, a.experts);
  SetOutput(p.w2, dim, out, dim, a.experts);
  if (has_shared) {
    SetInput(shared_hidden, shared_stride, a.shared);
    SetOutput(p.shared.w2, dim, shared_out, dim, a.shared);
  }
  LaunchPart(a, p, {rows, sorted.num_rows, p.w2->count}, false, tokens, sorted.max_tiles, context);
  CombineRows({.shared = has_shared ? shared_out : nullptr,
               .rows = out,
               .row_of = sorted.row_of,
               .weights = p.weights,
               .out = p.out,
               .tokens = p.tokens,
               .top_k = p.top_k,
               .dim = p.dim},
              DType::kF32, context);
}

}  // namespace hadal::cuda
