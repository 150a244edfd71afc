#pragma once

#include <cstdint>
#include <string>

#include "common/model_config.h"
#include "common/status.h"
#include "worker/model/model.h"

namespace hadal {

struct KvRequest {
  int64_t kv_blocks = 0;  // --kv-blocks, 0: not given
  int64_t kv_memory = 0;  // --kv-memory, bytes, 0: not given
};

// The number of KV blocks of one rank. Without a request: what fits into 90 % of `available`, at most
// eight sequences of the model's whole context (and at least 65,536 tokens). FAILED_PRECONDITION with
// the numbers, and with what would fit, when the plan exceeds `available`.
StatusOr<int32_t> DecideKvBlocks(const ModelConfig& config, const MemoryPlan& plan,
                                 const KvRequest& request, int64_t available);

// ModelOptions::expanded_tokens for a worker that was told none: 4096, or as many as fit into what
// everything else leaves, KV blocks of the request included, and into an eighth of `available`. Where KV
// blocks take what there is, they get at least half of it.
int32_t DefaultExpandedTokens(const ModelConfig& config, const Layout& layout, const Backend& backend,
                              ModelOptions options, const KvRequest& request, int64_t available);

// "weights 588.1 MiB + KV 1024 blocks x 2.8 MiB = 2.8 GiB + workspace 40.0 MiB = 3.4 GiB of 11.2 GiB
// available"; with "+ recorded steps 310.0 MiB" where there are any.
std::string DescribeMemoryPlan(const MemoryPlan& plan, int32_t kv_blocks, int64_t available);

// "588.1 MiB".
std::string FormatBytes(int64_t bytes);

// "512M", "8GiB", "1000000" -> bytes. INVALID_ARGUMENT names the accepted forms.
StatusOr<int64_t> ParseBytes(const std::string& text);

}  // namespace hadal
