// A model.safetensors.index.json from outside: the files it names lie in its own directory, and
// what is accepted is written as an index that says the same.
#include <filesystem>
#include <map>
#include <string>
#include <string_view>

#include "common/check.h"
#include "common/safetensors.h"
#include "tools/output_plan.h"

namespace hadal {
namespace {

std::string Rewritten(const std::map<std::string, std::string>& files) {
  std::map<std::string, OutputFile> shards;
  for (const auto& [tensor, file] : files) {
    shards[file].name = file;
    shards[file].AddTensor(tensor, "BF16", {1});
  }
  std::vector<OutputFile> list;
  for (auto& [name, shard] : shards) {
    shard.Finish("pt");
    list.push_back(std::move(shard));
  }
  return IndexText(list);
}

}  // namespace
}  // namespace hadal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto files = hadal::ParseSafetensorsIndex(text, "index");
  if (!files.ok()) return 0;
  const std::filesystem::path directory = "/models/any";
  for (const auto& [tensor, file] : *files) {
    const auto path = (directory / file).lexically_normal();
    HADAL_CHECK(path.parent_path() == directory && path.filename() == file, "{}", file);
  }
  const auto again = hadal::ParseSafetensorsIndex(hadal::Rewritten(*files), "index");
  HADAL_CHECK(again.ok() && *again == *files);
  return 0;
}
