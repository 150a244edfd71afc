#include <filesystem>
#include <set>

#include "common/model_config.h"
#include "tests/common/temp_model_dir.h"
#include "tests/support/catch.h"

namespace hadal {
namespace {
using testing::SafetensorsBytes;
using testing::TempDir;

void WriteModel(const TempDir& dir) {
  dir.Write("config.json", "{\"dim\": 1}");
  dir.Write("generation_config.json", "{}");
  dir.Write("a.safetensors", SafetensorsBytes({{"x", "F32", {2, 3}}, {"y", "F32", {1}}}));
  dir.Write("b.safetensors", SafetensorsBytes({{"z", "F32", {2}}}));
}

TEST_CASE("the fingerprint tells models apart and ignores where they lie") {
  const TempDir dir;
  const TempDir other;
  WriteModel(dir);
  WriteModel(other);
  const std::string base = *ModelFingerprint(dir.path());
  CHECK(base.size() == 32);
  CHECK(base.find_first_not_of("0123456789abcdef") == std::string::npos);
  CHECK(*ModelFingerprint(other.path()) == base);

  std::set<std::string> seen = {base};
  const auto expect_new = [&] { CHECK(seen.insert(*ModelFingerprint(other.path())).second); };
  other.Write("config.json", "{\"dim\": 2}");
  expect_new();
  WriteModel(other);
  other.Write("generation_config.json", "{ }");
  expect_new();
  std::filesystem::remove(other.path() + "/generation_config.json");
  expect_new();
  WriteModel(other);
  other.Write("a.safetensors", SafetensorsBytes({{"x", "F32", {3, 2}}, {"y", "F32", {1}}}));
  expect_new();
  other.Write("a.safetensors", SafetensorsBytes({{"x", "I32", {2, 3}}, {"y", "F32", {1}}}));
  expect_new();
  other.Write("a.safetensors", SafetensorsBytes({{"x", "F32", {2, 3}}, {"w", "F32", {1}}}));
  expect_new();
  WriteModel(other);
  std::filesystem::rename(other.path() + "/b.safetensors", other.path() + "/c.safetensors");
  expect_new();
  std::filesystem::remove(other.path() + "/c.safetensors");
  expect_new();
  WriteModel(other);
  CHECK(*ModelFingerprint(other.path()) == base);

  // Another training of the same model.
  other.Write("a.safetensors", SafetensorsBytes({{"x", "F32", {2, 3}}, {"y", "F32", {1}, 'y'}}));
  expect_new();
  other.Write("a.safetensors", SafetensorsBytes({{"x", "F32", {2, 3}, 'x'}, {"y", "F32", {1}}}));
  expect_new();
  WriteModel(other);
  CHECK(*ModelFingerprint(other.path()) == base);

  other.Write("b.safetensors", "broken");
  CHECK(ModelFingerprint(other.path()).status().code() == StatusCode::kDataLoss);
  std::filesystem::remove(other.path() + "/config.json");
  CHECK(ModelFingerprint(other.path()).status().code() == StatusCode::kNotFound);
}

}  // namespace
}  // namespace hadal
