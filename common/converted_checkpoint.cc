#include "common/converted_checkpoint.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <set>

namespace hadal {
namespace {
namespace fs = std::filesystem;

const std::map<std::string_view, std::string_view>& NewComponents() {
  static const std::map<std::string_view, std::string_view> kNames = {
      {"self_attn", "attn"},
      {"mlp", "ffn"},
      {"weight_scale_inv", "scale"},
      {"e_score_correction_bias", "bias"},
      {"embed_tokens", "embed"},
      {"input_layernorm", "attn_norm"},
      {"post_attention_layernorm", "ffn_norm"},
      {"q_proj", "wq"},
      {"q_a_proj", "wq_a"},
      {"q_a_layernorm", "q_norm"},
      {"q_b_proj", "wq_b"},
      {"kv_a_proj_with_mqa", "wkv_a"},
      {"kv_a_layernorm", "kv_norm"},
      {"kv_b_proj", "wkv_b"},
      {"o_proj", "wo"},
      {"gate_proj", "w1"},
      {"down_proj", "w2"},
      {"up_proj", "w3"},
      {"lm_head", "head"}};
  return kNames;
}

// Takes a number off the front.
std::optional<int> TakeNumber(std::string_view* text) {
  int number = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), number);
  if (error != std::errc()) return std::nullopt;
  text->remove_prefix(static_cast<size_t>(end - text->data()));
  return number;
}

// As ValidateTensors wants it: what the file itself should hold.
ExpectedTensor InFile(const RankTensor& tensor) {
  ExpectedTensor expected{.name = tensor.name, .dtypes = tensor.whole.dtypes};
  expected.shape = {tensor.slice.rows.size()};
  if (tensor.whole.shape.size() == 2) expected.shape.push_back(tensor.slice.columns.size());
  return expected;
}

StatusOr<std::unique_ptr<Checkpoint>> OpenRank(const std::string& path, const ModelConfig& config,
                                               const Layout& layout) {
  HADAL_ASSIGN_OR_RETURN(auto checkpoint, Checkpoint::OpenFile(path));
  const std::vector<RankTensor> tensors = RankTensors(config, layout);
  std::vector<ExpectedTensor> expected;
  for (const RankTensor& tensor : tensors) expected.push_back(InFile(tensor));
  const Status valid =
      ValidateTensors(expected, *checkpoint, [](std::string_view) { return false; });
  if (!valid.ok()) return Status(valid.code(), fmt::format("{}: {}", path, valid.message()));
  std::map<std::string, Checkpoint::Entry> entries;
  for (const RankTensor& tensor : tensors) {
    Checkpoint::Entry entry = *checkpoint->Find(tensor.name);
    entry.info.name = tensor.whole.name;
    entry.info.shape = tensor.whole.shape;
    entry.rows = tensor.slice.rows;
    entry.columns = tensor.slice.columns;
    entries.emplace(tensor.whole.name, std::move(entry));
  }
  checkpoint->SetEntries(std::move(entries));
  return checkpoint;
}

}  // namespace

std::string ReferenceTensorName(std::string_view name) {
  constexpr std::string_view kPrefix = "model.";
  if (name.starts_with(kPrefix)) name.remove_prefix(kPrefix.size());
  std::string out;
  while (!name.empty()) {
    const std::string_view component = name.substr(0, name.find('.'));
    name.remove_prefix(std::min(name.size(), component.size() + 1));
    const auto found = NewComponents().find(component);
    if (!out.empty()) out += '.';
    out += found == NewComponents().end() ? component : found->second;
  }
  return out;
}

std::string ConvertedFileName(int rank, int ranks) {
  return fmt::format("model{}-mp{}.safetensors", rank, ranks);
}

std::optional<int> RanksOfName(const std::string& name) {
  std::string_view text = name;
  if (!text.starts_with("model")) return std::nullopt;
  text.remove_prefix(5);
  const std::optional<int> rank = TakeNumber(&text);
  if (!rank || !text.starts_with("-mp")) return std::nullopt;
  text.remove_prefix(3);
  const std::optional<int> ranks = TakeNumber(&text);
  if (!ranks || *rank < 0 || *rank >= *ranks || name != ConvertedFileName(*rank, *ranks)) {
    return std::nullopt;
  }
  return ranks;
}

StatusOr<int> ConvertedRanks(const std::string& model_dir) {
  std::set<std::string> names;
  std::set<int> ranks;
  std::error_code error;
  for (fs::directory_iterator it(model_dir, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename();
    if (const std::optional<int> found = RanksOfName(name)) {
      names.insert(name);
      ranks.insert(*found);
    }
  }
  if (error) return NotFound("{}: cannot be listed: {}", model_dir, error.message());
  if (ranks.empty()) return 0;
  if (ranks.size() > 1) {
    return DataLoss(
        "{} holds files converted for {} ranks; keep each conversion in a directory of "
        "its own",
        model_dir, fmt::join(ranks, " and "));
  }
  const int count = *ranks.begin();
  for (int rank = 0; rank < count; ++rank) {
    const std::string name = ConvertedFileName(rank, count);
    if (names.count(name) != 0) continue;
    return DataLoss(
        "{} holds {} of {} converted files, {} is missing; run hadal-convert again, it "
        "keeps what is finished",
        model_dir, names.size(), count, name);
  }
  return count;
}

std::vector<RankTensor> RankTensors(const ModelConfig& config, const Layout& layout) {
  std::vector<RankTensor> out;
  for (ExpectedTensor& tensor : ExpectedTensors(config)) {
    const TensorSlice slice = SliceForRank(config, tensor, layout);
    if (tensor.split == Split::kExpert && slice.rows.size() == 0) continue;
    std::string name = ReferenceTensorName(tensor.name);
    out.push_back({std::move(tensor), std::move(name), slice});
  }
  return out;
}

StatusOr<std::unique_ptr<Checkpoint>> OpenCheckpoint(const std::string& model_dir,
                                                     const ModelConfig& config,
                                                     const Layout& layout) {
  HADAL_ASSIGN_OR_RETURN(const int ranks, ConvertedRanks(model_dir));
  if (ranks == 0) {
    HADAL_ASSIGN_OR_RETURN(auto checkpoint, Checkpoint::Open(model_dir));
    HADAL_RETURN_IF_ERROR(ValidateCheckpoint(config, *checkpoint));
    return checkpoint;
  }
  if (layout.tensor_parallel != ranks || layout.data_parallel != 1) {
    return FailedPrecondition(
        "{} was converted for {} tensor-parallel ranks and cannot be served by {} x {} ranks "
        "(tensor-parallel x data-parallel); start {} ranks with --data-parallel 1, convert for "
        "another number, or serve the Hugging Face directory, which any layout loads",
        model_dir, ranks, layout.tensor_parallel, layout.data_parallel, ranks);
  }
  return OpenRank(model_dir + "/" + ConvertedFileName(layout.rank, ranks), config, layout);
}

}  // namespace hadal
