#include "common/utf8.h"
#include "server/text/tokenizer.h"
#include "server/text/utf8_cursor.h"

namespace hadal {

std::string IncrementalDecoder::Push(int32_t id) {
  if (skip_special_tokens_ && tokenizer_->IsSpecial(id)) return {};
  pending_ += tokenizer_->TokenBytes(id);
  const size_t held = IncompleteUtf8Tail(pending_);
  std::string text;
  AppendLossyUtf8(std::string_view(pending_).substr(0, pending_.size() - held), &text);
  pending_.erase(0, pending_.size() - held);
  return text;
}

std::string IncrementalDecoder::Finish() {
  std::string text;
  AppendLossyUtf8(pending_, &text);
  pending_.clear();
  return text;
}

}  // namespace hadal
