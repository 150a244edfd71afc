#include "worker/backends.h"

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/probes.h"
#ifdef HADAL_HAVE_CUDA
#include "kernels/cuda/bench/probes.h"
#include "kernels/cuda/cuda_backend.h"
#endif
#ifdef HADAL_HAVE_NCCL
#include "worker/comm/nccl_communicator.h"
#endif

namespace hadal {
namespace {

#ifdef HADAL_HAVE_CUDA
StatusOr<std::unique_ptr<Backend>> MakeCuda(const BackendOptions& options) {
  const int devices = CudaDeviceCount();
  return MakeCudaBackend({.device = devices == 0 ? 0 : options.local_rank % devices,
                          .activation = options.activations});
}
#endif

bool OnHost(const Backend& backend) { return backend.name().rfind("cpu", 0) == 0; }

}  // namespace

std::vector<std::string> BackendNames() {
#ifdef HADAL_HAVE_CUDA
  return {"cpu", "cuda"};
#else
  return {"cpu"};
#endif
}

StatusOr<std::unique_ptr<Backend>> MakeBackend(const BackendOptions& options) {
  if (options.name == "cpu") {
    return MakeCpuBackend({.threads = options.threads, .isa = options.isa,
                           .scale_block = options.scale_block});
  }
#ifdef HADAL_HAVE_CUDA
  if (options.name == "cuda") return MakeCuda(options);
#endif
  return InvalidArgument("backend \"{}\" is not in this binary; it has: {}", options.name,
                         fmt::join(BackendNames(), ", "));
}

StatusOr<DType> ActivationsOf(const std::string& choice, const ModelConfig& config) {
  const bool released_dims = config.kv_lora_rank == 512 && config.qk_rope_head_dim == 64 &&
                             config.qk_nope_head_dim == 128 && config.v_head_dim == 128;
  if (config.dtype == DType::kF32) {
    if (choice != "bfloat16") return DType::kF32;
    return InvalidArgument("--activations bfloat16: this checkpoint's weights are F32, which are computed "
                           "in float32; leave the flag out, or convert the checkpoint to bf16");
  }
  if (choice == "auto") return released_dims ? DType::kBF16 : DType::kF32;
  return choice == "float32" ? DType::kF32 : DType::kBF16;
}

std::string MemoryName(const Backend& backend) {
#ifdef HADAL_HAVE_CUDA
  if (!OnHost(backend)) return CudaDeviceUuid(backend);
#endif
  (void)backend;
  return "host";
}

bool RoundsInputsToFp8(const Backend& backend) {
#ifdef HADAL_HAVE_CUDA
  if (!OnHost(backend)) return CudaRoundsInputsToFp8(backend);
#endif
  (void)backend;
  return false;
}

MachineCeilings MeasureCeilings(const std::string& backend, int threads) {
#ifdef HADAL_HAVE_CUDA
  if (backend == "cuda") {
    const bench::Ceilings card = bench::MeasureCeilings(bench::BenchContext(0));
    return {card.read_gbs, card.bf16_tflops * 1e3};
  }
#endif
  (void)backend;
  return {ReadBandwidthGBs(threads), MatMulCeilingGflops(threads, SupportedCpuIsas().back())};
}

StatusOr<CommGroup> ConnectBackend(CommGroup host, const Backend& backend, const Layout& layout,
                                   double timeout_s) {
  // A rank alone exchanges nothing.
  if (OnHost(backend) || layout.world() == 1) return host;
#ifdef HADAL_HAVE_NCCL
  HADAL_ASSIGN_OR_RETURN(NcclCommGroup device,
                         MakeNcclCommGroup(*host.world, layout, CudaBackendStream(backend),
                                           {.timeout_s = timeout_s}));
  host.act_world = device.world;
  host.act_tensor = device.tensor;
  host.watch = device.watch;
  return host;
#else
  (void)timeout_s;
  return FailedPrecondition("several ranks with backend {} need NCCL, which this binary was built "
                            "without; install it and build again, or use one rank",
                            backend.name());
#endif
}

}  // namespace hadal
