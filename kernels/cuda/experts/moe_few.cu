#include <algorithm>
#include <cstdint>

#include "common/rounding.h"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/experts/moe_few.h"
#include "kernels/cuda/experts/moe_few_w13.cuh"
#include "kernels/cuda/experts/moe_few_w2.cuh"
#include "kernels/cuda/weights/weight_view.cuh"

namespace hadal::cuda {
namespace {

// Converting their hidden values takes too long for more, and tiles are as fast.
constexpr int kFewF8Tokens = 4;

int RoundUp8(int64_t n) { return static_cast<int>(RoundUp(n, 8)); }

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

// In flight per SM: 96 KB of weights (w13), of w2 64 (bf16, 96 of many tokens), 48 or 72 (FP8);
// Little's law asks for about 35.
constexpr int kW13Slots = 3;

// Blocks of both kernels fit an SM together where tokens are few, so that w2 fetches while w13
// ends. Two of w13 do not: 8 SMs had two, those that the router's blocks filled none, and the last
// ended 4 us after the rest. Nor do two of w2 that has no room there: they start as the first of
// w13 end and would share half of the SMs.
template <typename W, int kTokens>
void LaunchFewOf(const FewExpertsArgs& a, int experts, CudaContext& context) {
  constexpr int kW2Slots = kTokens * sizeof(W) <= (kIsF8<W> ? 1 : 8) ? 2 : 3;
  const auto w13 = FewW13Kernel<W, kW13Slots>;
  const auto w2 = FewW2Kernel<W, kTokens, kW2Slots>;
  static const bool once = [&] {
    constexpr auto kAttribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
    for (const auto kernel : {w13, w2}) {
      HADAL_CUDA(cudaFuncSetAttribute(kernel, kAttribute, static_cast<int>(kFewSharedBytes)));
    }
    return true;
  }();
  (void)once;
  const int64_t rows = std::min(a.tokens * a.top_k, experts);
  const int64_t w13_items = CeilDiv(a.shared_width, 8) + rows * CeilDiv(a.width, 8);
  const auto blocks = [&](int64_t items) {
    return static_cast<unsigned>(std::clamp<int64_t>(items, 1, context.sm_count));
  };
  const int64_t w13_bytes = std::max(FewW13SharedBytes<W, kW13Slots>(a), kFewAloneBytes);
  int64_t w2_bytes = FewW2SharedBytes<W, kTokens, kW2Slots>();
  if (w2_bytes > FewRoomBeside(w13_bytes)) w2_bytes = std::max(w2_bytes, kFewAloneBytes);
  Launch(w13, blocks(w13_items), kW13Threads, static_cast<size_t>(w13_bytes), context, a);
  Launch(w2, blocks(CeilDiv(a.dim, 16)), kW2Threads<W>, static_cast<size_t>(w2_bytes), context, a);
}

template <typename W>
void LaunchFew(const FewExpertsArgs& a, int experts, CudaContext& context) {
  if (a.tokens == 1) return LaunchFewOf<W, 1>(a, experts, context);
  if (a.tokens == 2) return LaunchFewOf<W, 2>(a, experts, context);
  if (a.tokens <= 4) return LaunchFewOf<W, 4>(a, experts, context);
  if constexpr (!kIsF8<W>) LaunchFewOf<W, kFewTokens>(a, experts, context);
}

// Offsets within a matrix are int.
bool IsShort(const PackedWeight* w) {
  return w == nullptr ||
         w->n * static_cast<const CudaPackedWeight*>(w)->stride * DTypeSize(w->dtype) < INT32_MAX;
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
  if (!IsShort(p.w13) || !IsShort(p.w2) || !IsShort(p.shared.w13) || !IsShort(p.shared.w2)) {
    return false;
  }
  const FewExpertsArgs a = ArgsOf(p);
  if (dtype == DType::kBF16) return FewW13SharedBytes<bf16, kW13Slots>(a) <= kFewSharedBytes;
  return p.tokens <= kFewF8Tokens && FewW13SharedBytes<fp8, kW13Slots>(a) <= kFewSharedBytes;
}

void MoeFew(const MoeParams& p, CudaContext& context) {
  DeviceScratch::Scope scope(context.scratch);
  FewExpertsArgs a = ArgsOf(p);
  SetHidden(p, context, a);
  (p.w13->dtype == DType::kBF16 ? LaunchFew<bf16> : LaunchFew<fp8>)(a, p.w13->count, context);
}

}  // namespace hadal::cuda
