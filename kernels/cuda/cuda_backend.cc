#include "kernels/cuda/cuda_backend.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/cuda/attention/ops.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/device/copy_queue.h"
#include "kernels/cuda/device/cuda_check.h"
#include "kernels/cuda/device/device_memory.h"
#include "kernels/cuda/device/graph_cache.h"
#include "kernels/cuda/experts/ops.h"
#include "kernels/cuda/products/ops.h"
#include "kernels/cuda/routing/ops.h"
#include "kernels/cuda/rows/ops.h"
#include "kernels/cuda/sampling/ops.h"
#include "kernels/cuda/weights/packed_weight.h"

namespace hadal {
namespace {

// NVIDIA's advice for Hopper.
constexpr int64_t kCublasWorkspaceBytes = int64_t{32} << 20;

int64_t OpScratchBytes(const OpLimits& limits, DType act) {
  return std::max({cuda::MatMulScratchBytes(limits, act), cuda::AttentionScratchBytes(limits, act),
                   cuda::MoeScratchBytes(limits, act), cuda::SampleScratchBytes(limits)});
}

// A stream that is destroyed after everything that uses it.
struct Stream {
  cudaStream_t stream = nullptr;
  Stream() { HADAL_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(stream); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
};

class CudaBackend final : public Backend {
 public:
  // `context` has its device open.
  CudaBackend(const CudaContext& context, std::string device_name)
      : device_name_(std::move(device_name)), context_(context), copies_(stream_.stream),
        graphs_(stream_.stream) {
    context_.stream = stream_.stream;
  }
  ~CudaBackend() override {
    cudaStreamSynchronize(stream_.stream);
    if (context_.cublas != nullptr) cublasLtDestroy(context_.cublas);
  }

  std::string name() const override {
    return fmt::format("cuda {}, sm_{}", device_name_, context_.arch);
  }
  DType activation_dtype() const override { return context_.act; }
  cudaStream_t stream() const { return stream_.stream; }
  std::string device_uuid() const { return DeviceUuid(context_.device); }
  // cuBLASLt's block scales and the tiles of experts are for Hopper.
  bool rounds_inputs_to_fp8() const { return context_.act == DType::kBF16 && context_.arch == 90; }

  std::unique_ptr<DeviceBuffer> Allocate(int64_t bytes) override { return AllocateDevice(bytes); }
  std::unique_ptr<HostBuffer> AllocateHost(int64_t bytes) override { return AllocatePinned(bytes); }
  int64_t AvailableBytes(int ranks) const override { return FreeDeviceBytes() / ranks; }

  void CopyToDevice(void* device, const void* host, int64_t bytes) override {
    copies_.ToDevice(device, host, bytes);
  }
  void CopyToHost(void* host, const void* device, int64_t bytes) override {
    copies_.ToHost(host, device, bytes);
  }
  uint64_t StartCopyToHost(void* host, const void* device, int64_t bytes) override {
    return copies_.StartToHost(host, device, bytes);
  }
  bool Done(uint64_t ticket) override { return copies_.Done(ticket); }
  void Await(uint64_t ticket) override { copies_.Await(ticket); }

  std::unique_ptr<PackedWeight> Pack(const std::vector<StackedSource>& matrices,
                                     WeightUse use) override {
    return PackCudaWeight(matrices, context_, use);
  }
  int64_t PackedBytes(int64_t n, int64_t k, DType dtype, WeightUse use) const override {
    return CudaPackedBytes(n, k, PackedType(dtype, use, context_.act));
  }

  int64_t ScratchBytes(const OpLimits& limits) const override {
    return OpScratchBytes(limits, context_.act) + kCublasWorkspaceBytes;
  }
  void Reserve(const OpLimits& limits) override;

  void Replay(uint64_t key, const std::function<void()>& ops) override { graphs_.Replay(key, ops); }
  bool replays() const override { return true; }

