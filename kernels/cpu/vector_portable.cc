#include "kernels/cpu/vector_kernels.h"

namespace hadal {
namespace {

#define HADAL_LANES 4
#include "kernels/cpu/vector_types.inc"
#include "kernels/cpu/vector_attention.inc"
#include "kernels/cpu/vector_rows.inc"

}  // namespace

const VectorKernels kVectorPortable = {
    kLanes, kKeyGroup, kScoreRows, Dot, TransposeKeys, ScoreTile, SoftmaxTile, WeightedSum, Widen,
    AddSquare, ScaleBy, SiluMulRow, AddScaled, BlockMax, ExpSum};

}  // namespace hadal
