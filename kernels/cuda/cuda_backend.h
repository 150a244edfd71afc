#pragma once

#include <memory>
#include <string>

#include "common/dtype.h"
#include "common/status.h"
#include "kernels/backend.h"

struct CUstream_st;  // what cudaStream_t points to

namespace hadal {

struct CudaBackendOptions {
  int device = 0;                  // index among the visible devices
  DType activation = DType::kBF16; // kF32 for F32 checkpoints
};

// Devices that this process can use; 0 also without a driver.
int CudaDeviceCount();

// FAILED_PRECONDITION says what is missing: no device, a driver too old, an architecture that this
// binary was not compiled for. The backend is used on the thread that makes it.
StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaBackendOptions& options);

// The stream on which a backend runs its ops, for collectives between them. REQUIRES: `backend`
// comes from MakeCudaBackend and lives as long as the stream is used.
CUstream_st* CudaBackendStream(const Backend& backend);

// Names a device among those of its host, whatever CUDA_VISIBLE_DEVICES makes its number. REQUIRES: as
// above.
std::string CudaDeviceUuid(const Backend& backend);

// Whether its products of many rows by FP8 weights round their inputs to FP8 (README.md, "Layouts").
// REQUIRES: as above.
bool CudaRoundsInputsToFp8(const Backend& backend);

}  // namespace hadal
