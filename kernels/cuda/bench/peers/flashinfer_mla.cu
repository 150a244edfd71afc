#include <flashinfer/attention/mla_hopper.cuh>
#include <flashinfer/attention/scheduler.cuh>

#include "common/check.h"
#include "common/step_plan.h"
#include "kernels/cuda/bench/peers/peers.h"

namespace hadal::bench {
namespace {

constexpr int kLatent = 512, kRope = 64;

using Element = __nv_bfloat16;
using Params = flashinfer::MLAParams<Element, Element, Element, int32_t>;

// The plan of all rows, and where the kernel finds it.
struct Plan {
  flashinfer::MLAPlanInfo info;
  SharedDevice ints, floats;

  Plan(int rows, int heads, int length) {
    constexpr size_t kIntBytes = 8 << 20, kFloatBytes = 256 << 20;
    const int blocks = (length + kBlockSize - 1) / kBlockSize;
    std::vector<int32_t> queries, pages, lengths(static_cast<size_t>(rows), length);
    for (int r = 0; r <= rows; ++r) {
      queries.push_back(r);
      pages.push_back(r * blocks);
    }
    ints = OwnDevice(DeviceBytes(kIntBytes));
    floats = OwnDevice(DeviceBytes(kFloatBytes));
    std::vector<char> staged(kIntBytes);
    size_t staged_bytes = 0;
    HADAL_CUDA(flashinfer::MLAPlan<int32_t>(
        floats.get(), kFloatBytes, ints.get(), staged.data(), kIntBytes, info, staged_bytes,
        queries.data(), pages.data(), lengths.data(), static_cast<uint32_t>(rows),
        static_cast<uint32_t>(heads), kLatent, /*causal=*/false, nullptr));
    HADAL_CUDA(cudaMemcpy(ints.get(), staged.data(), staged_bytes, cudaMemcpyHostToDevice));
    HADAL_CUDA(cudaDeviceSynchronize());
  }
  int32_t* at(int64_t offset) const {
    return flashinfer::GetPtrFromBaseOffset<int32_t>(ints.get(), offset);
  }
};

void SetPlan(const Plan& plan, Params& a) {
  const flashinfer::MLAPlanInfo& info = plan.info;
  a.q_indptr = plan.at(info.q_indptr_offset);
  a.kv_indptr = plan.at(info.kv_indptr_offset);
  a.partial_indptr = plan.at(info.partial_indptr_offset);
  a.merge_packed_offset_start = plan.at(info.merge_packed_offset_start_offset);
  a.merge_packed_offset_end = plan.at(info.merge_packed_offset_end_offset);
  a.merge_partial_packed_offset_start = plan.at(info.merge_partial_packed_offset_start_offset);
  a.merge_partial_packed_offset_end = plan.at(info.merge_partial_packed_offset_end_offset);
  a.merge_partial_stride = plan.at(info.merge_partial_stride_offset);
  a.q_len = plan.at(info.q_len_offset);
  a.kv_len = plan.at(info.kv_len_offset);
  a.q_start = plan.at(info.q_start_offset);
  a.kv_start = plan.at(info.kv_start_offset);
  a.kv_end = plan.at(info.kv_end_offset);
  a.work_indptr = plan.at(info.work_indptr_offset);
  a.partial_o = flashinfer::GetPtrFromBaseOffset<Element>(plan.floats.get(), info.partial_o_offset);
  a.partial_lse =
      flashinfer::GetPtrFromBaseOffset<float>(plan.floats.get(), info.partial_lse_offset);
}

// Latent and rotary part of a cache row lie side by side.
void SetOperands(const MlaDecodeParams& p, void* out, Params& a) {
  const auto element = [](const void* data) {
    return const_cast<Element*>(static_cast<const Element*>(data));
  };
  a.q_nope = element(p.q_latent);
  a.q_nope_stride_n = static_cast<uint32_t>(p.heads * kLatent);
  a.q_nope_stride_h = kLatent;
  a.q_pe = element(p.q_rope);
  a.q_pe_stride_n = static_cast<uint32_t>(p.q_rope_stride);
  a.q_pe_stride_h = static_cast<uint32_t>(p.q_rope_head_stride);
  a.ckv = element(p.cache);
  a.kpe = a.ckv + kLatent;
  a.ckv_stride_n = a.kpe_stride_n = kLatent + kRope;
  a.ckv_stride_page = a.kpe_stride_page = kBlockSize * (kLatent + kRope);
  a.final_o = element(out);
  a.final_lse = nullptr;
  a.o_stride_n = a.q_nope_stride_n;
  a.o_stride_h = kLatent;
  a.num_heads = flashinfer::uint_fastdiv(static_cast<uint32_t>(p.heads));
  a.block_size = flashinfer::uint_fastdiv(kBlockSize);
  a.sm_scale = p.scale;
  a.return_lse_base_on_e = false;
}

}  // namespace

DecodePeer FlashInferDecode(const MlaDecodeParams& p, int length, void* out) {
  HADAL_CHECK(p.latent_rank == kLatent && p.rope_dim == kRope && p.rows.max_row_tokens == 1);
  const Plan plan(p.rows.num_rows, p.heads, length);
  Params args{};
  SetPlan(plan, args);
  SetOperands(p, out, args);
  return [plan, args](const int32_t* block_tables, cudaStream_t stream) mutable {
    args.kv_indices = const_cast<int32_t*>(block_tables);
    const auto x = static_cast<uint32_t>(plan.info.num_blks_x);
    const auto y = static_cast<uint32_t>(plan.info.num_blks_y);
    HADAL_CUDA(
        (flashinfer::mla::BatchMLAPageAttentionHopper<flashinfer::MaskMode::kNone, kLatent, kRope>(
            args, x, y, stream)));
  };
}

}  // namespace hadal::bench
