#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"

namespace hadal {

struct GemmKernels;

const GemmKernels& GemmKernelsFor(CpuIsa isa);

// What every op of the CPU backend runs with. Ops allocate only from the arenas: `shared` for what
// the calling thread prepares before a loop, scratch[thread] inside it.
struct CpuContext {
  CpuContext(ThreadPool* thread_pool, CpuIsa path)
      : pool(thread_pool), isa(path), gemm(&GemmKernelsFor(path)),
        scratch(static_cast<size_t>(thread_pool->size())) {}

  ThreadPool* pool;
  CpuIsa isa;
  const GemmKernels* gemm;
  ScratchArena shared;
  std::vector<ScratchArena> scratch;  // [pool->size()]
};

// The ops of kernels/backend.h, one free function each. Activations are float.
void Embed(const EmbedParams& p, CpuContext& context);
void RmsNorm(const RmsNormParams& p, CpuContext& context);
void MatMul(const MatMulParams& p, CpuContext& context);
void HeadMatMul(const HeadMatMulParams& p, CpuContext& context);
void Rope(const RopeParams& p, CpuContext& context);
void StoreLatent(const StoreLatentParams& p, CpuContext& context);
void MlaDecode(const MlaDecodeParams& p, CpuContext& context);
void MlaPrefill(const MlaPrefillParams& p, CpuContext& context);
void SiluMul(const SiluMulParams& p, CpuContext& context);
void Route(const RouteParams& p, CpuContext& context);
void MoeMlp(const MoeMlpParams& p, CpuContext& context);
void MoeCombine(const MoeCombineParams& p, CpuContext& context);
void Sample(const SampleParams& p, CpuContext& context);
void TokenLogprobs(const TokenLogprobParams& p, CpuContext& context);

// On the calling thread alone: y[i, :] = x[i, :] w^T for m rows, with the same bits as MatMul().
// x: [m, w.k], y: [m, w.n]; strides count floats.
void MatMulSerial(const float* x, int64_t x_stride, int m, const PackedWeight& w, float* y,
                  int64_t y_stride, const GemmKernels& kernels, ScratchArena& scratch);

// On the calling thread alone: out[i] = silu(gate[i]) * up[i]; out may be gate or up. An element
// has the same bits wherever it stands in the array.
void SiluMulSerial(const float* gate, const float* up, float* out, int64_t n, CpuIsa isa);

}  // namespace hadal
