#pragma once

#include <cstdint>
#include <string>

#include "common/status.h"

namespace hadal {

// The command line of hadal-worker.
struct WorkerOptions {
  std::string model_dir;
  std::string server = "127.0.0.1:50052";
  std::string join_secret_file;
  std::string backend = "cpu";
  std::string isa;
  std::string activations = "auto";
  std::string load_format = "auto";
  std::string log_level = "info";
  int tensor_parallel = 0;   // 0: all ranks / data_parallel
  int data_parallel = 1;
  int threads = 0;           // 0: cores / ranks on this host
  int32_t kv_blocks = 0;
  int64_t kv_memory = 0;     // bytes
  int32_t max_slots = 128;
  int32_t max_step_tokens = 0;   // 0: as suits the backend
  int32_t expanded_tokens = -1;  // below 0: as memory allows
  bool warm_up = true;
  double step_timeout_s = 120;
};

// Parses argv. On --help or an error `exit_code` is set and `text` holds what to print.
struct ParsedOptions {
  WorkerOptions options;
  bool exit = false;
  int exit_code = 0;
  std::string text;
};
ParsedOptions ParseWorkerOptions(int argc, char** argv);

}  // namespace hadal
