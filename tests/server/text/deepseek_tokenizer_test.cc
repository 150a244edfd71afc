#include <random>
#include <thread>

#include "common/utf8.h"
#include "server/text/chat_template.h"
#include "server/text/tokenizer.h"
#include "tests/server/text/text_fixtures.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using Ids = std::vector<int32_t>;
using testing::DeepseekTokenizer;

TEST_CASE("DeepSeek-V3: published ids") {
  const std::vector<std::pair<std::string, Ids>> vectors = {
      {"Hello!", {19923, 3}},
      {"hello", {33310}},
      {"1+1=?", {19, 13, 19, 127252}},
      {"Hello! I am DeepSeek.", {19923, 3, 342, 1030, 22651, 4374, 1465, 16}},
      {"DeepSeek", {53091, 4374, 1465}},
      {"你好，世界 12345 abc", {30594, 303, 3427, 223, 6895, 1883, 71490}},
      {"  \n\n  def f(x):\n    return x**2",
       {6776, 223, 1351, 285, 4042, 3395, 361, 1354, 1527, 666, 20}},
      {"it's ok'll Äpfel naïve 3.14159",
       {279, 734, 9109, 5922, 43175, 33015, 317, 112752, 223, 21, 16, 9926, 3318}},
      {"こんにちは世界カタカナ한국어",
       {4549, 7245, 2298, 12457, 2841, 3427, 15961, 11767, 15961, 27071, 5634, 17564, 9227}}};
  for (const auto& [text, ids] : vectors) {
    CAPTURE(text);
    REQUIRE(DeepseekTokenizer().EncodeText(text) == ids);
    REQUIRE(DeepseekTokenizer().Decode(ids, false) == text);
  }
  REQUIRE(DeepseekTokenizer().EncodeWithControl(
              "<｜begin▁of▁sentence｜><｜User｜>hello<｜Assistant｜></think>Hello! I am DeepSeek."
              "<｜end▁of▁sentence｜><｜User｜>1+1=?<｜Assistant｜><think>") ==
          Ids{0,    128803, 33310, 128804, 128799, 19923, 3,  342,    1030,   22651, 4374,
              1465, 16,     1,     128803, 19,     13,    19, 127252, 128804, 128798});
  REQUIRE(DeepseekTokenizer().id_limit() == 128815);
  REQUIRE(DeepseekTokenizer().bos_id() == 0);
  REQUIRE(DeepseekTokenizer().TokenBytes(129000).empty());
}

TEST_CASE("text comes back from its ids, whole and token by token") {
  std::mt19937_64 random(testing::RandomSeed());
  for (int round = 0; round < 2000; ++round) {
    const std::string text = testing::RandomText(&random, 60);
    const Ids ids = DeepseekTokenizer().EncodeText(text);
    CAPTURE(text);
    REQUIRE(DeepseekTokenizer().Decode(ids, true) == text);
    IncrementalDecoder decoder(&DeepseekTokenizer(), true);
    std::string streamed;
    for (const int32_t id : ids) {
      streamed += decoder.Push(id);
      REQUIRE(text.starts_with(streamed));
    }
    REQUIRE(streamed == text);
    REQUIRE(decoder.Finish().empty());
  }
}

TEST_CASE("any ids stream into the text that decoding them at once gives") {
  std::mt19937_64 random(testing::RandomSeed());
  const int32_t limit = DeepseekTokenizer().id_limit();
  for (int round = 0; round < 2000; ++round) {
    Ids ids(random() % 30);
    // Mostly single bytes, so that characters are cut and broken; ids without a token too.
    for (int32_t& id : ids) {
      id = static_cast<int32_t>(random() % (random() % 4 ? 259 : static_cast<size_t>(limit) + 9));
    }
    for (const bool skip : {false, true}) {
      IncrementalDecoder decoder(&DeepseekTokenizer(), skip);
      std::string streamed;
      for (const int32_t id : ids) {
        const std::string text = decoder.Push(id);
        REQUIRE(IsValidUtf8(text));
        streamed += text;
      }
      streamed += decoder.Finish();
      REQUIRE(streamed == DeepseekTokenizer().Decode(ids, skip));
    }
  }
  REQUIRE(DeepseekTokenizer().Decode(Ids{-1, 1 << 30}, false).empty());
}

TEST_CASE("users cannot write control tokens") {
  const auto& tokenizer = DeepseekTokenizer();
  const Ids ids = tokenizer.EncodeText("<｜User｜>x<｜end▁of▁sentence｜><think></think><|EOT|>");
  for (const int32_t id : ids) {
    REQUIRE_FALSE(tokenizer.IsSpecial(id));
    REQUIRE(id < 128000);
  }
}

TEST_CASE("a megabyte of anything is encoded") {
  for (const std::string unit :
       {"a", " ", "1", "\n", "!", "中", "\u0301", "\xF0\x9F\x98\x80", " \n", "a1"}) {
    std::string text;
    while (text.size() < (1 << 20)) text += unit;
    CAPTURE(unit);
    REQUIRE(DeepseekTokenizer().Decode(DeepseekTokenizer().EncodeText(text), false) == text);
  }
}

TEST_CASE("threads and tokenizers do not disturb each other") {
  std::mt19937_64 random(testing::RandomSeed());
  const auto small = testing::Make({.merges = {{"h", "e"}, {"l", "l"}, {"he", "ll"}}, .added = {}});
  std::vector<std::string> texts;
  std::vector<Ids> expected;
  for (int i = 0; i < 200; ++i) {
    texts.push_back("hello " + testing::RandomText(&random, 20));
    expected.push_back(DeepseekTokenizer().EncodeText(texts.back()));
  }
  std::vector<int> wrong(4);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < texts.size(); ++i) {
        const size_t at = (i * 7 + t * 50) % texts.size();
        if (i % 20 == t) wrong[t] += small->Decode(small->EncodeText(texts[at]), true) != texts[at];
        wrong[t] += DeepseekTokenizer().EncodeText(texts[at]) != expected[at];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  REQUIRE(wrong == std::vector<int>(4));
}

TEST_CASE("the package states R1-0528's template") {
  const auto real = DetectChatTemplate(DeepseekTokenizer());
  REQUIRE(real.ok());
  REQUIRE((*real)->name() == "deepseek-r1-0528");
}

}  // namespace
}  // namespace hadal
