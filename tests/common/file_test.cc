#include "common/file.h"

#include "tests/common/temp_model_dir.h"
#include "tests/support/catch.h"

namespace hadal {
namespace {

std::string Refusal(std::string_view text) {
  const auto parsed = ParseJson(text, "f.json");
  REQUIRE_FALSE(parsed.ok());
  CHECK(parsed.status().code() == StatusCode::kInvalidArgument);
  CHECK(parsed.status().message().rfind("f.json: ", 0) == 0);
  return parsed.status().message();
}

TEST_CASE("a secret is the first line, whatever ends it") {
  const testing::TempDir dir;
  const auto read = [&](const std::string& bytes) {
    dir.Write("secret", bytes);
    return ReadSecret(dir.path() + "/secret");
  };
  for (const char* bytes :
       {"open sesame", "open sesame\n", "open sesame\r\n", "open sesame \t\r\nmore"}) {
    CHECK(*read(bytes) == "open sesame");
  }
  CHECK(*read(" x\n") == " x");
  for (const char* bytes : {"", "\n", "\r\n", "  \nsecond"}) {
    CHECK(read(bytes).status().code() == StatusCode::kInvalidArgument);
  }
  CHECK(*ReadSecret("") == "");
  const Status none = ReadSecret(dir.path() + "/none").status();
  CHECK(none.message().find("--join-secret-file " + dir.path()) == 0);
}

TEST_CASE("JSON that is fine") {
  const auto parsed = ParseJson(R"({"a":{"b":[{"b":1},{"b":2}],"a":"}"},"b":"é"})", "f.json");
  REQUIRE(parsed.ok());
  CHECK((*parsed)["a"]["b"][1]["b"] == 2);
  CHECK(ParseJson(std::string(64, '[') + std::string(64, ']'), "f.json").ok());
  CHECK(ParseJson("\"" + std::string(1000, '[') + "\"", "f.json").ok());
}

TEST_CASE("JSON that is refused") {
  const auto mentions = [](const std::string& text, const char* word) {
    return text.find(word) != std::string::npos;
  };
  CHECK(mentions(Refusal(R"({"a":{"b":1,"c":[{}],"b":2}})"), "\"b\" stands twice"));
  CHECK(mentions(Refusal(std::string(65, '[') + std::string(65, ']')), "64 levels"));
  CHECK(mentions(Refusal(std::string(5'000'000, '[')), "64 levels"));
  CHECK(mentions(Refusal("{\"a\":\"\xc0\x80\"}"), "not valid JSON"));
  CHECK(mentions(Refusal(std::string("{}\0{", 4)), "zero byte"));
  for (const char* bad : {"", "{", "{}}", "nul", "[1,]", "{'a':1}", "1e999", "// x\n1"}) {
    INFO(bad);
    CHECK(mentions(Refusal(bad), "not valid JSON"));
  }
}

TEST_CASE("files") {
  const testing::TempDir dir;
  const std::string path = dir.Write("x", std::string("a\0b", 3));
  CHECK(*ReadFile(path, 3) == std::string("a\0b", 3));
  CHECK(ReadFile(path, 2).status().code() == StatusCode::kInvalidArgument);
  CHECK(ReadFile(dir.path(), 100).status().code() == StatusCode::kInvalidArgument);
  CHECK(ReadFile(path + "y", 100).status().code() == StatusCode::kNotFound);
  CHECK(*ReadFile(dir.Write("empty", ""), 0) == "");
  CHECK(ReadJsonFile(path + "y", 100).status().code() == StatusCode::kNotFound);
  CHECK((*ReadJsonFile(dir.Write("j", "[1]"), 100))[0] == 1);
}

}  // namespace
}  // namespace hadal
