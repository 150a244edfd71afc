// Encodes and decodes the cases of a file, for compare_tokenizers.py, which holds the answers
// against those of Hugging Face tokenizers.
//
//   tokenizer_compare TOKENIZER_JSON CASES ANSWERS
//
// CASES: per case 'T', the length of a text in bytes (uint32) and its bytes, or 'I', a count
// (uint32) and that many ids (int32). ANSWERS: for a text the ids of EncodeText and of
// EncodeWithControl (uint32 count, int32 each); then, for those ids or the given ones, Decode with
// and without special tokens (uint32 length, bytes). Fails when decoding token by token gives
// another text.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "common/utf8.h"
#include "server/text/tokenizer.h"

namespace hadal {
namespace {

std::string ReadAll(const char* path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class CaseReader {
 public:
  explicit CaseReader(std::string_view cases) : rest_(cases) {}
  bool empty() const { return rest_.empty(); }
  char Kind() { return Take(1).front(); }
  std::string_view Text() { return Take(Count()); }
  std::vector<int32_t> Ids() {
    std::vector<int32_t> ids(Count());
    const std::string_view bytes = Take(ids.size() * sizeof(int32_t));
    if (!ids.empty()) std::memcpy(ids.data(), bytes.data(), bytes.size());
    return ids;
  }

 private:
  size_t Count() {
    uint32_t count = 0;
    std::memcpy(&count, Take(sizeof count).data(), sizeof count);
    return count;
  }
  std::string_view Take(size_t size) {
    const std::string_view taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }

  std::string_view rest_;
};

class AnswerWriter {
 public:
  explicit AnswerWriter(const char* path) : out_(path, std::ios::binary) {}
  bool good() const { return out_.good(); }
  void Ids(const std::vector<int32_t>& ids) {
    Count(ids.size());
    Bytes(ids.data(), ids.size() * sizeof(int32_t));
  }
  void Text(std::string_view text) {
    Count(text.size());
    Bytes(text.data(), text.size());
  }

 private:
  void Count(size_t count) {
    const auto value = static_cast<uint32_t>(count);
    Bytes(&value, sizeof value);
  }
  void Bytes(const void* data, size_t size) {
    out_.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
  }

  std::ofstream out_;
};

// Token by token; every piece must be valid UTF-8 for itself.
bool StreamsAs(const std::string& text, const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
               bool skip_special_tokens) {
  IncrementalDecoder decoder(&tokenizer, skip_special_tokens);
  std::string streamed;
  for (const int32_t id : ids) {
    const std::string piece = decoder.Push(id);
    if (!IsValidUtf8(piece)) return false;
    streamed += piece;
  }
  return streamed + decoder.Finish() == text;
}

int Answer(const char* tokenizer_path, const char* cases_path, const char* answers_path) {
  const auto tokenizer = Tokenizer::Parse(ReadAll(tokenizer_path), "");
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s: %s\n", tokenizer_path, tokenizer.status().message().c_str());
    return 1;
  }
  const std::string all_cases = ReadAll(cases_path);
  CaseReader cases(all_cases);
  AnswerWriter answers(answers_path);
  for (int number = 0; !cases.empty(); ++number) {
    std::vector<int32_t> ids;
    if (cases.Kind() == 'T') {
      const std::string_view text = cases.Text();
      answers.Ids((*tokenizer)->EncodeText(text));
      ids = (*tokenizer)->EncodeWithControl(text);
      answers.Ids(ids);
    } else {
      ids = cases.Ids();
    }
    for (const bool skip_special_tokens : {false, true}) {
      const std::string text = (*tokenizer)->Decode(ids, skip_special_tokens);
      answers.Text(text);
      if (StreamsAs(text, **tokenizer, ids, skip_special_tokens)) continue;
      std::fprintf(stderr, "case %d: incremental decoding differs\n", number);
      return 1;
    }
  }
  return answers.good() ? 0 : 1;
}

}  // namespace
}  // namespace hadal

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: tokenizer_compare TOKENIZER_JSON CASES ANSWERS\n");
    return 2;
  }
  return hadal::Answer(argv[1], argv[2], argv[3]);
}
