#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "hadal/v1/types.pb.h"

namespace hadal {

// The options that generate, chat and bench share. What is not given is left to the server.
struct RequestFlags {
  std::string server = "127.0.0.1:50051";
  std::optional<int> max_tokens;
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<int> top_k;
  std::optional<float> min_p;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  std::vector<int> stop_token_ids;
  bool ignore_eos = false;
  double timeout_s = 600;
};

void AddServerFlag(std::string* server, CLI::App* app);
void AddSeedFlag(std::optional<uint64_t>* seed, const std::string& help, CLI::App* app);
void AddTimeoutFlag(double* timeout_s, CLI::App* app);
void AddWaitFlag(double* wait_s, CLI::App* app);
void AddRequestFlags(RequestFlags* flags, CLI::App* app);
// `text`, or for "-" standard input without the newline at its end.
std::string TextOrStdin(const std::string& text);
v1::SamplingOptions ToSamplingOptions(const RequestFlags& flags);

}  // namespace hadal
