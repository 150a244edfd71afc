#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "common/check.h"
#include "common/dtype.h"

namespace hadal {

// Device memory for the duration of one op: a bump pointer over one block that is reserved before
// the first op, so that a captured op finds its scratch where it was. Host-side object; memory is
// reused in stream order.
class DeviceScratch {
 public:
  // Frees what was allocated since its construction. Scopes nest.
  class Scope {
   public:
    explicit Scope(DeviceScratch& scratch) : scratch_(scratch), used_(scratch.used_) {}
    ~Scope() { scratch_.used_ = used_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    DeviceScratch& scratch_;
    int64_t used_;
  };

  static constexpr int64_t kAlign = 1024;  // TMA wants tiles of swizzled layouts aligned so
  static int64_t Aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

  // The block is the caller's; it replaces an earlier one. REQUIRES: nothing is allocated.
  void Reset(void* block, int64_t bytes) {
    HADAL_CHECK(used_ == 0);
    block_ = static_cast<char*>(block);
    bytes_ = bytes;
  }

  // Uninitialised, aligned to kAlign, valid until the enclosing Scope ends.
  template <typename T>
  T* Allocate(int64_t count) {
    char* at = block_ + used_;
    used_ += Aligned(count * static_cast<int64_t>(sizeof(T)));
    HADAL_CHECK(used_ <= bytes_, "an op needs {} bytes of scratch, {} were reserved", used_,
                bytes_);
    return reinterpret_cast<T*>(at);
  }

 private:
  char* block_ = nullptr;
  int64_t bytes_ = 0;
  int64_t used_ = 0;
};

// What every op of the CUDA backend runs with. Ops launch on `stream`, allocate nothing but from
// `scratch`, never synchronise, and may be under stream capture.
struct CudaContext {
  int device = 0;
  cudaStream_t stream = nullptr;
  DType act = DType::kBF16;   // kBF16 or kF32
  int sm_count = 0;
  int arch = 0;               // 10 * major + minor: 90 on Hopper
  DeviceScratch scratch;
  cublasLtHandle_t cublas = nullptr;
  void* cublas_workspace = nullptr;
  int64_t cublas_workspace_bytes = 0;
};

}  // namespace hadal
