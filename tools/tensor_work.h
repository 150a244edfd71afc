#pragma once

#include <string>

#include "common/safetensors.h"
#include "common/tensor_inventory.h"
#include "tools/output_file.h"

namespace hadal {

// Ways of one source tensor into an output file: each adds its tensors and their work. The entries
// outlive the file.

// The tensor as it is.
void AddCopy(const Checkpoint::Entry& source, OutputFile* file);
// A slice under another name. REQUIRES: one or two dimensions, a whole number of bytes per element.
void AddSlice(const Checkpoint::Entry& source, const TensorSlice& slice, std::string name,
              OutputFile* file);

struct BlockShape {
  int64_t rows = 128;
  int64_t columns = 128;
};
// An e4m3 matrix times its scales, F32 or BF16, one for each block. REQUIRES: shapes fit.
void AddCastToBf16(const Checkpoint::Entry& weight, const Checkpoint::Entry& scale,
                   BlockShape block, OutputFile* file);
// A BF16 matrix as e4m3, and its scales as NAME_scale_inv. DATA_LOSS when run on NaN or infinity.
void AddCastToF8E4M3(const Checkpoint::Entry& weight, BlockShape block, bool power_of_two,
                     OutputFile* file);

}  // namespace hadal
