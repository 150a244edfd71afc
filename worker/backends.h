#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "common/layout.h"
#include "common/model_config.h"
#include "common/status.h"
#include "kernels/backend.h"
#include "worker/comm/communicator.h"

namespace hadal {

// The backends that this binary was compiled with: "cpu", and "cuda" where nvcc was found.
std::vector<std::string> BackendNames();

struct BackendOptions {
  std::string name = "cpu";
  std::string isa;      // cpu: "" is the best of this machine
  int threads = 0;      // cpu: 0 is every core
  int64_t scale_block = 128;  // cpu: ModelConfig::scale_block
  int local_rank = 0;   // cuda: ranks of one host take its visible devices in turn
  DType activations = DType::kBF16;  // cuda: see ActivationsOf(); the cpu keeps them in F32
};

// What --activations may say.
inline const std::vector<std::string> kActivationNames = {"auto", "float32", "bfloat16"};

// What a GPU keeps the activations of this model in. "auto": bf16 where its attention has kernels on
// the tensor cores. Other dimensions take the general kernels, which multiply in FP32, so that rounding
// what they read would gain no speed and lose digits; and F32 checkpoints stay F32. INVALID_ARGUMENT
// where the two do not go together.
StatusOr<DType> ActivationsOf(const std::string& choice, const ModelConfig& config);

// FAILED_PRECONDITION or INVALID_ARGUMENT says what this machine lacks.
StatusOr<std::unique_ptr<Backend>> MakeBackend(const BackendOptions& options);

// Names the memory that a backend allocates from, among those of one host: ranks that share it have the
// same.
std::string MemoryName(const Backend& backend);

// Whether products of many rows by FP8 weights multiply in FP8: their inputs are rounded to e4m3, with
// one scale per token and 128 of them, where the weight's slice has whole scale blocks.
bool RoundsInputsToFp8(const Backend& backend);

// What the machine in hand reaches at best.
struct MachineCeilings {
  double read_gbs = 0;       // GB/s of reading memory
  double matmul_gflops = 0;  // of bf16 products, FP32 sums
};
// Takes a second or so, 2 GiB of a device's memory for that long and 64 MiB for good. `threads` of a CPU.
MachineCeilings MeasureCeilings(const std::string& backend, int threads);

// `host` with communicators for what lies in the backend's memory. Every rank of the world calls it.
// FAILED_PRECONDITION when this binary has none.
StatusOr<CommGroup> ConnectBackend(CommGroup host, const Backend& backend, const Layout& layout,
                                   double timeout_s);

}  // namespace hadal
