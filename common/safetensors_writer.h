#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/safetensors.h"

namespace hadal {

// Decides where each tensor's bytes stand and returns what stands before them: the header's length,
// the header, padding to 8 bytes. Reads name, dtype_name and shape, sets begin and end. Wider
// elements come first, so that every tensor is aligned to its elements; otherwise the order given
// is kept. `format` becomes __metadata__.format; empty: no metadata. REQUIRES: names are unique and
// sizes fit 64 bits.
std::string LayOutSafetensors(std::string_view format, std::vector<TensorInfo>* tensors);

}  // namespace hadal
