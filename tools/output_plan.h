#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/safetensors.h"
#include "common/status.h"
#include "tools/output_file.h"

namespace hadal {

// Everything a tool is going to write, known before the first byte.
struct OutputPlan {
  std::string source_dir;
  std::string directory;
  std::unique_ptr<Checkpoint> checkpoint;  // what the shards read
  std::vector<OutputFile> shards;
  std::vector<std::string> copies;           // files of the source, relative to it
  std::map<std::string, std::string> texts;  // name -> content; written last: without them nothing
                                             // loads the directory
  std::vector<std::string> notes;            // sentences for the user
};

// The index of shards: weight_map and total_size.
std::string IndexText(const std::vector<OutputFile>& shards);

// A JSON file of the source as it is to be written again: keys in their order, checked as
// ReadJsonFile does. FAILED_PRECONDITION or NOT_FOUND.
StatusOr<std::string> ReadSourceText(const std::string& source_dir, const std::string& name);

}  // namespace hadal
