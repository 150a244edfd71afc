#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "kernels/backend.h"

namespace hadal {

// Instruction sets with a path of their own. kPortable runs on any x86-64.
enum class CpuIsa { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx };

std::string_view CpuIsaName(CpuIsa isa);
// The paths that this machine can run, best last; always begins with kPortable.
std::vector<CpuIsa> SupportedCpuIsas();

struct CpuBackendOptions {
  int threads = 0;       // 0: one per core this process may use
  std::string isa;       // "": the best; otherwise a name of SupportedCpuIsas()
  int64_t scale_block = 128;  // of the FP8 weights whose PackedBytes() are asked for
};

// INVALID_ARGUMENT when this machine lacks the instruction set.
StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuBackendOptions& options);

}  // namespace hadal
