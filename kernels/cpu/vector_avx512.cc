#include "kernels/cpu/vector_kernels.h"

namespace hadal {
namespace {

#define HADAL_LANES 16
#include "kernels/cpu/vector_types.inc"
#include "kernels/cpu/vector_attention.inc"
#include "kernels/cpu/vector_rows.inc"

}  // namespace

const VectorKernels kVectorAvx512 = {
    kLanes, kKeyGroup, kScoreRows, Dot, TransposeKeys, ScoreTile, SoftmaxTile, WeightedSum, Widen,
    AddSquare, ScaleBy, SiluMulRow, AddScaled, BlockMax, ExpSum};

}  // namespace hadal
