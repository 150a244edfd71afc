#include <atomic>
#include <unordered_map>

#include "common/check.h"
#include "common/file.h"
#include "common/utf8.h"
#include "server/text/json_fields.h"
#include "server/text/tokenizer.h"
#include "server/text/tokenizer_json.h"
#include "server/text/utf8_cursor.h"
#include "server/text/word_cache.h"

namespace hadal {
namespace {

constexpr uint64_t kMaxFileBytes = 256ull << 20;

class BpeTokenizer : public Tokenizer {
 public:
  BpeTokenizer(TokenizerFile file, TokenizerConfig config)
      : pre_tokenizer_(std::move(file.pre_tokenizer)),
        merges_(file.merges, file.byte_ids),
        whole_pieces_(std::move(file.whole_pieces)),
        added_(file.added_tokens),
        tokens_(file.tokens),
        chat_template_(std::move(config.chat_template)) {
    static std::atomic<uint64_t> next_instance{1};
    instance_ = next_instance.fetch_add(1, std::memory_order_relaxed);
    for (AddedToken& token : file.added_tokens) {
      control_ids_.emplace(std::move(token.content), token.id);
    }
  }

  void SetBos(int32_t id, bool add) {
    bos_id_ = id;
    add_bos_ = add;
  }
  void SetChatTemplate(std::string text) { chat_template_ = std::move(text); }

  std::vector<int32_t> EncodeText(std::string_view text) const override {
    HADAL_CHECK(IsValidUtf8(text), "text to encode must be UTF-8");
    std::vector<int32_t> ids;
    AppendText(text, &ids);
    return ids;
  }

  std::vector<int32_t> EncodeWithControl(std::string_view text) const override {
    HADAL_CHECK(IsValidUtf8(text), "text to encode must be UTF-8");
    std::vector<int32_t> ids;
    for (const AddedTokenMatcher::Segment& segment : added_.Split(text)) {
      if (segment.id >= 0) {
        ids.push_back(segment.id);
      } else {
        AppendText(segment.text, &ids);
      }
    }
    return ids;
  }

  std::string_view TokenBytes(int32_t id) const override { return tokens_.Bytes(id); }
  bool IsSpecial(int32_t id) const override { return tokens_.IsSpecial(id); }

  std::string Decode(std::span<const int32_t> ids, bool skip_special_tokens) const override {
    std::string bytes;
    for (const int32_t id : ids) {
      if (!skip_special_tokens || !IsSpecial(id)) bytes += TokenBytes(id);
    }
    std::string text;
    text.reserve(bytes.size());
    AppendLossyUtf8(bytes, &text);
    return text;
  }

  std::optional<int32_t> ControlId(std::string_view content) const override {
    const auto found = control_ids_.find(std::string(content));
    if (found == control_ids_.end()) return std::nullopt;
    return found->second;
  }
  int32_t id_limit() const override { return tokens_.limit(); }
  std::optional<int32_t> bos_id() const override { return bos_id_; }
  bool add_bos() const override { return add_bos_; }
  const std::string& chat_template() const override { return chat_template_; }

 private:
  // Encodes each piece, from the cache when it can.
  class PieceEncoder final : public PieceSink {
   public:
    PieceEncoder(const BpeTokenizer& tokenizer, std::vector<int32_t>* ids)
        : tokenizer_(tokenizer), cache_(WordCache::ForThread(tokenizer.instance_)), ids_(ids) {}

    void Add(std::string_view piece) override {
      if (const auto known = cache_.Find(piece); !known.empty()) {
        ids_->insert(ids_->end(), known.begin(), known.end());
        return;
      }
      const size_t begin = ids_->size();
      tokenizer_.AppendPiece(piece, ids_);
      cache_.Insert(piece, std::span(*ids_).subspan(begin));
    }

   private:
    const BpeTokenizer& tokenizer_;
    WordCache& cache_;
    std::vector<int32_t>* ids_;
  };

  void AppendText(std::string_view text, std::vector<int32_t>* ids) const {
    PieceEncoder encoder(*this, ids);
    pre_tokenizer_.Split(text, &encoder);
  }

  void AppendPiece(std::string_view piece, std::vector<int32_t>* ids) const {
    if (!whole_pieces_.empty()) {
      const auto whole = whole_pieces_.find(std::string(piece));
      if (whole != whole_pieces_.end()) {
        ids->push_back(whole->second);
        return;
      }
    }
    merges_.Encode(piece, ids);
  }

  PreTokenizer pre_tokenizer_;
  BpeMerges merges_;
  std::unordered_map<std::string, int32_t> whole_pieces_;
  AddedTokenMatcher added_;
  TokenTable tokens_;
  std::unordered_map<std::string, int32_t> control_ids_;
  std::string chat_template_;
  std::optional<int32_t> bos_id_;
  bool add_bos_ = false;
  uint64_t instance_ = 0;  // never the same for two tokenizers of a process
};

StatusOr<std::unique_ptr<BpeTokenizer>> Make(std::string_view tokenizer_json,
                                             std::string_view config_json) {
  HADAL_ASSIGN_OR_RETURN(TokenizerFile file, ParseTokenizerFile(tokenizer_json));
  HADAL_ASSIGN_OR_RETURN(TokenizerConfig config, ParseTokenizerConfig(config_json));
  const std::string bos = config.bos_token;
  const bool add_bos = config.add_bos.value_or(!bos.empty() && file.leading_special == bos);
  auto tokenizer = std::make_unique<BpeTokenizer>(std::move(file), std::move(config));
  if (bos.empty()) return tokenizer;
  const auto id = tokenizer->ControlId(bos);
  if (!id) {
    return InvalidArgument(
        "tokenizer_config.json.bos_token: {} is not among the added_tokens of "
        "tokenizer.json",
        QuoteForMessage(bos));
  }
  tokenizer->SetBos(*id, add_bos);
  return tokenizer;
}

// The file's text, or nothing when there is no such file.
StatusOr<std::string> ReadIfThere(const std::string& path) {
  auto text = ReadFile(path, kMaxFileBytes);
  if (!text.ok() && text.status().code() == StatusCode::kNotFound) return std::string();
  return text;
}

}  // namespace

StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& model_dir) {
  HADAL_ASSIGN_OR_RETURN(const std::string json,
                         ReadFile(model_dir + "/tokenizer.json", kMaxFileBytes));
  HADAL_ASSIGN_OR_RETURN(const std::string config,
                         ReadIfThere(model_dir + "/tokenizer_config.json"));
  HADAL_ASSIGN_OR_RETURN(std::string chat_template,
                         ReadIfThere(model_dir + "/chat_template.jinja"));
  auto tokenizer = Make(json, config);
  if (!tokenizer.ok()) {
    return Status(tokenizer.status().code(), model_dir + ": " + tokenizer.status().message());
  }
  // As in transformers, the separate file wins.
  if (!chat_template.empty()) (*tokenizer)->SetChatTemplate(std::move(chat_template));
  return std::unique_ptr<Tokenizer>(std::move(*tokenizer));
}

StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(std::string_view tokenizer_json,
                                                      std::string_view config_json) {
  HADAL_ASSIGN_OR_RETURN(auto tokenizer, Make(tokenizer_json, config_json));
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

}  // namespace hadal
