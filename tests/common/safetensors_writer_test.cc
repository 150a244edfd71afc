#include "common/safetensors_writer.h"

#include <filesystem>
#include <random>

#include "tests/common/temp_model_dir.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {
using testing::TempDir;

TEST_CASE("the reader finds every tensor where the layout put it, aligned") {
  std::mt19937_64 random(testing::RandomSeed());
  const std::vector<std::string> dtypes = {"F8_E4M3", "BF16", "F32", "I64", "BOOL"};
  for (int round = 0; round < 50; ++round) {
    std::vector<TensorInfo> tensors(random() % 9);
    for (size_t i = 0; i < tensors.size(); ++i) {
      tensors[i].name = fmt::format("tensor \"{}\"\n\xc3\xa9", i);
      tensors[i].dtype_name = dtypes[random() % dtypes.size()];
      for (size_t d = random() % 4; d > 0; --d) {
        tensors[i].shape.push_back(static_cast<int64_t>(random() % 6));
      }
    }
    const std::string prefix = LayOutSafetensors(round % 2 == 0 ? "pt" : "", &tensors);
    CHECK(prefix.size() % 8 == 0);
    CHECK((prefix.find("__metadata__") != std::string::npos) == (round % 2 == 0));
    uint64_t bytes = 0;
    for (const TensorInfo& tensor : tensors) {
      const uint64_t size = static_cast<uint64_t>(ElementBits(tensor.dtype_name)) / 8;
      CHECK(tensor.begin % size == 0);
      CHECK(tensor.end - tensor.begin == *TensorBytes(tensor));
      bytes = std::max(bytes, tensor.end);
    }
    const auto parsed = ParseSafetensorsHeader(std::string_view(prefix).substr(8), bytes);
    INFO(prefix.substr(8));
    REQUIRE(parsed.ok());
    REQUIRE(parsed->size() == tensors.size());
    for (const TensorInfo& found : *parsed) {
      const auto same = [&](const TensorInfo& t) { return t.name == found.name; };
      const auto wanted = std::find_if(tensors.begin(), tensors.end(), same);
      REQUIRE(wanted != tensors.end());
      CHECK(found.begin == wanted->begin);
      CHECK(found.end == wanted->end);
      CHECK(found.shape == wanted->shape);
      CHECK(found.dtype_name == wanted->dtype_name);
    }
  }
}

TEST_CASE("a file that was shortened is noticed before it is read") {
  const TempDir dir;
  const std::string path = dir.Write(
      "f", testing::SafetensorsBytes({{.name = "a", .dtype = "F32", .shape = {1 << 16}}}));
  const auto file = SafetensorsFile::Open(path);
  REQUIRE(file.ok());
  const auto data = (*file)->data((*file)->tensors()[0]);
  REQUIRE((*file)->Prefetch(data).ok());
  CHECK((*file)->Prefetch(data.first(0)).ok());
  std::filesystem::resize_file(path, 5000);
  const Status status = (*file)->Prefetch(data);
  CHECK(status.code() == StatusCode::kDataLoss);
  CHECK(status.message().find(path) != std::string::npos);
}

}  // namespace
}  // namespace hadal
