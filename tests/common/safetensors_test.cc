#include "common/safetensors.h"

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/common/temp_model_dir.h"
#include "tests/support/catch.h"
#include "tests/support/mentions.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {
using testing::FileTensor;
using testing::Mentions;
using testing::SafetensorsBytes;
using testing::TempDir;

TEST_CASE("a header's tensors") {
  const auto tensors = ParseSafetensorsHeader(
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
      R"("a":{"shape":[],"data_offsets":[0,4],"dtype":"F32"},)"
      R"("e":{"dtype":"I64","shape":[0,5],"data_offsets":[16,16]},)"
      R"("é\n":{"dtype":"F4","shape":[3,2],"data_offsets":[16,19]}}   )",
      19);
  INFO(tensors.status().message());
  REQUIRE(tensors.ok());
  REQUIRE(tensors->size() == 4);
  CHECK((*tensors)[0].name == "b");
  CHECK((*tensors)[0].dtype == DType::kBF16);
  CHECK((*tensors)[0].shape == std::vector<int64_t>{2, 3});
  CHECK((*tensors)[0].begin == 4);
  CHECK((*tensors)[0].end == 16);
  CHECK((*tensors)[1].shape.empty());
  CHECK_FALSE((*tensors)[2].dtype);
  CHECK((*tensors)[2].dtype_name == "I64");
  CHECK((*tensors)[3].name == "é\n");
  CHECK(ParseSafetensorsHeader("{}", 0).ok());
}

struct Case {
  std::string header;
  uint64_t data_bytes;
  std::string reason;
};

std::string Entry(const std::string& name, const std::string& body) {
  return "\"" + name + "\":{" + body + "}";
}

const std::string kFour = R"("dtype":"F32","shape":[1],"data_offsets":[0,4])";
const std::string kEight = R"("dtype":"F32","shape":[1],"data_offsets":[4,8])";
const std::vector<Case> kHostile = {
    {"", 0, "does not begin"},
    {"[]", 0, "does not begin"},
    {" {}", 0, "does not begin"},
    {"{", 0, "not valid JSON"},
    {"{}x", 0, "not valid JSON"},
    {std::string("{}\0x", 4), 0, "zero byte"},
    {"{\"a\xff\":{}}", 0, "not valid JSON in UTF-8"},
    {"{\"\xed\xa0\x80\":{}}", 0, "not valid JSON in UTF-8"},
    {"{\"a\":1}", 0, "not allowed"},
    {"{\"a\":[]}", 0, "not allowed"},
    {"{\"a\":null}", 0, "not allowed"},
    {"{" + Entry("a", "") + "}", 0, "needs dtype, shape and data_offsets"},
    {"{" + Entry("a", R"("dtype":"F32","shape":[1])") + "}", 4, "needs dtype"},
    {"{" + Entry("a", kFour) + "," + Entry("a", kEight) + "}", 8, "stands twice"},
    {"{" + Entry("a", R"("dtype":"F32",)" + kFour) + "}", 4, "\"dtype\" stands twice"},
    {"{" + Entry("a", R"("x":1,)" + kFour) + "}", 4, "unknown field \"x\""},
    {"{" + Entry("a", R"("dtype":"Q7","shape":[1],"data_offsets":[0,4])") + "}", 4, "\"Q7\""},
    {"{" + Entry("a", R"("dtype":7,"shape":[1],"data_offsets":[0,4])") + "}", 4, "not allowed"},
    {"{" + Entry("a", R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])") + "}", 4, "negative"},
    {"{" + Entry("a", R"("dtype":"F32","shape":[1.0],"data_offsets":[0,4])") + "}", 4, "fraction"},
    {"{" + Entry("a", R"("dtype":"F32","shape":[[1]],"data_offsets":[0,4])") + "}", 4, "a list"},
    {"{" + Entry("a", R"("dtype":"F32","shape":[{}],"data_offsets":[0,4])") + "}", 4, "an object"},
    {"{" + Entry("a", R"("dtype":"F32","shape":["1"],"data_offsets":[0,4])") + "}", 4, "a string"},
    {"{" + Entry("a", R"("dtype":"F32","shape":1,"data_offsets":[0,4])") + "}", 4, "the number 1"},
    {"{" + Entry("a", R"("dtype":"F32","shape":[1],"data_offsets":[0])") + "}", 4, "two numbers"},
    {"{" + Entry("a", R"("dtype":"F32","shape":[1],"data_offsets":[0,4,8])") + "}", 8,
     "two numbers"},
    {"{" + Entry("a", R"("dtype":"F32","shape":[1],"data_offsets":[-4,0])") + "}", 4, "negative"},
    {"{" + Entry("a", R"("dtype":"F32","shape":[1],"data_offsets":[4,0])") + "}", 4, "backwards"},
    {"{" + Entry("a", kFour) + "}", 3, "truncated"},
    {"{" + Entry("a", kFour) + "}", 5, "belong to none"},
    {"{}", 1, "belong to none"},
    {"{" + Entry("a", kEight) + "}", 8, "a hole"},
    {"{" + Entry("a", kFour) + "," + Entry("b", kFour) + "}", 4, "overlap"},
    {"{" + Entry("a", R"("dtype":"F32","shape":[2],"data_offsets":[0,8])") + "," +
         Entry("b", kEight) + "}",
     8, "overlap"},
    {"{" + Entry("a", R"("dtype":"F32","shape":[2],"data_offsets":[0,4])") + "}", 4,
     "does not fill"},
    {"{" + Entry("a", R"("dtype":"F4","shape":[3],"data_offsets":[0,1])") + "}", 1,
     "does not fill"},
    // 2^62 x 4 bytes wraps to 0; a size above 2^63; one above 2^64.
    {"{" + Entry("a", R"("dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0])") + "}",
     0, "does not fill"},
    {"{" + Entry("a", R"("dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0])") + "}",
     0, "does not fill"},
    {"{" + Entry("a", R"("dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,1])") + "}",
     1, "the number"},
    {"{" + Entry("a", R"("dtype":"U8","shape":[1e400],"data_offsets":[0,1])") + "}", 1,
     "not valid"},
    {"{" + Entry("a", R"("dtype":"U8","shape":[1],"data_offsets":[0,99999999999999999999])") + "}",
     1, "fraction"},
    {R"({"__metadata__":{"a":1}})", 0, "__metadata__"},
    {R"({"__metadata__":{"a":{"b":"c"}}})", 0, "__metadata__"},
    {R"({"__metadata__":{},"__metadata__":{}})", 0, "__metadata__ stands twice"},
    {"{\"a\":" + std::string(1'000'000, '['), 0, "not allowed"},
    {"{" + std::string(1'000'000, '{'), 0, "not valid JSON"},
};

