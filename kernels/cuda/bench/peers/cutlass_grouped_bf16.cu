#include "kernels/cuda/bench/peers/cutlass_gemm.cuh"

namespace hadal::bench {
namespace {

using cute::_1;
using cute::_128;
using cute::_2;
using cute::_256;
using cute::_64;
using cute::Shape;
using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;

template <class Tile, class Cluster, class Schedule, class EpilogueSchedule>
struct Grouped {
  using Epilogue = Bf16Epilogue<Tile, Cluster, RowMajor*, EpilogueSchedule>;
  using Loop =
      Mainloop<cutlass::bfloat16_t, RowMajor*, ColumnMajor*, Tile, Cluster, Schedule, Epilogue>;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<GroupArrays::Problem, Loop, Epilogue>;

  static Peer Make(const char* name, const GroupedProduct& p) {
    GroupArrays arrays(p);
    const auto args = GroupedArguments<Adapter<Kernel>>(p, arrays);
    return GroupedPeer<Adapter<Kernel>>(name, args, arrays);
  }
};

template <class Tile, class Cluster>
using Pingpong = Grouped<Tile, Cluster, cutlass::gemm::KernelPtrArrayTmaWarpSpecializedPingpong,
                         cutlass::epilogue::PtrArrayTmaWarpSpecializedPingpong>;
template <class Tile, class Cluster>
using Cooperative =
    Grouped<Tile, Cluster, cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperative,
            cutlass::epilogue::PtrArrayTmaWarpSpecializedCooperative>;

}  // namespace

std::vector<Peer> CutlassGroupedBf16(const GroupedProduct& p) {
  return {Pingpong<Shape<_64, _128, _64>, Shape<_1, _1, _1>>::Make("64x128 pingpong", p),
          Pingpong<Shape<_64, _256, _64>, Shape<_1, _1, _1>>::Make("64x256 pingpong", p),
          Cooperative<Shape<_128, _256, _64>, Shape<_2, _1, _1>>::Make("128x256 cooperative", p)};
}

}  // namespace hadal::bench
