#pragma once

#include "kernels/cuda/attention/mla_prefill.cuh"
#include "kernels/cuda/weights/packed_weight.h"

namespace hadal::cuda {

// Some heads of a stack of matrices as one matrix [heads * n, k]. FP8 is expanded into act, in
// scratch. Lives on the host; valid while the weight and the enclosing scratch scope are.
class HeadsView {
 public:
  HeadsView(const PackedWeight& heads, int first, int count, CudaContext& context);
  const PackedWeight& matrix() const { return view_; }
  static int64_t ScratchBytes(int64_t heads, int64_t n, int64_t k, DType act);

 private:
  struct View : CudaPackedWeight {
    ~View() override { data = nullptr; }  // it owns nothing
  };
  View view_;
};

// Latent rows of the piece's keys, from the paged cache into `out` [keys, latent_rank + rope_dim].
void GatherLatent(const MlaPrefillParams& p, const PrefillPiece& piece, void* out,
                  CudaContext& context);

// y [keys, w.n] = the gathered rows' latent part times w^T.
void ProjectUp(const MlaPrefillParams& p, int keys, const void* latent, const PackedWeight& w,
               void* y, CudaContext& context);

}  // namespace hadal::cuda
