#include "server/text/pre_tokenizer.h"

#include "server/text/json_fields.h"
#include "server/text/utf8_cursor.h"

namespace hadal {
namespace {

constexpr size_t kMaxStages = 32;

}  // namespace

StatusOr<PreTokenizer> PreTokenizer::Parse(const nlohmann::json& pre_tokenizer) {
  PreTokenizer result;
  HADAL_RETURN_IF_ERROR(result.AddStage(pre_tokenizer, "pre_tokenizer"));
  if (!result.byte_level_) {
    return InvalidArgument(
        "pre_tokenizer: only byte-level tokenizers are supported, and ByteLevel "
        "is not among its stages");
  }
  return result;
}

Status PreTokenizer::AddStage(const nlohmann::json& stage, const std::string& field) {
  HADAL_ASSIGN_OR_RETURN(const std::string type, StringField(stage, "type", field));
  if (type == "Sequence") {
    HADAL_ASSIGN_OR_RETURN(const auto* members, ArrayField(stage, "pretokenizers", field));
    for (size_t i = 0; i < members->size(); ++i) {
      HADAL_RETURN_IF_ERROR(AddStage((*members)[i], fmt::format("{}.pretokenizers[{}]", field, i)));
    }
    return OkStatus();
  }
  if (byte_level_) {
    return InvalidArgument("{}: a stage after ByteLevel is not supported", field);
  }
  if (stages_.size() == kMaxStages) {
    return InvalidArgument("{}: more than {} stages are not supported", field, kMaxStages);
  }
  if (type == "Split") return AddSplit(stage, field);
  if (type == "ByteLevel") return AddByteLevel(stage, field);
  if (type == "Digits") {
    HADAL_ASSIGN_OR_RETURN(const bool individual,
                           BoolField(stage, "individual_digits", false, field));
    stages_.push_back(MakeDigitsPattern(individual));
    return OkStatus();
  }
  return InvalidArgument("{}.type: {} is not supported; Sequence, Split, Digits and ByteLevel are",
                         field, QuoteForMessage(type));
}

Status PreTokenizer::AddSplit(const nlohmann::json& stage, const std::string& field) {
  HADAL_ASSIGN_OR_RETURN(const std::string behavior, StringField(stage, "behavior", field));
  if (behavior != "Isolated") {
    return InvalidArgument("{}.behavior: {} is not supported; Isolated is", field,
                           QuoteForMessage(behavior));
  }
  HADAL_ASSIGN_OR_RETURN(const bool invert, BoolField(stage, "invert", false, field));
  if (invert) return InvalidArgument("{}.invert: true is not supported", field);
  const auto pattern = stage.find("pattern");
  if (pattern == stage.end() || !pattern->is_object() || pattern->size() != 1) {
    return InvalidArgument("{}.pattern: must be an object with the one key Regex or String", field);
  }
  const std::string pattern_field = field + ".pattern";
  if (pattern->contains("String")) {
    HADAL_ASSIGN_OR_RETURN(const std::string text, StringField(*pattern, "String", pattern_field));
    HADAL_ASSIGN_OR_RETURN(auto made, MakeStringPattern(text, pattern_field + ".String"));
    stages_.push_back(std::move(made));
    return OkStatus();
  }
  HADAL_ASSIGN_OR_RETURN(const std::string regex, StringField(*pattern, "Regex", pattern_field));
  HADAL_ASSIGN_OR_RETURN(auto made, MakeRegexPattern(regex, pattern_field + ".Regex"));
  stages_.push_back(std::move(made));
  return OkStatus();
}

Status PreTokenizer::AddByteLevel(const nlohmann::json& stage, const std::string& field) {
  HADAL_ASSIGN_OR_RETURN(const bool prefix, BoolField(stage, "add_prefix_space", true, field));
  if (prefix) return InvalidArgument("{}.add_prefix_space: true is not supported", field);
  HADAL_ASSIGN_OR_RETURN(const bool use_regex, BoolField(stage, "use_regex", true, field));
  if (use_regex) stages_.push_back(MakeKnownPattern(kByteLevelRegex));
  byte_level_ = true;
  return OkStatus();
}

void PreTokenizer::RunStage(size_t stage, std::string_view text, PieceSink* sink) const {
  if (text.empty()) return;
  if (stage == stages_.size()) {
    sink->Add(text);
    return;
  }
  size_t done = 0;    // pieces before it have been passed on
  size_t search = 0;  // where the next match may begin
  bool after_match = false;
  while (search <= text.size()) {
    const auto match = stages_[stage]->Find(text, search);
    if (!match) break;
    if (match->end == match->begin && after_match && match->end == done) {
      // An empty match right after a match would repeat for ever.
      search += search < text.size() ? DecodeChar(text, search).length : 1;
      continue;
    }
    RunStage(stage + 1, text.substr(done, match->begin - done), sink);
    RunStage(stage + 1, text.substr(match->begin, match->end - match->begin), sink);
    done = search = match->end;
    after_match = true;
  }
  RunStage(stage + 1, text.substr(done), sink);
}

}  // namespace hadal
