#include "tools/cast_plan.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>

#include "common/atomic_file.h"
#include "common/model_config.h"
#include "common/rounding.h"
#include "common/tensor_inventory.h"
#include "common/utf8.h"
#include "tools/config_text.h"
#include "tools/tensor_work.h"

namespace hadal {
namespace {
namespace fs = std::filesystem;

constexpr std::string_view kScaleSuffix = "_scale_inv";
constexpr const char* kIndexName = "model.safetensors.index.json";

bool IsF8(const Checkpoint::Entry& entry) { return entry.info.dtype == DType::kF8E4M3; }

// The matrices that an FP8 release quantises, by the component before ".weight".
bool IsQuantizable(const std::string& name) {
  static constexpr std::array<std::string_view, 9> kMatrices = {
      ".q_proj.weight",    ".q_a_proj.weight",  ".q_b_proj.weight",
      ".kv_b_proj.weight", ".o_proj.weight",    ".gate_proj.weight",
      ".up_proj.weight",   ".down_proj.weight", ".kv_a_proj_with_mqa.weight"};
  return std::any_of(kMatrices.begin(), kMatrices.end(),
                     [&](std::string_view suffix) { return name.ends_with(suffix); });
}

// What is wrong with the scales of one matrix; empty when nothing is.
std::string ScaleProblem(const Checkpoint::Entry& weight, const Checkpoint::Entry* scale,
                         BlockShape block) {
  const std::string name = DisplayText(weight.info.name, 200);
  if (weight.info.shape.size() != 2) return fmt::format("{}: e4m3, but no matrix", name);
  if (scale == nullptr) return fmt::format("{}{}: missing", name, kScaleSuffix);
  if (scale->info.dtype != DType::kF32 && scale->info.dtype != DType::kBF16) {
    return fmt::format("{}{}: {} instead of F32 or BF16", name, kScaleSuffix,
                       scale->info.dtype_name);
  }
  const std::vector<int64_t> wanted = {CeilDiv(weight.info.shape[0], block.rows),
                                       CeilDiv(weight.info.shape[1], block.columns)};
  if (scale->info.shape == wanted) return {};
  return fmt::format("{}{}: [{}] instead of [{}]", name, kScaleSuffix,
                     fmt::join(scale->info.shape, ", "), fmt::join(wanted, ", "));
}

// Every e4m3 matrix has its scales, and every tensor named like scales has its matrix.
Status CheckScales(const Checkpoint& checkpoint, BlockShape block) {
  std::vector<std::string> problems;
  size_t matrices = 0;
  for (const auto& [name, entry] : checkpoint.entries()) {
    if (IsF8(entry)) {
      ++matrices;
      std::string problem =
          ScaleProblem(entry, checkpoint.Find(name + std::string(kScaleSuffix)), block);
      if (!problem.empty()) problems.push_back(std::move(problem));
    } else if (name.ends_with(kScaleSuffix)) {
      const Checkpoint::Entry* weight =
          checkpoint.Find(name.substr(0, name.size() - kScaleSuffix.size()));
      if (weight != nullptr && IsF8(*weight)) continue;
      problems.push_back(fmt::format("{}: scales of no e4m3 matrix", DisplayText(name, 200)));
    }
  }
  if (matrices == 0) {
    return FailedPrecondition("the checkpoint has no e4m3 tensor, so there is nothing to cast");
  }
  if (problems.empty()) return OkStatus();
  return FailedPrecondition(
      "{} of the checkpoint's scales cannot be used; fetch the shards that "
      "should hold them again:\n  {}",
      problems.size(), fmt::join(problems, "\n  "));
}

// The tensors of every file in the order in which they stand there.
std::map<std::string, std::vector<const Checkpoint::Entry*>> ByFile(const Checkpoint& checkpoint) {
  std::map<std::string, std::vector<const Checkpoint::Entry*>> files;
  for (const auto& [name, entry] : checkpoint.entries()) {
    files[fs::path(entry.file->path()).filename()].push_back(&entry);
  }
  for (auto& [name, entries] : files) {
    std::sort(entries.begin(), entries.end(), [](const auto* a, const auto* b) {
      return std::pair(a->info.begin, a->info.name) < std::pair(b->info.begin, b->info.name);
    });
  }
  return files;
}

// By this file make_demo_model.py knows a directory as its own, which it may replace.
constexpr std::string_view kDemoStamp = "hadal_checkpoint.json";

// Everything but weights, what the tool writes itself, the stamp, hidden files, and the output where it
// lies within.
StatusOr<std::vector<std::string>> OtherFiles(const std::string& dir, const std::string& output) {
  std::vector<std::string> names;
  std::error_code error;
  fs::recursive_directory_iterator it(dir, error);
  for (const fs::recursive_directory_iterator end; !error && it != end; it.increment(error)) {
    const std::string file = it->path().filename();
    std::error_code no_output;
    if (file.starts_with(".") || fs::equivalent(it->path(), output, no_output)) {
      it.disable_recursion_pending();
      continue;
    }
    const std::string name = fs::relative(it->path(), dir).string();
    const bool own = name == "config.json" || name == kIndexName || name == kDemoStamp;
    if (!it->is_regular_file() || own || file.ends_with(".safetensors") ||
        file.ends_with(AtomicFile::kSuffix)) {
      continue;
    }
    names.push_back(name);
  }
  if (error) return DataLoss("{}: cannot be listed: {}", dir, error.message());
  std::sort(names.begin(), names.end());
  return names;
}

// Finishes a plan whose shards have been added: index and copies. Shards that held nothing but
// scales have become empty and are left out.
Status Complete(OutputPlan* plan) {
  std::erase_if(plan->shards, [](const OutputFile& shard) { return shard.tensors.empty(); });
  for (OutputFile& shard : plan->shards) shard.Finish("pt");
  if (plan->shards.size() != 1 || plan->shards[0].name != "model.safetensors") {
    plan->texts[kIndexName] = IndexText(plan->shards);
  }
  HADAL_ASSIGN_OR_RETURN(plan->copies, OtherFiles(plan->source_dir, plan->directory));
  return OkStatus();
}

}  // namespace

StatusOr<OutputPlan> PlanCastToBf16(const std::string& source_dir, const std::string& directory) {
  HADAL_ASSIGN_OR_RETURN(const std::string config, ReadSourceText(source_dir, "config.json"));
  HADAL_ASSIGN_OR_RETURN(const BlockShape block, QuantizationBlock(config));
  OutputPlan plan{.source_dir = source_dir, .directory = directory};
  HADAL_ASSIGN_OR_RETURN(plan.checkpoint, Checkpoint::Open(source_dir));
  HADAL_RETURN_IF_ERROR(CheckScales(*plan.checkpoint, block));
  for (const auto& [name, entries] : ByFile(*plan.checkpoint)) {
    OutputFile file{.name = name};
    for (const Checkpoint::Entry* entry : entries) {
      if (IsF8(*entry)) {
        AddCastToBf16(*entry, *plan.checkpoint->Find(entry->info.name + std::string(kScaleSuffix)),
                      block, &file);
      } else if (!entry->info.name.ends_with(kScaleSuffix)) {
        AddCopy(*entry, &file);
      }
    }
    plan.shards.push_back(std::move(file));
  }
  plan.texts["config.json"] = ConfigTextForBf16(config);
  HADAL_RETURN_IF_ERROR(Complete(&plan));
  return plan;
}

StatusOr<OutputPlan> PlanCastToF8E4M3(const std::string& source_dir, const std::string& directory,
                                      bool power_of_two) {
  HADAL_ASSIGN_OR_RETURN(const std::string text, ReadSourceText(source_dir, "config.json"));
  const auto config = LoadModelConfig(source_dir);
  if (!config.ok()) return FailedPrecondition("{}", config.status().message());
  if (config->dtype != DType::kBF16) {
    return FailedPrecondition("{}/config.json says {}; only BF16 checkpoints are cast to e4m3",
                              source_dir, DTypeName(config->dtype));
  }
  OutputPlan plan{.source_dir = source_dir, .directory = directory};
  HADAL_ASSIGN_OR_RETURN(plan.checkpoint, Checkpoint::Open(source_dir));
  HADAL_RETURN_IF_ERROR(ValidateCheckpoint(*config, *plan.checkpoint));
  for (const auto& [name, entries] : ByFile(*plan.checkpoint)) {
    OutputFile file{.name = name};
    for (const Checkpoint::Entry* entry : entries) {
      const bool matrix = entry->info.shape.size() == 2 && entry->info.dtype == DType::kBF16;
      if (matrix && IsQuantizable(entry->info.name)) {
        AddCastToF8E4M3(*entry, BlockShape{}, power_of_two, &file);
      } else {
        AddCopy(*entry, &file);
      }
    }
    plan.shards.push_back(std::move(file));
  }
  plan.texts["config.json"] = ConfigTextForF8E4M3(text, BlockShape{}, power_of_two);
  HADAL_RETURN_IF_ERROR(Complete(&plan));
  return plan;
}

}  // namespace hadal
