#include <algorithm>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/experts/moe_stream.h"
#include "kernels/cuda/experts/moe_stream_f8.cuh"

namespace hadal::cuda {
namespace {

template <typename Shape>
void LaunchShape(const StreamF8Args& args, int max_items, CudaContext& context) {
  const auto kernel = StreamF8Kernel<Shape>;
  static const bool once = [&] {
    HADAL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    Shape::kSharedBytes));
    return true;
  }();
  (void)once;
  Launch(kernel, std::clamp(max_items, 1, context.sm_count), kStreamF8Threads, Shape::kSharedBytes,
         context, args);
}

}  // namespace

bool StreamF8Fits(const MoeParams& p, const CudaContext& context) {
  return context.arch == 90 && p.w13->dtype == DType::kF8E4M3 && p.width % 8 == 0 &&
         p.shared.width % 8 == 0;
}

void LaunchStreamF8(const StreamArgs& args, const StreamRows& rows, bool gated, int max_items,
                    CudaContext& context) {
  DeviceScratch::Scope scope(context.scratch);
  StreamF8Args a{};
  static_cast<StreamPart&>(a.experts) = args.experts;
  static_cast<StreamPart&>(a.shared) = args.shared;
  const auto source = [](const StreamPart& part, int count, const int32_t* there) {
    return SplitSource{part.x, count, there, part.k, part.w.k_lead};
  };
  const SplitSource sources[2] = {source(args.experts, rows.count, rows.there),
                                  source(args.shared, args.shared.rows, nullptr)};
  SplitView views[2];
  const bool both = args.shared.n > 0 && args.shared.x != args.experts.x;
  SplitRows(std::span(sources).first(both ? 2 : 1), views, context);
  a.experts.split = views[0];
  a.shared.split = views[both ? 1 : 0];
  const auto map = [&](const StreamPart& part, int matrices) {
    return gated ? PairMap(part.w, matrices) : RowMap(part.w, matrices, 64);
  };
  a.experts_map = map(args.experts, rows.matrices);
  a.shared_map = args.shared.n > 0 ? map(args.shared, 1) : a.experts_map;
  gated ? LaunchShape<StreamF8Shape<true>>(a, max_items, context)
        : LaunchShape<StreamF8Shape<false>>(a, max_items, context);
}

int64_t StreamF8Bytes(int64_t tokens, const OpLimits& limits) {
  const int64_t rows = tokens * limits.top_k;
  return std::max(SplitRowsBytes(tokens, limits.dim), SplitRowsBytes(rows, limits.moe_width) +
                                                          SplitRowsBytes(tokens, limits.mlp_width));
}

}  // namespace hadal::cuda
