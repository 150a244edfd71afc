#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/moe_few.h"
#include "kernels/cuda/moe_few_f8.h"
#include "kernels/cuda/moe_few_w13.cuh"
#include "kernels/cuda/moe_few_w2.cuh"

namespace hadal::cuda {
namespace {

// In flight per SM: 64 KB of weights (w13), 48 KB (w2); Little's law asks for about 35. Of up to 4
// tokens both blocks of bf16 fit an SM together, so that w2 fetches while w13 ends; so do w2's and
// that of the next layer's first product. Two of w13 do not: 8 SMs had two, those that the router's
// blocks filled none, and the last ended 4 us after the rest. Nor do two of w2 where w13's take
// more: they start as the first of those end and would share half of the SMs.
constexpr int kW13Slots = 5;
constexpr int kW2Slots = 4;

int RoundUp8(int64_t n) { return static_cast<int>((n + 7) / 8 * 8); }

FewExpertsArgs ArgsOf(const MoeParams& p) {
  FewExpertsArgs a;
  a.x = p.x;
  a.ids = p.ids;
  a.weights = p.weights;
  a.local_index = p.local_index;
  a.w13 = ViewOf(p.w13);
  a.w2 = ViewOf(p.w2);
  a.out = static_cast<bf16*>(p.out);
  a.tokens = p.tokens;
  a.top_k = p.top_k;
  a.experts = p.experts;
  a.dim = static_cast<int>(p.dim);
  a.width = static_cast<int>(p.width);
  a.hidden_stride = RoundUp8(p.width);
  if (p.shared.w13 != nullptr) {
    a.shared13 = ViewOf(p.shared.w13);
    a.shared2 = ViewOf(p.shared.w2);
    a.shared_width = static_cast<int>(p.shared.width);
    a.shared_stride = RoundUp8(p.shared.width);
  }
  return a;
}

void SetHidden(const MoeParams& p, CudaContext& context, FewExpertsArgs& a) {
  a.hidden = context.scratch.Allocate<bf16>(int64_t{p.tokens} * p.top_k * a.hidden_stride);
  a.shared_hidden = context.scratch.Allocate<bf16>(int64_t{p.tokens} * a.shared_stride);
}

void LaunchFewBf16(const FewExpertsArgs& a, const MoeParams& p, CudaContext& context) {
  const auto w13 = FewW13Kernel<kW13Slots>;
  const auto w2 = FewW2Kernel<kW2Slots>;
  static const bool once = [&] {
    constexpr auto kAttribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
    for (const auto kernel : {w13, w2}) {
      HADAL_CUDA(cudaFuncSetAttribute(kernel, kAttribute, static_cast<int>(kFewSharedBytes)));
    }
    return true;
  }();
  (void)once;
  const int64_t rows = std::min<int64_t>(int64_t{p.tokens} * p.top_k, p.w13->count);
  const int64_t w13_items = (p.shared.width + 7) / 8 + rows * ((p.width + 7) / 8);
  const int64_t w2_items = (p.dim + 15) / 16;
  const auto blocks = [&](int64_t items) {
    return static_cast<unsigned>(std::clamp<int64_t>(items, 1, context.sm_count));
  };
  const int64_t w13_bytes = std::max(FewW13SharedBytes(a, kW13Slots), kFewAloneBytes);
  int64_t w2_bytes = FewW2SharedBytes(kW2Slots);
  if (w2_bytes > FewRoomBeside(w13_bytes)) w2_bytes = std::max(w2_bytes, kFewAloneBytes);
  Launch(w13, blocks(w13_items), kFewThreads, static_cast<size_t>(w13_bytes), context, a);
  Launch(w2, blocks(w2_items), kFewThreads, static_cast<size_t>(w2_bytes), context, a);
}

}  // namespace

bool MoeFewFits(const MoeParams& p, const CudaContext& context) {
  const DType dtype = p.w13->dtype;
  const auto fits = [&](const PackedWeight* w) {
    return w == nullptr ||
           (w->dtype == dtype && static_cast<const CudaPackedWeight*>(w)->k_lead % 16 == 0);
  };
  if (context.act != DType::kBF16 || context.arch < 80 || dtype == DType::kF32) return false;
  if (p.tokens > kFewTokens || p.tokens * p.top_k > kFewRows || p.experts > kFewExperts)
    return false;
  if (p.dim % 8 != 0 || p.width == 0) return false;
  if (!fits(p.w13) || !fits(p.w2) || !fits(p.shared.w13) || !fits(p.shared.w2)) return false;
  // w13 starts at whole scale blocks: its k is never cut.
  if (static_cast<const CudaPackedWeight*>(p.w13)->k_lead != 0) return false;
  FewExpertsArgs a = ArgsOf(p);
  if (dtype == DType::kF8E4M3) return context.arch == 90 && FewF8Fits(a);
  return FewW13SharedBytes(a, kW13Slots) <= kFewSharedBytes;
}

void MoeFew(const MoeParams& p, CudaContext& context) {
  DeviceScratch::Scope scope(context.scratch);
  FewExpertsArgs a = ArgsOf(p);
  SetHidden(p, context, a);
  if (p.w13->dtype == DType::kBF16) {
    LaunchFewBf16(a, p, context);
  } else {
    LaunchFewF8Experts(a, p.w13->count, std::min(p.tokens * p.top_k, p.w13->count), context);
  }
}

}  // namespace hadal::cuda
