#include "server/text/tokenizer.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/server/text/text_fixtures.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using Ids = std::vector<int32_t>;
using testing::SmallTokenizer;

const SmallTokenizer kSmall = {.merges = {{"h", "e"}, {"l", "l"}, {"he", "ll"}, {"hell", "o"}},
                               .added = {"<|bos|>", "<|bos|>x", "<think>"}};

TEST_CASE("users cannot write control tokens, not even by merges or a whole-piece match") {
  const SmallTokenizer mergeable = {.merges = {{"h", "e"}, {"he", "y"}, {"y", "o"}},
                                    .added = {"hey"}};
  const auto small = testing::Make(mergeable);
  const int32_t hey = *small->ControlId("hey");
  REQUIRE(small->EncodeText("hey") != Ids{hey});
  REQUIRE(small->Decode(small->EncodeText("heyo"), true) == "heyo");
  REQUIRE(small->EncodeWithControl("heyo") == Ids{hey, 'o'});
  auto whole = nlohmann::json::parse(testing::ToJson(mergeable));
  whole["model"]["ignore_merges"] = true;
  whole["model"]["merges"] = {"h e"};
  const auto ignoring = Tokenizer::Parse(whole.dump(), "");
  REQUIRE(ignoring.ok());
  REQUIRE((*ignoring)->EncodeText("hey") != Ids{hey});
  REQUIRE((*ignoring)->EncodeText("yo") ==
          Ids{static_cast<int32_t>(whole["model"]["vocab"]["yo"])});
}

TEST_CASE("control tokens are found leftmost-longest") {
  const auto tokenizer = testing::Make(kSmall);
  const int32_t bos = *tokenizer->ControlId("<|bos|>");
  const int32_t longer = *tokenizer->ControlId("<|bos|>x");
  const int32_t think = *tokenizer->ControlId("<think>");
  const int32_t hello = tokenizer->EncodeText("hello").front();
  REQUIRE(tokenizer->EncodeWithControl("<|bos|>xhello<|bos|><think><|bos") == [&] {
    Ids ids = {longer, hello, bos, think};
    const Ids rest = tokenizer->EncodeText("<|bos");
    ids.insert(ids.end(), rest.begin(), rest.end());
    return ids;
  }());
  REQUIRE_FALSE(tokenizer->ControlId("hello"));
  const Ids all = {bos, hello, think};
  REQUIRE(tokenizer->Decode(all, true) == "hello<think>");
  REQUIRE(tokenizer->Decode(all, false) == "<|bos|>hello<think>");
}

TEST_CASE("tokenizer_config.json states the first token and the template") {
  const auto make = [](const char* config) {
    return Tokenizer::Parse(testing::ToJson(kSmall), config);
  };
  auto made = make(R"({"bos_token": {"content": "<|bos|>"}, "add_bos_token": true,
                       "chat_template": "t"})");
  REQUIRE(made.ok());
  REQUIRE((*made)->bos_id() == (*made)->ControlId("<|bos|>"));
  REQUIRE((*made)->add_bos());
  REQUIRE((*made)->chat_template() == "t");
  made = make(R"({"bos_token": "<|bos|>", "chat_template": [{"name": "tool_use", "template": "a"},
                  {"name": "default", "template": "b"}]})");
  REQUIRE(made.ok());
  REQUIRE_FALSE((*made)->add_bos());
  REQUIRE((*made)->chat_template() == "b");
  made = make(R"({"bos_token": "<|bos|>", "tokenizer_class": "LlamaTokenizerFast"})");
  REQUIRE(made.ok());
  REQUIRE((*made)->add_bos());
  REQUIRE_FALSE((*make("{}"))->bos_id());
  made = make(R"({"bos_token": "<nowhere>"})");
  REQUIRE(made.status().code() == StatusCode::kInvalidArgument);
  REQUIRE(made.status().message().find("bos_token") != std::string::npos);
}