  void Embed(const EmbedParams& p) override { cuda::Embed(p, context_); }
  void RmsNorm(const RmsNormParams& p) override { cuda::RmsNorm(p, context_); }
  void MatMul(const MatMulParams& p) override { cuda::MatMul(p, context_); }
  void HeadMatMul(const HeadMatMulParams& p) override { cuda::HeadMatMul(p, context_); }
  void MlaInput(const MlaInputParams& p) override { cuda::MlaInput(p, context_); }
  void MlaInputAndAbsorb(const MlaInputParams& input, const HeadMatMulParams& p) override {
    cuda::MlaInputAndAbsorb(input, p, context_);
  }
  void MlaDecode(const MlaDecodeParams& p) override { cuda::MlaDecode(p, context_); }
  int64_t ExpandedTileBytes(const OpLimits&) const override { return 0; }
  void MlaPrefill(const MlaPrefillParams& p) override { cuda::MlaPrefill(p, context_); }
  void MlaPrefillAndMatMul(const MlaPrefillParams& p, const MatMulParams& out) override {
    cuda::MlaPrefillAndMatMul(p, out, context_);
  }
  void Mlp(const MlpParams& p) override { cuda::Mlp(p, context_); }
  void Route(const RouteParams& p) override { cuda::Route(p, context_); }
  void Moe(const MoeParams& p) override { cuda::Moe(p, context_); }
  void AddRows(const AddRowsParams& p) override { cuda::AddRows(p, context_); }
  void CopyRows(const CopyRowsParams& p) override { cuda::CopyRows(p, context_); }
  void Sample(const SampleParams& p) override { cuda::Sample(p, context_); }
  void StoreTokens(const StoreTokensParams& p) override { cuda::StoreTokens(p, context_); }
  void TokenLogprobs(const TokenLogprobParams& p) override { cuda::TokenLogprobs(p, context_); }

  void NormRoute(const RmsNormParams& norm, const RouteParams& p) override {
    cuda::NormRoute(norm, p, context_);
  }

  void NormMatMul(const RmsNormParams& norm, const MatMulParams& p) override {
    cuda::NormMatMul(norm, p, context_);
  }

  void Synchronize() override { HADAL_CUDA(cudaStreamSynchronize(stream_.stream)); }

 private:
  const std::string device_name_;
  CudaContext context_;
  Stream stream_;
  CopyQueue copies_;
  GraphCache graphs_;
  std::unique_ptr<DeviceBuffer> scratch_;
  std::unique_ptr<DeviceBuffer> cublas_workspace_;
};

void CudaBackend::Reserve(const OpLimits& limits) {
  HADAL_CHECK(context_.cublas == nullptr, "Reserve() is called once");
  const cublasStatus_t status = cublasLtCreate(&context_.cublas);
  if (status != CUBLAS_STATUS_SUCCESS) {
    ThrowCudaError("cublasLtCreate", __FILE__, __LINE__, cublasLtGetStatusString(status));
  }
  cublas_workspace_ = AllocateDevice(kCublasWorkspaceBytes);
  context_.cublas_workspace = cublas_workspace_->data;
  context_.cublas_workspace_bytes = kCublasWorkspaceBytes;
  scratch_ = AllocateDevice(OpScratchBytes(limits, context_.act));
  context_.scratch.Reset(scratch_->data, scratch_->bytes);
}

}  // namespace

StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaBackendOptions& options) {
  if (options.activation != DType::kBF16 && options.activation != DType::kF32) {
    return InvalidArgument("activations on a CUDA device are BF16 or F32, not {}",
                           DTypeName(options.activation));
  }
  CudaContext context;
  context.act = options.activation;
  HADAL_ASSIGN_OR_RETURN(std::string name, OpenCudaDevice(options.device, &context));
  return std::unique_ptr<Backend>(std::make_unique<CudaBackend>(context, std::move(name)));
}

CUstream_st* CudaBackendStream(const Backend& backend) {
  return dynamic_cast<const CudaBackend&>(backend).stream();
}

std::string CudaDeviceUuid(const Backend& backend) {
  return dynamic_cast<const CudaBackend&>(backend).device_uuid();
}

bool CudaRoundsInputsToFp8(const Backend& backend) {
  return dynamic_cast<const CudaBackend&>(backend).rounds_inputs_to_fp8();
}

}  // namespace hadal
