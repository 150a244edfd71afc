#include "cutlass/detail/blockwise_scale_layout.hpp"
#include "kernels/cuda/bench/peers/cutlass_gemm.cuh"

namespace hadal::bench {
namespace {

using cute::_1;
using cute::_128;
using cute::_2;
using cute::_64;
using cute::Shape;
using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;

// One scale per row of x and 128 of k, one per 128 x 128 of the weights. The kernels want both with
// rows contiguous, [k / 128, rows], per expert.
using Scales = cutlass::detail::Sm90BlockwiseScaleConfig<1, 128, 128>;
using LayoutA = decltype(Scales::deduce_layoutSFA());
using LayoutB = decltype(Scales::deduce_layoutSFB());

// Matrices [rows_i, blocks] below each other to [blocks, rows_i], rows_i = first[i + 1] - first[i].
SharedDevice Transposed(const float* device, const std::vector<int32_t>& first, int64_t blocks) {
  std::vector<float> from(static_cast<size_t>(first.back() * blocks)), to(from.size());
  HADAL_CUDA(cudaMemcpy(from.data(), device, from.size() * 4, cudaMemcpyDeviceToHost));
  for (size_t i = 0; i + 1 < first.size(); ++i) {
    const int64_t rows = first[i + 1] - first[i], base = first[i] * blocks;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t b = 0; b < blocks; ++b) {
        to[static_cast<size_t>(base + b * rows + r)] =
            from[static_cast<size_t>(base + r * blocks + b)];
      }
    }
  }
  return OwnDevice(Upload(to));
}

struct OperandScales {
  SharedDevice x, w;
};

OperandScales PrepareScales(const GroupedProduct& p) {
  const CudaPackedWeight& w = *p.w;
  HADAL_CHECK(w.scale_rows == 128 && w.k_lead == 0 && w.n % 128 == 0 && w.k % 128 == 0);
  std::vector<int32_t> matrices;
  for (int e = 0; e <= w.count; ++e) matrices.push_back(static_cast<int32_t>(e * w.scale_n));
  return {Transposed(p.x_scale, p.first_row, w.k_blocks),
          Transposed(w.scale, matrices, w.k_blocks)};
}

template <class Tile, class Cluster, class Schedule, class EpilogueSchedule>
struct Grouped {
  using Epilogue = Bf16Epilogue<Tile, Cluster, RowMajor*, EpilogueSchedule>;
  using Loop = Mainloop<cutlass::float_e4m3_t, cute::tuple<RowMajor*, LayoutA*>,
                        cute::tuple<ColumnMajor*, LayoutB*>, Tile, Cluster, Schedule, Epilogue>;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<GroupArrays::Problem, Loop, Epilogue>;

  static Peer Make(const char* name, const GroupedProduct& p, const OperandScales& scales) {
    GroupArrays arrays(p);
    auto args = GroupedArguments<Adapter<Kernel>>(p, arrays);
    const int n = static_cast<int>(p.w->n), k = static_cast<int>(p.w->k);
    const auto shape = [&](int e) {
      const auto at = static_cast<size_t>(e);
      return cute::make_shape(p.first_row[at + 1] - p.first_row[at], n, k, 1);
    };
    args.mainloop.ptr_SFA = arrays.Of<const float*>([&](int e) {
      return static_cast<const float*>(scales.x.get()) +
             p.first_row[static_cast<size_t>(e)] * p.w->k_blocks;
    });
    args.mainloop.layout_SFA =
        arrays.Of<LayoutA>([&](int e) { return Scales::tile_atom_to_shape_SFA(shape(e)); });
    args.mainloop.ptr_SFB = arrays.Of<const float*>([&](int e) {
      return static_cast<const float*>(scales.w.get()) + e * p.w->scale_n * p.w->k_blocks;
    });
    args.mainloop.layout_SFB =
        arrays.Of<LayoutB>([&](int e) { return Scales::tile_atom_to_shape_SFB(shape(e)); });
    Peer peer = GroupedPeer<Adapter<Kernel>>(name, args, arrays);
    return {peer.name, [scales, run = peer.run](cudaStream_t stream) { run(stream); }};
  }
};

template <class Tile, class Cluster>
using Pingpong =
    Grouped<Tile, Cluster, cutlass::gemm::KernelPtrArrayTmaWarpSpecializedPingpongFP8Blockwise,
            cutlass::epilogue::PtrArrayTmaWarpSpecializedPingpong>;
template <class Tile, class Cluster>
using Cooperative =
    Grouped<Tile, Cluster, cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperativeFP8Blockwise,
            cutlass::epilogue::PtrArrayTmaWarpSpecializedCooperative>;

}  // namespace

std::vector<Peer> CutlassGroupedF8(const GroupedProduct& p) {
  const OperandScales scales = PrepareScales(p);
  return {Pingpong<Shape<_64, _128, _128>, Shape<_1, _1, _1>>::Make("64x128 pingpong", p, scales),
          Cooperative<Shape<_128, _128, _128>, Shape<_1, _1, _1>>::Make("128x128 cooperative", p,
                                                                        scales),
          Cooperative<Shape<_128, _128, _128>, Shape<_1, _2, _1>>::Make(
              "128x128 cooperative, pairs", p, scales)};
}

}  // namespace hadal::bench
