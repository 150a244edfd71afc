#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "common/status.h"
#include "tools/output_plan.h"

namespace hadal {

struct RunOptions {
  int threads = 1;
  // One line on what is going on, at most every two seconds; from any thread, one at a time.
  std::function<void(const std::string& line)> report;
};

struct RunSummary {
  int written = 0;     // shards
  int kept = 0;        // shards that an earlier run had finished and that hold what they should
  uint64_t bytes = 0;  // of all shards
  double seconds = 0;
};

// What a run would do, one line for each file, with the bytes needed and the bytes free.
StatusOr<std::string> DescribePlan(const OutputPlan& plan);

// Writes the directory. Every file is written under a temporary name, synced and renamed, shards
// first; shards that are there are compared with the source and kept when they are equal.
// RESOURCE_EXHAUSTED before the first byte when the disk has too little space; INVALID_ARGUMENT for
// a directory that is the source or holds other safetensors files; UNAVAILABLE while another run
// writes it. Throws std::system_error when writing fails; what was finished stays, nothing else.
StatusOr<RunSummary> WriteOutput(const OutputPlan& plan, const RunOptions& options);

// Reads the directory again, from the disk, and compares all of it with what the source gives.
// ABORTED listing every file that differs.
StatusOr<RunSummary> VerifyOutput(const OutputPlan& plan, const RunOptions& options);

}  // namespace hadal
