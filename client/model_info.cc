#include "client/model_info.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "client/model_summary.h"
#include "common/converted_checkpoint.h"
#include "common/file.h"
#include "common/step_plan.h"

namespace hadal {
namespace {

struct Model {
  ModelConfig config;
  std::unique_ptr<Checkpoint> checkpoint;  // null: a config file alone
  std::string fingerprint;
  Layout layout;
  std::vector<TensorGroup> groups;
};

StatusOr<ModelConfig> ReadConfig(const ModelInfoOptions& options, bool file_alone) {
  if (!file_alone) return LoadModelConfig(options.model_dir);
  HADAL_ASSIGN_OR_RETURN(const auto json, ReadJsonFile(options.model_dir, kMaxConfigBytes));
  return ParseModelConfig(json, nullptr);
}

// Opens and checks the tensors, of a converted directory those of every rank; each problem's
// sentence goes to `problems`. The checkpoint of rank 0 stays.
void CheckTensors(const std::string& model_dir, Model* model, std::vector<std::string>* problems) {
  const auto converted = ConvertedRanks(model_dir);
  Layout layout = model->layout;
  const int files = converted.ok() && *converted == layout.world() ? *converted : 1;
  std::unique_ptr<Checkpoint> first;
  for (layout.rank = 0; layout.rank < files; ++layout.rank) {
    auto checkpoint = OpenCheckpoint(model_dir, model->config, layout);
    if (!checkpoint.ok()) problems->push_back(checkpoint.status().message());
    if (checkpoint.ok() && layout.rank == 0) first = std::move(checkpoint).value();
  }
  if (!first) return;
  auto fingerprint = ModelFingerprint(model_dir);
  if (!fingerprint.ok()) {
    problems->push_back(fingerprint.status().message());
    return;
  }
  model->fingerprint = std::move(fingerprint).value();
  model->checkpoint = std::move(first);
}

StatusOr<Model> ReadModel(const ModelInfoOptions& options) {
  std::error_code error;
  const bool file_alone = std::filesystem::is_regular_file(options.model_dir, error);
  Model model;
  HADAL_ASSIGN_OR_RETURN(model.config, ReadConfig(options, file_alone));
  model.layout = {options.tensor_parallel, options.data_parallel, 0};
  std::vector<std::string> problems;
  const Status layout = ValidateLayout(model.config, model.layout);
  if (!layout.ok()) problems.push_back(layout.message());
  if (!file_alone) CheckTensors(options.model_dir, &model, &problems);
  if (!problems.empty()) {
    return FailedPrecondition("{} cannot be loaded:\n{}", options.model_dir,
                              fmt::join(problems, "\n"));
  }
  model.groups = GroupTensors(model.config, model.checkpoint.get());
  return model;
}

std::string_view ScoreName(ScoreFunc score) {
  return score == ScoreFunc::kSigmoid ? "sigmoid" : "softmax";
}

std::string_view TopkName(TopkMethod method) {
  return method == TopkMethod::kGreedy    ? "greedy"
         : method == TopkMethod::kNoAuxTc ? "noaux_tc"
                                          : "group_limited_greedy";
}

// A float as it was written: 0.707, not 0.7070000171661377.
double Written(float value) { return std::stod(fmt::format("{}", value)); }

// The configuration under the reference's names.
nlohmann::ordered_json ConfigJson(const ModelConfig& c) {
  nlohmann::ordered_json out = {{"architecture", c.architecture},
                                {"model_type", c.model_type},
                                {"dtype", DTypeName(c.dtype)},
                                {"scale_block", c.scale_block},
                                {"scale_fmt", c.scale_fmt},
                                {"vocab_size", c.vocab_size},
                                {"dim", c.dim},
                                {"inter_dim", c.inter_dim},
                                {"moe_inter_dim", c.moe_inter_dim},
                                {"n_layers", c.n_layers},
                                {"n_dense_layers", c.n_dense_layers},
                                {"n_mtp_layers", c.n_mtp_layers},
                                {"n_heads", c.n_heads},
                                {"n_routed_experts", c.n_routed_experts},
                                {"n_shared_experts", c.n_shared_experts},
                                {"n_activated_experts", c.n_activated_experts},
                                {"n_expert_groups", c.n_expert_groups},
                                {"n_limited_groups", c.n_limited_groups},
                                {"score_func", ScoreName(c.score_func)},
                                {"topk_method", TopkName(c.topk_method)},
                                {"norm_topk_prob", c.norm_topk_prob},
                                {"route_scale", Written(c.route_scale)},
                                {"q_lora_rank", c.q_lora_rank},
                                {"kv_lora_rank", c.kv_lora_rank},
                                {"qk_nope_head_dim", c.qk_nope_head_dim},
                                {"qk_rope_head_dim", c.qk_rope_head_dim},
                                {"v_head_dim", c.v_head_dim},
                                {"norm_eps", Written(c.norm_eps)},
                                {"latent_norm_eps", Written(c.latent_norm_eps)},
                                {"rope_theta", Written(c.rope_theta)},
                                {"max_seq_len", c.max_seq_len},
                                {"bos_id", c.bos_id},
                                {"eos_ids", c.eos_ids},
                                {"softmax_scale", Written(c.SoftmaxScale())},
                                {"yarn", nullptr}};
  if (c.yarn) {
    out["yarn"] = {{"factor", Written(c.yarn->factor)},
                   {"beta_fast", Written(c.yarn->beta_fast)},
                   {"beta_slow", Written(c.yarn->beta_slow)},
                   {"mscale", Written(c.yarn->mscale)},
                   {"mscale_all_dim", Written(c.yarn->mscale_all_dim)},
                   {"original_seq_len", c.yarn->original_seq_len}};
  }
  return out;
}

std::string JsonText(const Model& model) {
  const ParameterCounts counts = CountParameters(model.config, model.groups);
  const int64_t kv_bytes = KvBytesPerToken(model.config);
  nlohmann::ordered_json out = {{"config", ConfigJson(model.config)},
                                {"fingerprint", nullptr},
                                {"parameters", counts.total},
                                {"parameters_per_token", counts.per_token},
                                {"kv_bytes_per_token", kv_bytes},
                                {"kv_bytes_per_block", kv_bytes * kBlockSize},
                                {"tensor_parallel", model.layout.tensor_parallel},
                                {"data_parallel", model.layout.data_parallel},
                                {"ranks", nlohmann::ordered_json::array()}};
  if (!model.fingerprint.empty()) out["fingerprint"] = model.fingerprint;
  Layout layout = model.layout;
  for (layout.rank = 0; layout.rank < layout.world(); ++layout.rank) {
    int64_t bytes = 0;
    auto tensors = nlohmann::ordered_json::array();
    for (const TensorGroup& group : model.groups) {
      const RankShare share = ShareOf(model.config, group, layout);
      bytes += share.bytes;
      tensors.push_back({{"name", group.pattern},
                         {"kind", group.kind},
                         {"dtype", DTypeName(group.dtype)},
                         {"full_shape", group.first.shape},
                         {"shape", share.shape},
                         {"count", share.count},
                         {"bytes", share.bytes}});
    }
    out["ranks"].push_back({{"rank", layout.rank}, {"weight_bytes", bytes}, {"tensors", tensors}});
  }
  return out.dump(2) + "\n";
}

std::string Bytes(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes >= int64_t{1} << 30) return fmt::format("{:.2f} GiB", value / (1 << 30));
  if (bytes >= 1 << 20) return fmt::format("{:.2f} MiB", value / (1 << 20));
  return fmt::format("{:.1f} KiB", value / 1024);
}

std::string Shape(const std::vector<int64_t>& shape) {
  return shape.empty() ? "-" : fmt::format("[{}]", fmt::join(shape, ", "));
}

std::string ConfigText(const Model& model) {
  std::string out;
  const nlohmann::ordered_json config = ConfigJson(model.config);
  for (const auto& [key, value] : config.items()) {
    out += fmt::format("  {:<22}{}\n", key,
                       value.is_string() ? value.get<std::string>() : value.dump());
  }
  return out;
}

// One line per group of tensors, with the shapes that occur: uneven splits differ by one.
std::string TensorTable(const Model& model) {
  std::string out = fmt::format("  {:<60} {:<9}{:>7}  {:<17} {}\n", "tensor", "type", "number",
                                "whole", "on a rank");
  for (const TensorGroup& group : model.groups) {
    std::vector<std::string> shapes;
    Layout layout = model.layout;
    for (layout.rank = 0; layout.rank < layout.world(); ++layout.rank) {
      const RankShare share = ShareOf(model.config, group, layout);
      std::string text = Shape(share.shape);
      if (group.first.split == Split::kExpert) text += fmt::format(" x {}", share.count);
      if (std::find(shapes.begin(), shapes.end(), text) == shapes.end()) shapes.push_back(text);
    }
    out += fmt::format("  {:<60} {:<9}{:>7}  {:<17} {}\n", group.pattern, DTypeName(group.dtype),
                       group.count, Shape(group.first.shape), fmt::join(shapes, " or "));
  }
  return out;
}

// "38.1 GiB (embedding 110.47 MiB, attention ...)" of one rank.
std::string BytesByKind(const Model& model, const Layout& layout) {
  int64_t total = 0;
  std::vector<std::string> order;
  std::map<std::string, int64_t> kinds;
  for (const TensorGroup& group : model.groups) {
    const int64_t bytes = ShareOf(model.config, group, layout).bytes;
    if (kinds.count(group.kind) == 0) order.push_back(group.kind);
    kinds[group.kind] += bytes;
    total += bytes;
  }
  std::string text;
  for (const std::string& kind : order) {
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", kind, Bytes(kinds[kind]));
  }
  return fmt::format("{} ({})", Bytes(total), text);
}

// Ranks that hold the same share a line.
std::string RankTable(const Model& model) {
  std::vector<std::pair<std::string, std::vector<int>>> lines;
  Layout layout = model.layout;
  for (layout.rank = 0; layout.rank < layout.world(); ++layout.rank) {
    const std::string text = BytesByKind(model, layout);
    const auto same = std::find_if(lines.begin(), lines.end(),
                                   [&](const auto& line) { return line.first == text; });
    if (same == lines.end()) {
      lines.push_back({text, {layout.rank}});
    } else {
      same->second.push_back(layout.rank);
    }
  }
  std::string out;
  for (const auto& [text, ranks] : lines) {
    const bool run =
        ranks.size() > 2 && ranks.back() - ranks.front() + 1 == static_cast<int>(ranks.size());
    out += run ? fmt::format("  ranks {} to {}, each: {}\n", ranks.front(), ranks.back(), text)
               : fmt::format("  rank{} {}: {}\n", ranks.size() == 1 ? "" : "s",
                             fmt::join(ranks, ", "), text);
  }
  return out;
}

std::string Text(const Model& model, const std::string& model_dir) {
  const ParameterCounts counts = CountParameters(model.config, model.groups);
  const int64_t kv_bytes = KvBytesPerToken(model.config);
  const Layout& layout = model.layout;
  std::string out = fmt::format("{}\n{}", model_dir, ConfigText(model));
  out += fmt::format("Parameters: {} in all, {} per token\n", counts.total, counts.per_token);
  out += fmt::format("KV cache: {} B per token, {} per block of {} tokens, on every rank\n",
                     kv_bytes, Bytes(kv_bytes * kBlockSize), kBlockSize);
  out += model.checkpoint == nullptr
             ? "Checkpoint: a config file alone, no tensor was checked\n"
             : fmt::format("Checkpoint: all {} tensors fit, fingerprint {}\n",
                           model.checkpoint->entries().size(), model.fingerprint);
  out +=
      fmt::format("Layout: tensor-parallel {} x data-parallel {} = {} ranks\n{}",
                  layout.tensor_parallel, layout.data_parallel, layout.world(), TensorTable(model));
  out += "Weights as stored\n" + RankTable(model);
  return out;
}

}  // namespace

StatusOr<std::string> DescribeModel(const ModelInfoOptions& options) {
  HADAL_ASSIGN_OR_RETURN(const Model model, ReadModel(options));
  return options.json ? JsonText(model) : Text(model, options.model_dir);
}

}  // namespace hadal