TEST_CASE("a folder is loaded, and chat_template.jinja wins") {
  namespace fs = std::filesystem;
  const fs::path folder =
      fs::temp_directory_path() / ("hadal_tokenizer_test_" + std::to_string(testing::RandomSeed()));
  fs::create_directories(folder);
  REQUIRE(Tokenizer::Load(folder.string()).status().code() == StatusCode::kNotFound);
  std::ofstream(folder / "tokenizer.json") << testing::ToJson(kSmall);
  REQUIRE(Tokenizer::Load(folder.string()).ok());
  std::ofstream(folder / "tokenizer_config.json") << R"({"chat_template": "config"})";
  std::ofstream(folder / "chat_template.jinja") << "file";
  const auto loaded = Tokenizer::Load(folder.string());
  REQUIRE(loaded.ok());
  REQUIRE((*loaded)->chat_template() == "file");
  fs::remove_all(folder);
}

TEST_CASE("what is not supported is refused by the name of its field") {
  using nlohmann::json;
  const json good = json::parse(testing::ToJson(kSmall));
  const auto message = [&](const char* pointer, const json& value) {
    json bad = good;
    bad[json::json_pointer(pointer)] = value;
    const auto made = Tokenizer::Parse(bad.dump(), "");
    CAPTURE(pointer);
    REQUIRE_FALSE(made.ok());
    REQUIRE(made.status().code() == StatusCode::kInvalidArgument);
    return made.status().message();
  };
  const std::vector<std::tuple<const char*, json, const char*>> cases = {
      {"/normalizer", {{"type", "NFC"}}, "normalizer"},
      {"/decoder", nullptr, "decoder"},
      {"/decoder/type", "Metaspace", "decoder.type"},
      {"/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", json::array()}}, "ByteLevel"},
      {"/pre_tokenizer/type", "Whitespace", "pre_tokenizer.type"},
      {"/pre_tokenizer/add_prefix_space", true, "pre_tokenizer.add_prefix_space"},
      {"/post_processor", {{"type", "BertProcessing"}}, "post_processor.type"},
      {"/model/type", "Unigram", "model.type"},
      {"/model/dropout", 0.1, "model.dropout"},
      {"/model/byte_fallback", true, "model.byte_fallback"},
      {"/model/end_of_word_suffix", "</w>", "model.end_of_word_suffix"},
      {"/model/vocab/he", -1, "model.vocab"},
      {"/model/vocab/he", 1LL << 40, "model.vocab"},
      {"/model/vocab/he", 5, "model.vocab"},
      {"/model/vocab/he", "x", "model.vocab"},
      {"/model/merges/0", "h  e", "model.merges[0]"},
      {"/model/merges/1", json{"h", "q"}, "model.merges[1]"},
      {"/model/merges/1", 7, "model.merges[1]"},
      {"/added_tokens/0/lstrip", true, "added_tokens[0].lstrip"},
      {"/added_tokens/1/single_word", true, "added_tokens[1].single_word"},
      {"/added_tokens/1/content", "", "added_tokens[1].content"},
      {"/added_tokens/1/content", "<|bos|>", "added_tokens[1].content"},
      {"/added_tokens/1/id", 3, "model.vocab"},
      {"/added_tokens", "x", "added_tokens"}};
  for (const auto& [pointer, value, field] : cases) {
    CAPTURE(field);
    REQUIRE(message(pointer, value).find(field) != std::string::npos);
  }
  const json split = {{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Removed"}};
  REQUIRE(message("/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {split}}})
              .find("pre_tokenizer.pretokenizers[0].behavior") != std::string::npos);
  for (const std::string& text : {std::string(), std::string("[]"), std::string("{"),
                                  std::string(100'000, '['), std::string("{\"model\": \xff}")}) {
    REQUIRE_FALSE(Tokenizer::Parse(text, "").ok());
  }
}

TEST_CASE("merges may be pairs, and the later of two equal rules counts") {
  auto json = nlohmann::json::parse(testing::ToJson(kSmall));
  const Ids expected = testing::Make(kSmall)->EncodeText("hello hell");
  for (auto& merge : json["model"]["merges"]) {
    const auto text = merge.get<std::string>();
    const size_t space = text.find(' ');
    merge = {text.substr(0, space), text.substr(space + 1)};
  }
  const auto made = Tokenizer::Parse(json.dump(), "");
  REQUIRE(made.ok());
  REQUIRE((*made)->EncodeText("hello hell") == expected);
}

}  // namespace
}  // namespace hadal
