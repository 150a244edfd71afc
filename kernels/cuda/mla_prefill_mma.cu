#include "common/check.h"
#include "kernels/cuda/mla_prefill.cuh"

namespace hadal::cuda {

bool MmaPrefillAllowed(const MlaPrefillParams&, const CudaContext&) { return false; }
int MmaPrefillTile() { return 64; }
void MmaPrefillPiece(const PrefillArgs&, const PrefillPiece&, CudaContext&) {
  HADAL_CHECK(false, "no such path");
}

}  // namespace hadal::cuda