TEST_CASE("hostile headers are refused with a reason") {
  for (const Case& c : kHostile) {
    const auto parsed = ParseSafetensorsHeader(c.header, c.data_bytes);
    INFO(c.header.substr(0, 200));
    REQUIRE_FALSE(parsed.ok());
    INFO(parsed.status().message());
    CHECK(parsed.status().code() == StatusCode::kInvalidArgument);
    CHECK(Mentions(parsed.status().message(), c.reason));
  }
}

TEST_CASE("every truncation and every changed byte of a file is refused or still covers the data") {
  const TempDir dir;
  const std::string good = SafetensorsBytes({{"a", "BF16", {3, 5}, 'x'}, {"b", "F32", {7}, 'y'}});
  for (size_t n = 0; n < good.size(); ++n) {
    const auto file = SafetensorsFile::Open(dir.Write("t.safetensors", good.substr(0, n)));
    REQUIRE_FALSE(file.ok());
    CHECK(file.status().code() == StatusCode::kDataLoss);
    CHECK(Mentions(file.status().message(), "t.safetensors"));
  }
  std::mt19937_64 random(testing::RandomSeed());
  for (int i = 0; i < 2000; ++i) {
    std::string bad = good;
    bad[random() % bad.size()] = static_cast<char>(random());
    const auto file = SafetensorsFile::Open(dir.Write("t.safetensors", bad));
    if (!file.ok()) continue;
    uint64_t covered = 0;
    for (const TensorInfo& tensor : (*file)->tensors()) covered += (*file)->data(tensor).size();
    CHECK(covered == 3 * 5 * 2 + 7 * 4);
  }
}

TEST_CASE("file lengths that lie") {
  const TempDir dir;
  for (const uint64_t length :
       {uint64_t{3}, uint64_t{100'000'001}, uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 7}) {
    std::string bytes(16, ' ');
    std::memcpy(bytes.data(), &length, 8);
    if (length == 3) bytes.resize(10);
    const auto file = SafetensorsFile::Open(dir.Write("t.safetensors", bytes));
    REQUIRE_FALSE(file.ok());
    CHECK(Mentions(file.status().message(), "claims"));
  }
  CHECK(SafetensorsFile::Open(dir.path() + "/none").status().code() == StatusCode::kNotFound);
  CHECK(SafetensorsFile::Open(dir.path()).status().code() == StatusCode::kDataLoss);
}

