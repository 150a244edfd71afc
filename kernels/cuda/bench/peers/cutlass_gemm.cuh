#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "cutlass/cutlass.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "kernels/cuda/bench/peers/peers.h"

namespace hadal::bench {

// Throws CudaError.
inline void CheckCutlass(cutlass::Status status, const std::string& name) {
  if (status == cutlass::Status::kSuccess) return;
  throw CudaError("CUTLASS " + name + ": " + cutlass::cutlassGetStatusString(status));
}

// The epilogue D = sums, bf16, nothing read. Layouts are pointers in grouped kernels.
template <class Tile, class Cluster, class LayoutD, class Schedule>
using Bf16Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
    cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, LayoutD, 8,
    cutlass::bfloat16_t, LayoutD, 8, Schedule>::CollectiveOp;

// Products of two K-major operands; 16 bytes are a row's alignment. Stages: what memory is left.
template <class Element, class LayoutA, class LayoutB, class Tile, class Cluster, class Schedule,
          class Epilogue>
using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, LayoutA, 16 / sizeof(Element),
    Element, LayoutB, 16 / sizeof(Element), float, Tile, Cluster,
    cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
        sizeof(typename Epilogue::SharedStorage))>,
    Schedule>::CollectiveOp;

template <class Kernel>
using Adapter = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

template <class Gemm>
SharedDevice CutlassWorkspace(const typename Gemm::Arguments& args, const std::string& name) {
  CheckCutlass(Gemm::can_implement(args), name);
  return OwnDevice(DeviceBytes(std::max<int64_t>(256, Gemm::get_workspace_size(args))));
}

// The arrays that a grouped kernel reads, one entry an expert that has rows.
class GroupArrays {
 public:
  using Shape = cute::Shape<int, int, int>;
  using Problem = cutlass::gemm::GroupProblemShape<Shape>;

  explicit GroupArrays(const GroupedProduct& p) {
    for (size_t e = 0; e + 1 < p.first_row.size(); ++e) {
      if (p.first_row[e + 1] > p.first_row[e]) experts_.push_back(static_cast<int>(e));
    }
  }
  int size() const { return static_cast<int>(experts_.size()); }

  // value(expert) of every entry, on the device.
  template <class T, class Value>
  T* Of(const Value& value) {
    std::vector<T> host;
    for (const int e : experts_) host.push_back(value(e));
    T* device = Upload(host);
    owned_.push_back(OwnDevice(device));
    return device;
  }
  // One K-major or row-major stride, the same of every entry.
  template <class Stride>
  Stride* RowStride(int64_t elements) {
    Stride stride{};
    cute::get<0>(stride) = elements;
    return Of<Stride>([&](int) { return stride; });
  }
  std::vector<SharedDevice> owned() const { return owned_; }

 private:
  std::vector<int> experts_;
  std::vector<SharedDevice> owned_;
};

// Rows of x are A, weights B; D is [rows, n].
template <class Gemm>
typename Gemm::Arguments GroupedArguments(const GroupedProduct& p, GroupArrays& arrays) {
  using Kernel = typename Gemm::GemmKernel;
  using Element = typename Kernel::ElementA;
  const int n = static_cast<int>(p.w->n), k = static_cast<int>(p.w->k);
  HADAL_CHECK(p.w->stride == k);
  typename Gemm::Arguments args{};
  args.mode = cutlass::gemm::GemmUniversalMode::kGrouped;
  args.problem_shape = {arrays.size(), arrays.Of<GroupArrays::Shape>([&](int e) {
                          const auto at = static_cast<size_t>(e);
                          return GroupArrays::Shape(p.first_row[at + 1] - p.first_row[at], n, k);
                        }),
                        nullptr};
  args.mainloop.ptr_A = arrays.Of<const Element*>([&](int e) {
    return static_cast<const Element*>(p.x) + int64_t{p.first_row[static_cast<size_t>(e)]} * k;
  });
  args.mainloop.dA = arrays.RowStride<typename Kernel::InternalStrideA>(k);
  args.mainloop.ptr_B = arrays.Of<const Element*>(
      [&](int e) { return reinterpret_cast<const Element*>(p.w->matrix(e)); });
  args.mainloop.dB = arrays.RowStride<typename Kernel::InternalStrideB>(k);
  args.epilogue.ptr_D = arrays.Of<cutlass::bfloat16_t*>([&](int e) {
    return static_cast<cutlass::bfloat16_t*>(p.y) +
           int64_t{p.first_row[static_cast<size_t>(e)]} * n;
  });
  args.epilogue.dD = arrays.RowStride<typename Kernel::InternalStrideD>(n);
  args.hw_info = cutlass::KernelHardwareInfo::make_kernel_hardware_info<Kernel>(0);
  return args;
}

template <class Gemm>
Peer GroupedPeer(std::string name, const typename Gemm::Arguments& args,
                 const GroupArrays& arrays) {
  auto gemm = std::make_shared<Gemm>();
  const SharedDevice workspace = CutlassWorkspace<Gemm>(args, name);
  CheckCutlass(gemm->initialize(args, workspace.get()), name);
  HADAL_CUDA(cudaDeviceSynchronize());
  return {name, [gemm, workspace, owned = arrays.owned(), name](cudaStream_t stream) {
            CheckCutlass(gemm->run(stream), name);
          }};
}

}  // namespace hadal::bench
