#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/device/cuda_context.h"

// The attention family behind MlaDecode() and MlaPrefill(): several implementations of each.

namespace hadal::cuda {

// Which implementation runs; kAuto takes the fastest that the shapes, the types and the device
// allow. Any other value is for tests and benches: HADAL_CHECKs that it is allowed.
enum class MlaPath : uint8_t { kAuto, kGeneral, kMma, kCluster, kWgmma };

void MlaDecodeWith(MlaPath path, const MlaDecodeParams& p, CudaContext& context);
// `piece_bytes`: of keys and values that are projected up at once.
inline constexpr int64_t kPrefillPieceBytes = int64_t{128} << 20;
void MlaPrefillWith(MlaPath path, const MlaPrefillParams& p, CudaContext& context,
                    int64_t piece_bytes = kPrefillPieceBytes);

void MmaDecode(const MlaDecodeParams& p, CudaContext& context);
int64_t MmaDecodeScratchBytes();
void ClusterDecode(const MlaDecodeParams& p, CudaContext& context);
// CTAs that would share an item's keys, and whether that is faster than equal runs of all rows'
// keys.
int DecodeCluster(const MlaDecodeParams& p);
bool ClustersPay(const MlaDecodeParams& p, int cluster, const CudaContext& context);
void WgmmaDecode(const MlaDecodeParams& p, CudaContext& context);
int64_t WgmmaDecodeScratchBytes();
int64_t DecodeScratchBytes(const OpLimits& limits);
int64_t PrefillScratchBytes(const OpLimits& limits, DType act);

}  // namespace hadal::cuda