TEST_CASE("a mapped file's bytes survive being released") {
  const TempDir dir;
  const auto file = SafetensorsFile::Open(dir.Write(
      "t.safetensors", SafetensorsBytes({{"a", "BF16", {3000, 5}, 'x'}, {"b", "F32", {7}, 'y'}})));
  REQUIRE(file.ok());
  REQUIRE((*file)->tensors().size() == 2);
  for (int pass = 0; pass < 2; ++pass) {
    for (const TensorInfo& tensor : (*file)->tensors()) {
      const auto bytes = (*file)->data(tensor);
      CHECK(bytes.size() == (tensor.name == "a" ? 30000u : 28u));
      const std::byte fill{static_cast<uint8_t>(tensor.name == "a" ? 'x' : 'y')};
      CHECK(std::all_of(bytes.begin(), bytes.end(), [&](std::byte b) { return b == fill; }));
      (*file)->Release(bytes.subspan(1));
      (*file)->Release({});
    }
  }
}

// ---- directories

std::string Index(const std::vector<std::pair<std::string, std::string>>& map) {
  nlohmann::json index = {{"metadata", {{"total_size", 8}}},
                          {"weight_map", nlohmann::json::object()}};
  for (const auto& [tensor, file] : map) index["weight_map"][tensor] = file;
  return index.dump();
}

TEST_CASE("one file, many files, files with an index") {
  const TempDir dir;
  CHECK(Checkpoint::Open(dir.path()).status().code() == StatusCode::kNotFound);
  CHECK(Checkpoint::Open(dir.path() + "/none").status().code() == StatusCode::kNotFound);
  dir.Write("x-1.safetensors", SafetensorsBytes({{"a", "F32", {1}, 'a'}}));
  dir.Write("x-2.safetensors", SafetensorsBytes({{"b", "F32", {1}, 'b'}}));
  dir.Write("notes.txt", "no tensors here");
  const auto many = Checkpoint::Open(dir.path());
  REQUIRE(many.ok());
  REQUIRE((*many)->entries().size() == 2);
  CHECK((*many)->Find("b")->data()[0] == std::byte{'b'});
  CHECK((*many)->Find("c") == nullptr);

  dir.Write("model.safetensors.index.json", Index({{"a", "x-1.safetensors"}}));
  const auto indexed = Checkpoint::Open(dir.path());
  REQUIRE(indexed.ok());
  CHECK((*indexed)->entries().size() == 1);  // only the files that the index names

  dir.Write("model.safetensors", SafetensorsBytes({{"c", "F32", {1}, 'c'}}));
  const auto one = Checkpoint::Open(dir.path());
  REQUIRE(one.ok());
  CHECK((*one)->entries().size() == 1);
  CHECK((*one)->Find("c") != nullptr);
}

TEST_CASE("checkpoints whose files do not fit together") {
  const TempDir dir;
  const std::string index = "model.safetensors.index.json";
  const auto refusal = [&dir] {
    const auto opened = Checkpoint::Open(dir.path());
    REQUIRE_FALSE(opened.ok());
    CHECK(opened.status().code() == StatusCode::kDataLoss);
    return opened.status().message();
  };
  dir.Write("x-1.safetensors", SafetensorsBytes({{"a", "F32", {1}}, {"b", "F32", {1}}}));
  dir.Write("x-2.safetensors", SafetensorsBytes({{"b", "F32", {1}}}));
  CHECK(Mentions(refusal(), "x-2.safetensors: tensor \"b\" is also in"));
  std::filesystem::remove(dir.path() + "/x-2.safetensors");

  dir.Write(index,
            Index({{"a", "x-1.safetensors"}, {"c", "x-1.safetensors"}, {"d", "x-1.safetensors"}}));
  CHECK(Mentions(refusal(), "tensor \"c\" is not in x-1.safetensors"));
  CHECK(Mentions(refusal(), "tensor \"d\" is not in x-1.safetensors"));
  dir.Write(index,
            Index({{"a", "x-1.safetensors"}, {"b", "x-8.safetensors"}, {"c", "x-9.safetensors"}}));
  CHECK(Mentions(refusal(), "x-8.safetensors"));
  CHECK(Mentions(refusal(), "x-9.safetensors"));
  for (const char* escape :
       {"../x-1.safetensors", "/etc/passwd", "..", ".", "", "sub/x.safetensors"}) {
    dir.Write(index, Index({{"a", escape}}));
    CHECK(Mentions(refusal(), "plain name"));
  }
  for (const char* bad :
       {"", "[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{"a":1}})",
        R"({"weight_map":{"a":"x-1.safetensors","a":"x-1.safetensors"}})", "{\"\xff\":1}"}) {
    dir.Write(index, bad);
    CHECK(Mentions(refusal(), index));
  }
}

}  // namespace
}  // namespace hadal
