#pragma once

// The seam between the model and the machine: two implementations (kernels/cpu, kernels/cuda) of the
// ops whose parameters are in op_params.h. All calls of one Backend come from one thread, in stream
// order; an op may return before it has run.
//
// Batch invariance, on the CPU: an output row depends on its own inputs only, bit for bit. No op
// may choose its order of accumulation by the number of rows. GPU ops may, within rounding.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/op_params.h"

namespace hadal {

// Device memory; freed with the object. Not initialised.
struct DeviceBuffer {
  virtual ~DeviceBuffer() = default;
  void* data = nullptr;
  int64_t bytes = 0;
  template <typename T>
  T* as() const { return static_cast<T*>(data); }
};

// Host memory that a device copies to and from without a detour; freed with the object.
struct HostBuffer {
  virtual ~HostBuffer() = default;
  void* data = nullptr;
  int64_t bytes = 0;
  template <typename T>
  T* as() const { return static_cast<T*>(data); }
};

// The largest operands that any op will be called with; what a backend reserves once.
struct OpLimits {
  int tokens = 0;          // of one step
  int logit_rows = 0;      // of one Sample()
  int64_t dim = 0;
  int64_t mlp_width = 0;   // of the widest Mlp or shared MLP
  int heads = 0;
  int latent_rank = 0;
  int nope_dim = 0;
  int rope_dim = 0;
  int v_dim = 0;
  int64_t q_rank = 0;      // inputs of the query projection when queries are compressed
  int64_t max_context = 0; // keys of one sequence
  int experts = 0;         // of the model; 0: none
  int local_experts = 0;   // of this rank
  int top_k = 0;
  int64_t moe_tokens = 0;  // of one Moe()
  int64_t moe_width = 0;
  int64_t vocab = 0;       // complete
};

class Backend {
 public:
  virtual ~Backend() = default;

  // For logs: "cpu avx512_bf16, 2 threads".
  virtual std::string name() const = 0;
  virtual DType activation_dtype() const = 0;

  // Throws std::bad_alloc, naming the bytes in the log, when memory is exhausted.
  virtual std::unique_ptr<DeviceBuffer> Allocate(int64_t bytes) = 0;
  virtual std::unique_ptr<HostBuffer> AllocateHost(int64_t bytes) = 0;
  // Bytes that this process may still allocate when `ranks` processes share its memory.
  virtual int64_t AvailableBytes(int ranks) const = 0;

  // In stream order. `host` may be reused on return.
  virtual void CopyToDevice(void* device, const void* host, int64_t bytes) = 0;
  // In stream order; `host` is complete on return.
  virtual void CopyToHost(void* host, const void* device, int64_t bytes) = 0;
  // In stream order; `host`, part of a HostBuffer, is complete once Done() says so of the ticket.
  virtual uint64_t StartCopyToHost(void* host, const void* device, int64_t bytes) = 0;
  virtual bool Done(uint64_t ticket) = 0;
  // Waits until Done(ticket). Throws when an op failed on the device.
  virtual void Await(uint64_t ticket) = 0;

  // Copies matrices of one shape into the backend's layout. REQUIRES: at least one.
  virtual std::unique_ptr<PackedWeight> Pack(const std::vector<StackedSource>& matrices,
                                             WeightUse use) = 0;
  // What Pack() will occupy for one [n, k] matrix.
  virtual int64_t PackedBytes(int64_t n, int64_t k, DType dtype, WeightUse use) const = 0;

  // Memory that ops need beside their operands, within `limits`; and taking it. Called once, before
  // the first op.
  virtual int64_t ScratchBytes(const OpLimits& limits) const = 0;
  virtual void Reserve(const OpLimits& limits) = 0;

  // Bytes of the keys and values of kBlockSize positions in ExpandedKeys, of all heads; 0: MlaPrefill
  // keeps none.
  virtual int64_t ExpandedTileBytes(const OpLimits& limits) const = 0;

  // Runs `ops`, or repeats what it did when it was last run under this key. REQUIRES: every
  // pointer, shape and bound that `ops` passes to ops is a function of the key. Key 0 is never
  // repeated.
  virtual void Replay(uint64_t key, const std::function<void()>& ops) = 0;
  // Whether Replay() repeats at all, so that padding a step to a common shape pays.
  virtual bool replays() const = 0;

  virtual void Embed(const EmbedParams& p) = 0;
  virtual void RmsNorm(const RmsNormParams& p) = 0;
  virtual void MatMul(const MatMulParams& p) = 0;
  virtual void HeadMatMul(const HeadMatMulParams& p) = 0;
  virtual void MlaInput(const MlaInputParams& p) = 0;
  virtual void MlaDecode(const MlaDecodeParams& p) = 0;
  virtual void MlaPrefill(const MlaPrefillParams& p) = 0;
  virtual void Mlp(const MlpParams& p) = 0;
  virtual void Route(const RouteParams& p) = 0;
  virtual void Moe(const MoeParams& p) = 0;
  virtual void AddRows(const AddRowsParams& p) = 0;
  virtual void CopyRows(const CopyRowsParams& p) = 0;
  virtual void Sample(const SampleParams& p) = 0;
  virtual void StoreTokens(const StoreTokensParams& p) = 0;
  virtual void TokenLogprobs(const TokenLogprobParams& p) = 0;

  // Pairs of ops that a backend may run as one.
  virtual void NormRoute(const RmsNormParams& norm, const RouteParams& p) {
    RmsNorm(norm);
    Route(p);
  }
  // p.x is norm.out, which need not be written.
  virtual void NormMatMul(const RmsNormParams& norm, const MatMulParams& p) {
    RmsNorm(norm);
    MatMul(p);
  }
  // out.x is p.out, which need not be written.
  virtual void MlaPrefillAndMatMul(const MlaPrefillParams& p, const MatMulParams& out) {
    MlaPrefill(p);
    MatMul(out);
  }
  // Neither reads what the other makes; both read the same rows.
  virtual void MlaInputAndAbsorb(const MlaInputParams& input, const HeadMatMulParams& p) {
    MlaInput(input);
    HeadMatMul(p);
  }

  // Returns when every op called so far has run. Throws when one failed on the device.
  virtual void Synchronize() = 0;
};

}  // namespace hadal
