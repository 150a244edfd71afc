#include "worker/runtime/memory_budget.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <limits>

#include "worker/model/expanded_prompt.h"

namespace hadal {
namespace {

constexpr int64_t kMinDefaultTokens = 65536;
constexpr int64_t kDefaultSequences = 8;

constexpr int64_t kExpandedTokens = 4096;

// The end of a sentence about what would help.
std::string ExpandedAdvice(const MemoryPlan& plan) {
  if (plan.expanded == 0) return "";
  return fmt::format(", or --expanded-tokens, which takes {}", FormatBytes(plan.expanded));
}

// What may be allocated.
int64_t Usable(int64_t available) { return available - available / 10; }

}  // namespace

StatusOr<int32_t> DecideKvBlocks(const ModelConfig& config, const MemoryPlan& plan,
                                 const KvRequest& request, int64_t available) {
  const int64_t fixed = plan.weights + plan.recorded + plan.workspace;
  const int64_t fitting = std::max<int64_t>((Usable(available) - fixed) / plan.kv_per_block, 0);
  if (fitting == 0) {
    return FailedPrecondition(
        "This rank needs {} for weights and {} for its workspace, but only {} is available; use more "
        "ranks or hosts, or a checkpoint in FP8{}.",
        FormatBytes(plan.weights), FormatBytes(plan.workspace + plan.recorded), FormatBytes(available),
        ExpandedAdvice(plan));
  }
  int64_t blocks = request.kv_blocks;
  if (blocks == 0 && request.kv_memory > 0) {
    blocks = request.kv_memory / plan.kv_per_block;
    if (blocks == 0) {
      return InvalidArgument("--kv-memory {} is less than one KV block of {}",
                             FormatBytes(request.kv_memory), FormatBytes(plan.kv_per_block));
    }
  }
  if (blocks == 0) {
    const int64_t tokens = std::max(config.max_seq_len * kDefaultSequences, kMinDefaultTokens);
    return static_cast<int32_t>(std::min(fitting, tokens / kBlockSize));
  }
  if (blocks > fitting || blocks > std::numeric_limits<int32_t>::max()) {
    return FailedPrecondition("{}: at most {} KV blocks fit; lower --kv-blocks or --kv-memory{}.",
                              DescribeMemoryPlan(plan, static_cast<int32_t>(std::min<int64_t>(
                                                           blocks, std::numeric_limits<int32_t>::max())),
                                                 available),
                              fitting, ExpandedAdvice(plan));
  }
  return static_cast<int32_t>(blocks);
}

int32_t DefaultExpandedTokens(const ModelConfig& config, const Layout& layout, const Backend& backend,
                              ModelOptions options, const KvRequest& request, int64_t available) {
  options.expanded_tokens = 0;
  const MemoryPlan plan = PlanMemory(config, layout, backend, options);
  const int64_t asked =
      request.kv_blocks > 0 ? request.kv_blocks * plan.kv_per_block : request.kv_memory;
  const int64_t left = Usable(available) - plan.weights - plan.recorded - plan.workspace - asked;
  const int64_t bytes = std::clamp<int64_t>(asked > 0 ? left : left / 2, 0, available / 8);
  options.expanded_tokens = kBlockSize;  // the least that is kept
  const int64_t tile = ExpandedPrompt::Bytes(config, layout, backend, options);
  if (tile == 0) return 0;
  return static_cast<int32_t>(std::min(bytes / tile * kBlockSize, kExpandedTokens));
}

std::string DescribeMemoryPlan(const MemoryPlan& plan, int32_t kv_blocks, int64_t available) {
  const int64_t kv = plan.kv_per_block * kv_blocks;
  const std::string recorded =
      plan.recorded == 0 ? "" : fmt::format(" + recorded steps {}", FormatBytes(plan.recorded));
  return fmt::format("weights {} + KV {} blocks x {} = {} + workspace {}{} = {} of {} available",
                     FormatBytes(plan.weights), kv_blocks, FormatBytes(plan.kv_per_block),
                     FormatBytes(kv), FormatBytes(plan.workspace), recorded,
                     FormatBytes(plan.weights + kv + plan.workspace + plan.recorded),
                     FormatBytes(available));
}

std::string FormatBytes(int64_t bytes) {
  constexpr std::array kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

StatusOr<int64_t> ParseBytes(const std::string& text) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  auto [rest, error] = std::from_chars(text.data(), end, value);
  std::string unit(rest, end);
  for (char& c : unit) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (unit.ends_with("ib")) unit.resize(unit.size() - 2);
  constexpr std::string_view kUnits = "kmgt";
  int64_t factor = 1;
  if (!unit.empty()) {
    const size_t power = unit.size() == 1 ? kUnits.find(unit[0]) : std::string_view::npos;
    if (power == std::string_view::npos) value = -1;
    else factor = int64_t{1} << (10 * (power + 1));
  }
  if (error != std::errc() || value <= 0 || value > std::numeric_limits<int64_t>::max() / factor) {
    return InvalidArgument("\"{}\" is not a size; write bytes as 8589934592, 8192M or 8GiB", text);
  }
  return value * factor;
}

}  // namespace hadal
