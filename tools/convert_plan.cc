#include "tools/convert_plan.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "common/converted_checkpoint.h"
#include "common/file.h"
#include "common/model_config.h"
#include "tools/config_text.h"
#include "tools/tensor_work.h"

namespace hadal {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

struct Source {
  ModelConfig config;
  bool tied = false;  // the head is the embedding
};

// Tied embeddings are refused by servers, which want a head of its own; a conversion makes one.
StatusOr<Source> ReadSource(const std::string& dir) {
  HADAL_ASSIGN_OR_RETURN(const std::string text, ReadSourceText(dir, "config.json"));
  json config = json::parse(text);
  if (config.is_object() && config.contains("dim") && !config.contains("hidden_size")) {
    return FailedPrecondition(
        "{}/config.json has the reference's names, so this directory has been "
        "converted already; give the Hugging Face directory",
        dir);
  }
  std::optional<json> generation;
  const auto generation_text = ReadSourceText(dir, "generation_config.json");
  if (generation_text.ok()) {
    generation = json::parse(*generation_text);
  } else if (generation_text.status().code() != StatusCode::kNotFound) {
    return generation_text.status();
  }
  Source source;
  source.tied = config.is_object() && config.value("tie_word_embeddings", json()) == true;
  if (source.tied) config["tie_word_embeddings"] = false;
  auto parsed = ParseModelConfig(config, generation ? &*generation : nullptr);
  if (!parsed.ok()) {
    return FailedPrecondition("{}/config.json: {}", dir, parsed.status().message());
  }
  source.config = *parsed;
  return source;
}

Status CheckOptions(const ModelConfig& config, const ConvertOptions& options) {
  if (options.n_experts != config.n_routed_experts) {
    return InvalidArgument("--n-experts {} does not match the {} routed experts of config.json",
                           options.n_experts, config.n_routed_experts);
  }
  if (options.n_experts % options.ranks != 0) {
    return InvalidArgument("--n-experts {} is not divisible by --model-parallel {}",
                           options.n_experts, options.ranks);
  }
  const Status layout = ValidateLayout(config, {options.ranks, 1, 0});
  if (layout.ok()) return layout;
  return InvalidArgument("--model-parallel {}: {}", options.ranks, layout.message());
}

StatusOr<std::unique_ptr<Checkpoint>> OpenSource(const std::string& dir, const Source& source) {
  HADAL_ASSIGN_OR_RETURN(auto checkpoint, Checkpoint::Open(dir));
  const Checkpoint::Entry* embedding = checkpoint->Find("model.embed_tokens.weight");
  if (source.tied && embedding != nullptr && checkpoint->Find("lm_head.weight") == nullptr) {
    auto entries = checkpoint->entries();
    entries["lm_head.weight"] = *embedding;
    checkpoint->SetEntries(std::move(entries));
  }
  HADAL_RETURN_IF_ERROR(ValidateCheckpoint(source.config, *checkpoint));
  return checkpoint;
}

// In the order of the source's files, which are then read from front to back.
OutputFile RankFile(const ModelConfig& config, const Checkpoint& checkpoint, int rank, int ranks) {
  std::vector<std::pair<const Checkpoint::Entry*, RankTensor>> tensors;
  for (RankTensor& tensor : RankTensors(config, {ranks, 1, rank})) {
    tensors.emplace_back(checkpoint.Find(tensor.whole.name), std::move(tensor));
  }
  std::stable_sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    const auto place = [](const Checkpoint::Entry& entry) {
      return std::pair<const std::string&, uint64_t>(entry.file->path(), entry.info.begin);
    };
    return place(*a.first) < place(*b.first);
  });
  OutputFile file{.name = ConvertedFileName(rank, ranks)};
  for (auto& [entry, tensor] : tensors) {
    AddSlice(*entry, tensor.slice, std::move(tensor.name), &file);
  }
  file.Finish("");
  return file;
}

// Whether the reference's loader finds every piece as large as it expects and its scales whole.
bool EvenlyCut(const ModelConfig& config, int ranks) {
  for (const ExpectedTensor& tensor : ExpectedTensors(config)) {
    if (tensor.split == Split::kReplicate || tensor.split == Split::kExpert) continue;
    const size_t cut =
        tensor.split == Split::kColumns || tensor.split == Split::kHeadColumns ? 1 : 0;
    if (tensor.shape[cut] % ranks != 0) return false;
    const bool scale = !tensor.scaled_shape.empty();
    if (scale && tensor.scaled_shape[cut] / ranks % config.scale_block != 0 && ranks > 1) {
      return false;
    }
  }
  return true;
}

StatusOr<std::vector<std::string>> FilesToCopy(const std::string& dir) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename();
    const bool wanted = name.find("token") != std::string::npos ||
                        name == "generation_config.json" || name == "chat_template.jinja";
    if (wanted && it->is_regular_file(error)) names.push_back(name);
  }
  if (error) return DataLoss("{}: cannot be listed: {}", dir, error.message());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

StatusOr<OutputPlan> PlanConversion(const ConvertOptions& options) {
  HADAL_ASSIGN_OR_RETURN(const Source source, ReadSource(options.source_dir));
  HADAL_RETURN_IF_ERROR(CheckOptions(source.config, options));
  OutputPlan plan{.source_dir = options.source_dir, .directory = options.directory};
  HADAL_ASSIGN_OR_RETURN(plan.checkpoint, OpenSource(options.source_dir, source));
  for (int rank = 0; rank < options.ranks; ++rank) {
    plan.shards.push_back(RankFile(source.config, *plan.checkpoint, rank, options.ranks));
  }
  HADAL_ASSIGN_OR_RETURN(plan.copies, FilesToCopy(options.source_dir));
  plan.texts["config.json"] = ReferenceConfigText(source.config);
  const size_t skipped = plan.checkpoint->entries().size() - ExpectedTensors(source.config).size();
  if (skipped > 0) {
    plan.notes.push_back(
        fmt::format("{} tensors that inference does not use (multi-token prediction, rotary "
                    "tables) are left out",
                    skipped));
  }
  if (source.tied)
    plan.notes.push_back("the head is a copy of the embedding, which it was tied to");
  if (!EvenlyCut(source.config, options.ranks)) {
    plan.notes.push_back(
        fmt::format("some sizes or scale blocks do not divide by {}: hadal-worker loads these "
                    "files, DeepSeek's "
                    "own code would not",
                    options.ranks));
  }
  return plan;
}

}  // namespace hadal
