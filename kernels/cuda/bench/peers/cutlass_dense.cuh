#pragma once

#include <type_traits>

#include "kernels/cuda/bench/peers/cutlass_gemm.cuh"

namespace hadal::bench {

// y^T = w x^T: outputs are the rows of a tile, so that few rows of x waste little of it. D is then
// column-major. `Scheduler`: void divides outputs only, StreamKScheduler also k; that one's kernels
// do not compile for launches that overlap.
template <class Tile, class Cluster, class Scheduler>
struct Dense {
  using Epilogue = Bf16Epilogue<Tile, Cluster, cutlass::layout::ColumnMajor,
                                cutlass::epilogue::TmaWarpSpecializedCooperative>;
  using Loop =
      Mainloop<cutlass::bfloat16_t, cutlass::layout::RowMajor, cutlass::layout::ColumnMajor, Tile,
               Cluster, cutlass::gemm::KernelTmaWarpSpecializedCooperative, Epilogue>;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Loop,
                                                      Epilogue, Scheduler>;
  using Gemm = Adapter<Kernel>;
  static constexpr bool kOverlaps = std::is_void_v<Scheduler>;

  static typename Gemm::Arguments Arguments(const cuda::Product& p) {
    typename Gemm::Arguments args{};
    args.mode = cutlass::gemm::GemmUniversalMode::kGemm;
    args.problem_shape =
        cute::make_shape(static_cast<int>(p.w->n), p.m, static_cast<int>(p.w->k), 1);
    args.mainloop.ptr_A = static_cast<const cutlass::bfloat16_t*>(p.w->data);
    cute::get<0>(args.mainloop.dA) = p.w->stride;
    args.mainloop.ptr_B = static_cast<const cutlass::bfloat16_t*>(p.x);
    cute::get<0>(args.mainloop.dB) = p.x_stride;
    args.epilogue.ptr_D = static_cast<cutlass::bfloat16_t*>(p.y);
    cute::get<1>(args.epilogue.dD) = p.y_stride;
    args.hw_info = cutlass::KernelHardwareInfo::make_kernel_hardware_info<Kernel>(0);
    return args;
  }

  // Counters that blocks of one output share are cleared before every launch.
  static Peer Make(std::string name, const cuda::Product& p) {
    const auto args = Arguments(p);
    auto gemm = std::make_shared<Gemm>();
    const SharedDevice workspace = CutlassWorkspace<Gemm>(args, name);
    CheckCutlass(gemm->initialize(args, workspace.get()), name);
    HADAL_CUDA(cudaDeviceSynchronize());
    return {name, [gemm, args, workspace, name](cudaStream_t stream) {
              if constexpr (!kOverlaps) {
                CheckCutlass(gemm->initialize(args, workspace.get(), stream), name);
              }
              CheckCutlass(gemm->run(stream, nullptr, kOverlaps), name);
            }};
  }
};

}  // namespace hadal::bench
