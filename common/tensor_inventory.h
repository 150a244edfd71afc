#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "common/layout.h"
#include "common/model_config.h"
#include "common/safetensors.h"
#include "common/status.h"

namespace hadal {

// How a tensor is cut over the ranks.
enum class Split {
  kReplicate,
  kRows,         // dimension 0 over the T ranks of a D group
  kColumns,      // dimension 1 over the T ranks of a D group
  kHeads,        // dimension 0 over the T ranks, whole heads
  kHeadColumns,  // dimension 1 over the T ranks, whole heads
  kExpert,       // whole, on the rank that owns the expert
};

// One tensor that a config calls for, with its Hugging Face name.
struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<DType> dtypes;  // allowed
  Split split = Split::kReplicate;
  int64_t expert = -1;     // kExpert: its index
  std::string scale_name;  // kF8E4M3: "<...>.weight_scale_inv", F32 [ceil(r/b), ceil(c/b)]
  std::vector<int64_t>
      scaled_shape;  // of a scale: the shape of its weight, which decides its slice
};

// Every tensor of the model, layer by layer; scales are listed as tensors of their own, after their
// weight. MTP layers and known extras (rotary_emb.inv_freq) are not listed.
std::vector<ExpectedTensor> ExpectedTensors(const ModelConfig& config);

// The slice of `tensor` that `layout.rank` holds; rows and columns of a one-dimensional tensor are
// [0, n) x [0, 1). Empty ranges when the rank holds nothing of it. Of a scale it is every row and
// column that the rank's slice of the weight touches: entry (i, j) of the weight's slice has its
// scale at ((rows.begin + i) / b - scale.rows.begin, (columns.begin + j) / b -
// scale.columns.begin). REQUIRES: ValidateLayout(config, layout).ok().
struct TensorSlice {
  Range rows;
  Range columns;
};
TensorSlice SliceForRank(const ModelConfig& config, const ExpectedTensor& tensor,
                         const Layout& layout);

// FAILED_PRECONDITION listing every missing, extra, misshaped and wrong-dtype tensor, one a line.
Status ValidateTensors(const std::vector<ExpectedTensor>& expected, const Checkpoint& checkpoint,
                       const std::function<bool(std::string_view name)>& may_be_extra);

// ValidateTensors for a Hugging Face checkpoint; tensors of MTP layers and known extras may be
// present.
Status ValidateCheckpoint(const ModelConfig& config, const Checkpoint& checkpoint);

}  // namespace hadal
