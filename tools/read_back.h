#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "common/status.h"
#include "tools/output_file.h"

namespace hadal {

// Comparisons of what stands on the disk with what should. ABORTED names the file and the first
// difference found.

// Computes the whole file again and compares; pages that the kernel still holds are read from the
// disk anew. Also returns what ProduceFile does; `done` as there.
Status CompareWithPlan(const std::string& path, const OutputFile& file, int threads,
                       const std::function<void(uint64_t bytes)>& done);
Status CompareFiles(const std::string& from, const std::string& to);
Status CompareText(const std::string& path, std::string_view text);

}  // namespace hadal
