#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "common/file.h"
#include "common/safetensors.h"
#include "common/utf8.h"

namespace hadal {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

constexpr uint64_t kMaxIndexBytes = 64 << 20;
constexpr const char* kIndexName = "model.safetensors.index.json";

struct FileList {
  std::vector<std::string> names;                 // without directory, sorted
  std::map<std::string, std::string> weight_map;  // tensor -> file; empty without an index
};

// An index may only name files next to it.
bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\\') == std::string::npos && name.find('\0') == std::string::npos;
}

StatusOr<FileList> ReadIndex(const std::string& path) {
  HADAL_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxIndexBytes));
  FileList list;
  HADAL_ASSIGN_OR_RETURN(list.weight_map, ParseSafetensorsIndex(text, path));
  std::set<std::string> names;
  for (const auto& [tensor, file] : list.weight_map) names.insert(file);
  list.names.assign(names.begin(), names.end());
  return list;
}

StatusOr<FileList> ListFiles(const std::string& model_dir) {
  std::error_code error;
  if (!fs::is_directory(model_dir, error)) return NotFound("{}: no such directory", model_dir);
  if (fs::exists(model_dir + "/model.safetensors", error)) {
    return FileList{.names = {"model.safetensors"}};
  }
  if (fs::exists(model_dir + "/" + kIndexName, error)) {
    auto list = ReadIndex(model_dir + "/" + kIndexName);
    if (list.ok()) return list;
    return Status(StatusCode::kDataLoss, list.status().message());
  }
  FileList list;
  for (fs::directory_iterator it(model_dir, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() == ".safetensors") list.names.push_back(it->path().filename());
  }
  if (error) return DataLoss("{}: cannot be listed: {}", model_dir, error.message());
  std::sort(list.names.begin(), list.names.end());
  if (!list.names.empty()) return list;
  return NotFound("{}: no *.safetensors file; convert the checkpoint to safetensors", model_dir);
}

}  // namespace

StatusOr<std::map<std::string, std::string>> ParseSafetensorsIndex(std::string_view text,
                                                                   std::string_view path) {
  HADAL_ASSIGN_OR_RETURN(const json index, ParseJson(text, path));
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (map == index.end() || !map->is_object()) {
    return DataLoss("{}: weight_map must be an object of tensor names and files", path);
  }
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string() || !IsPlainFileName(file.get_ref<const std::string&>())) {
      return DataLoss("{}: the file of tensor \"{}\" must be a plain name in the same directory",
                      path, DisplayText(tensor, 200));
    }
    files.emplace(tensor, file.get<std::string>());
  }
  return files;
}

StatusOr<std::vector<std::string>> CheckpointFiles(const std::string& model_dir) {
  HADAL_ASSIGN_OR_RETURN(FileList list, ListFiles(model_dir));
  return std::move(list.names);
}

void Checkpoint::AddFile(std::unique_ptr<SafetensorsFile> file,
                         std::vector<std::string>* problems) {
  for (const TensorInfo& tensor : file->tensors()) {
    const std::vector<int64_t>& shape = tensor.shape;
    const Entry entry{.info = tensor,
                      .file = file.get(),
                      .rows = {0, shape.empty() ? 1 : shape[0]},
                      .columns = {0, shape.size() == 2 ? shape[1] : 1}};
    const auto [at, added] = entries_.try_emplace(tensor.name, entry);
    if (added) continue;
    problems->push_back(fmt::format("{}: tensor \"{}\" is also in {}; remove one of them",
                                    file->path(), DisplayText(tensor.name, 200),
                                    at->second.file->path()));
  }
  files_.push_back(std::move(file));
}

StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::OpenFile(const std::string& path) {
  HADAL_ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(path));
  auto checkpoint = std::make_unique<Checkpoint>();
  std::vector<std::string> problems;
  checkpoint->AddFile(std::move(file), &problems);
  if (problems.empty()) return checkpoint;
  return DataLoss("{}", fmt::join(problems, "\n"));
}

StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& model_dir) {
  HADAL_ASSIGN_OR_RETURN(const FileList list, ListFiles(model_dir));
  auto checkpoint = std::make_unique<Checkpoint>();
  std::vector<std::string> problems;
  for (const std::string& name : list.names) {
    auto file = SafetensorsFile::Open(model_dir + "/" + name);
    if (!file.ok()) {
      problems.push_back(file.status().message());
      continue;
    }
    checkpoint->AddFile(std::move(file).value(), &problems);
  }
  if (problems.empty()) {
    for (const auto& [tensor, name] : list.weight_map) {
      const Entry* entry = checkpoint->Find(tensor);
      if (entry != nullptr && fs::path(entry->file->path()).filename() == name) continue;
      problems.push_back(fmt::format("{}/{}: tensor \"{}\" is not in {}, where the index says",
                                     model_dir, kIndexName, DisplayText(tensor, 200),
                                     DisplayText(name, 200)));
    }
  }
  if (problems.empty()) return checkpoint;
  return DataLoss("{}", fmt::join(problems, "\n"));
}

const Checkpoint::Entry* Checkpoint::Find(const std::string& name) const {
  const auto found = entries_.find(name);
  return found == entries_.end() ? nullptr : &found->second;
}

}  // namespace hadal
