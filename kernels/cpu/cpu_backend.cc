#include "kernels/cpu/cpu_backend.h"

#include <sched.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "common/host_memory.h"
#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/large_pages.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/packed_weight.h"

namespace hadal {
namespace {

int UsableCores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(CPU_COUNT(&set), 1);
}

Memory AllocateOrLog(int64_t bytes) {
  try {
    return AllocateMemory(bytes);
  } catch (const std::bad_alloc&) {
    spdlog::error("out of memory: cannot allocate {} bytes", bytes);
    throw;
  }
}

template <typename Buffer>
struct CpuMemory : Buffer {
  explicit CpuMemory(int64_t size) : memory(AllocateOrLog(size)) {
    this->data = memory.get();
    this->bytes = size;
  }
  Memory memory;
};

void Copy(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

class CpuBackend : public Backend {
 public:
  CpuBackend(int threads, CpuIsa isa, int64_t scale_block)
      : pool_(threads), context_(&pool_, isa), scale_block_(scale_block) {}

  std::string name() const override {
    return fmt::format("cpu {}, {} thread{}", CpuIsaName(context_.isa), pool_.size(),
                       pool_.size() == 1 ? "" : "s");
  }
  DType activation_dtype() const override { return DType::kF32; }

  std::unique_ptr<DeviceBuffer> Allocate(int64_t bytes) override {
    return std::make_unique<CpuMemory<DeviceBuffer>>(bytes);
  }
  std::unique_ptr<HostBuffer> AllocateHost(int64_t bytes) override {
    return std::make_unique<CpuMemory<HostBuffer>>(bytes);
  }
  int64_t AvailableBytes(int ranks) const override {
    return AvailableHostMemory() / std::max(ranks, 1);
  }
  // Every op has run when it returns, so copies need not wait.
  void CopyToDevice(void* device, const void* host, int64_t bytes) override {
    Copy(device, host, bytes);
  }
  void CopyToHost(void* host, const void* device, int64_t bytes) override {
    Copy(host, device, bytes);
  }
  uint64_t StartCopyToHost(void* host, const void* device, int64_t bytes) override {
    Copy(host, device, bytes);
    return 0;
  }
  bool Done(uint64_t) override { return true; }
  void Await(uint64_t) override {}

  std::unique_ptr<PackedWeight> Pack(const std::vector<StackedSource>& matrices,
                                     WeightUse) override {
    return PackCpuWeight(matrices, pool_);
  }
  int64_t PackedBytes(int64_t n, int64_t k, DType dtype, WeightUse) const override {
    return CpuPackedBytes(n, k, dtype, scale_block_);
  }

  // Inputs rounded for a product, the hidden rows of MLPs and experts. The largest op decides, as
  // they run one after the other; the arenas grow to it by themselves.
  int64_t ScratchBytes(const OpLimits& l) const override {
    const int64_t heads = l.heads;
    const int64_t inputs = std::max({l.dim, l.q_rank, heads * l.v_dim, heads * l.latent_rank,
                                     heads * l.nope_dim, 4 * l.mlp_width});
    const int64_t rows =
        l.experts == 0 ? 0 : l.moe_tokens * l.top_k * l.local_experts / l.experts;
    const int64_t experts = rows * (2 * l.dim + 3 * l.moe_width);
    return std::max(l.tokens * inputs, experts) * int64_t{sizeof(float)};
  }
  void Reserve(const OpLimits&) override {}
  int64_t ExpandedTileBytes(const OpLimits& l) const override {
    return hadal::ExpandedTileFloats(l.heads, l.nope_dim, l.rope_dim, l.v_dim) *
           int64_t{sizeof(float)};
  }

  void Replay(uint64_t, const std::function<void()>& ops) override { ops(); }
  bool replays() const override { return false; }

  void Embed(const EmbedParams& p) override { hadal::Embed(p, context_); }
  void RmsNorm(const RmsNormParams& p) override { hadal::RmsNorm(p, context_); }
  void MatMul(const MatMulParams& p) override { hadal::MatMul(p, context_); }
  void HeadMatMul(const HeadMatMulParams& p) override { hadal::HeadMatMul(p, context_); }
  void MlaInput(const MlaInputParams& p) override { hadal::MlaInput(p, context_); }
  void MlaDecode(const MlaDecodeParams& p) override { hadal::MlaDecode(p, context_); }
  void MlaPrefill(const MlaPrefillParams& p) override { hadal::MlaPrefill(p, context_); }
  void Mlp(const MlpParams& p) override { hadal::Mlp(p, context_); }
  void Route(const RouteParams& p) override { hadal::Route(p, context_); }
  void Moe(const MoeParams& p) override { hadal::Moe(p, context_); }
  void AddRows(const AddRowsParams& p) override { hadal::AddRows(p, context_); }
  void CopyRows(const CopyRowsParams& p) override {
    for (int64_t i = 0; i < p.rows; ++i) {
      Copy(static_cast<char*>(p.to) + i * p.to_stride,
           static_cast<const char*>(p.from) + i * p.from_stride, p.bytes);
    }
  }
  void Sample(const SampleParams& p) override { hadal::Sample(p, context_); }
  void StoreTokens(const StoreTokensParams& p) override { hadal::StoreTokens(p, context_); }
  void TokenLogprobs(const TokenLogprobParams& p) override { hadal::TokenLogprobs(p, context_); }

  void Synchronize() override {}

 private:
  ThreadPool pool_;
  CpuContext context_;
  const int64_t scale_block_;
};

}  // namespace

StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuBackendOptions& options) {
  HADAL_ASSIGN_OR_RETURN(const CpuIsa isa, ParseCpuIsa(options.isa));
  if (options.threads < 0) return InvalidArgument("threads must not be negative");
  const int threads = options.threads > 0 ? options.threads : UsableCores();
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(threads, isa, options.scale_block));
}

}  // namespace hadal
