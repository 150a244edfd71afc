#include "kernels/cpu/cpu_backend.h"

#include <sched.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/packed_weight.h"

namespace hadal {
namespace {

int UsableCores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(CPU_COUNT(&set), 1);
}

struct HostBuffer : DeviceBuffer {
  HostBuffer(void* memory, int64_t size) {
    data = memory;
    bytes = size;
  }
  ~HostBuffer() override { std::free(data); }
};

class CpuBackend : public Backend {
 public:
  CpuBackend(int threads, CpuIsa isa) : pool_(threads), context_(&pool_, isa) {}

  std::string name() const override {
    return fmt::format("cpu {}, {} thread{}", CpuIsaName(context_.isa), pool_.size(),
                       pool_.size() == 1 ? "" : "s");
  }
  DType activation_dtype() const override { return DType::kF32; }

  std::unique_ptr<DeviceBuffer> Allocate(int64_t bytes) override {
    void* data = nullptr;
    if (posix_memalign(&data, 64, static_cast<size_t>(std::max<int64_t>(bytes, 1))) != 0) {
      spdlog::error("out of memory: cannot allocate {} bytes", bytes);
      throw std::bad_alloc();
    }
    return std::make_unique<HostBuffer>(data, bytes);
  }
  void CopyToDevice(void* device, const void* host, int64_t bytes) override {
    if (bytes > 0) std::memcpy(device, host, static_cast<size_t>(bytes));
  }
  void CopyToHost(void* host, const void* device, int64_t bytes) override {
    if (bytes > 0) std::memcpy(host, device, static_cast<size_t>(bytes));
  }

  std::unique_ptr<PackedWeight> Pack(const std::vector<WeightSource>& sources) override {
    return PackCpuWeight(sources, pool_);
  }
  int64_t PackedBytes(int64_t n, int64_t k, DType dtype) const override {
    return CpuPackedBytes(n, k, dtype);
  }

  void Embed(const EmbedParams& p) override { hadal::Embed(p, context_); }
  void RmsNorm(const RmsNormParams& p) override { hadal::RmsNorm(p, context_); }
  void MatMul(const MatMulParams& p) override { hadal::MatMul(p, context_); }
  void HeadMatMul(const HeadMatMulParams& p) override { hadal::HeadMatMul(p, context_); }
  void Rope(const RopeParams& p) override { hadal::Rope(p, context_); }
  void StoreLatent(const StoreLatentParams& p) override { hadal::StoreLatent(p, context_); }
  void MlaDecode(const MlaDecodeParams& p) override { hadal::MlaDecode(p, context_); }
  void MlaPrefill(const MlaPrefillParams& p) override { hadal::MlaPrefill(p, context_); }
  void SiluMul(const SiluMulParams& p) override { hadal::SiluMul(p, context_); }
  void Route(const RouteParams& p) override { hadal::Route(p, context_); }
  void MoeMlp(const MoeMlpParams& p) override { hadal::MoeMlp(p, context_); }
  void MoeCombine(const MoeCombineParams& p) override { hadal::MoeCombine(p, context_); }
  void Sample(const SampleParams& p) override { hadal::Sample(p, context_); }
  void TokenLogprobs(const TokenLogprobParams& p) override { hadal::TokenLogprobs(p, context_); }

  void Synchronize() override {}  // every op has run when it returns

 private:
  ThreadPool pool_;
  CpuContext context_;
};

}  // namespace

StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuBackendOptions& options) {
  HADAL_ASSIGN_OR_RETURN(const CpuIsa isa, ParseCpuIsa(options.isa));
  if (options.threads < 0) return InvalidArgument("threads must not be negative");
  const int threads = options.threads > 0 ? options.threads : UsableCores();
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(threads, isa));
}

}  // namespace hadal
