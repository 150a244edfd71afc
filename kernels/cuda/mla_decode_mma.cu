#include "common/check.h"
#include "kernels/cuda/mla_paths.h"

namespace hadal::cuda {

bool MmaDecodeAllowed(const MlaDecodeParams&, const CudaContext&) { return false; }
void MmaDecode(const MlaDecodeParams&, CudaContext&) { HADAL_CHECK(false, "no such path"); }
int64_t MmaDecodeScratchBytes() { return 0; }

}  // namespace hadal::cuda
