#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/dtype.h"
#include "common/layout.h"
#include "common/random_weights.h"
#include "common/status.h"

namespace hadal {

// One tensor of a safetensors header, checked: shape x element size = end - begin, inside the file,
// no overlap with another tensor.
struct TensorInfo {
  std::string name;
  std::string dtype_name;      // as written: "BF16", "F8_E4M3", "I64", ...
  std::optional<DType> dtype;  // unset: a type that Hadal has no use for
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // from the start of the file's data section
  uint64_t end = 0;
};

// Bits of one element of a type that the format knows. REQUIRES: it does.
int ElementBits(std::string_view dtype_name);

// From dtype_name and shape alone; nothing when the bytes do not fit 64 bits or end inside one.
std::optional<uint64_t> TensorBytes(const TensorInfo& tensor);

// Parses the header (the JSON after the 8-byte length) of a file whose data section has data_bytes
// bytes. INVALID_ARGUMENT for anything that is not a valid header; never crashes, never allocates
// more than a small multiple of the header's size.
StatusOr<std::vector<TensorInfo>> ParseSafetensorsHeader(std::string_view header,
                                                         uint64_t data_bytes);

// A read-only mapping of one file. Thread-safe.
class SafetensorsFile {
 public:
  // NOT_FOUND, or DATA_LOSS naming the file and what is wrong with it.
  static StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  // Not a file but zeroed memory of its own without tensors, to be filled by way of memory().
  static StatusOr<std::unique_ptr<SafetensorsFile>> InMemory(const std::string& label,
                                                             int64_t bytes);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  // REQUIRES: InMemory().
  std::byte* memory() { return const_cast<std::byte*>(map_); }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  // Valid as long as this object.
  std::span<const std::byte> data(const TensorInfo& tensor) const;
  // Reads these bytes of data() from the disk at once. DATA_LOSS when the disk fails or another
  // process has shortened the file; reading them through data() would then be the end of this one.
  Status Prefetch(std::span<const std::byte> bytes) const;
  // Says that these bytes will not be read again soon: pages of a file leave this process.
  void Release(std::span<const std::byte> bytes) const;

 private:
  SafetensorsFile() = default;
  std::string path_;
  std::vector<TensorInfo> tensors_;
  bool in_memory_ = false;
  const std::byte* map_ = nullptr;
  size_t map_bytes_ = 0;
  size_t data_offset_ = 0;
};

// Tensor -> file of a model.safetensors.index.json, which stands at `path`. Files are plain names:
// an index cannot point out of its directory. INVALID_ARGUMENT or DATA_LOSS, naming the path.
StatusOr<std::map<std::string, std::string>> ParseSafetensorsIndex(std::string_view text,
                                                                   std::string_view path);

// The safetensors files of a model directory, without directory, sorted: model.safetensors, or the
// files the index names, or every *.safetensors. NOT_FOUND or DATA_LOSS.
StatusOr<std::vector<std::string>> CheckpointFiles(const std::string& model_dir);

// All tensors of a Hugging Face directory: model.safetensors, or the files named in
// model.safetensors.index.json, or, without an index, every *.safetensors.
class Checkpoint {
 public:
  // Errors name the file; a tensor in two files, or an index entry without its tensor, is
  // DATA_LOSS.
  static StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& model_dir);
  // The tensors of one file.
  static StatusOr<std::unique_ptr<Checkpoint>> OpenFile(const std::string& path);

  struct Entry {
    TensorInfo info;  // of the whole tensor; begin and end are those of data()
    const SafetensorsFile* file = nullptr;
    // What data() holds of the tensor, row by row: all of it, but for the files of one rank
    // (converted_checkpoint.h). A one-dimensional tensor has one column.
    Range rows;
    Range columns;
    // Set: what data() holds are these elements, which may be made again instead of being read.
    std::optional<RandomElements> random;
    std::span<const std::byte> data() const { return file->data(info); }
    // Where an element stands in data(), in elements and as its address.
    // REQUIRES: one or two dimensions; row and column are held.
    int64_t IndexOf(int64_t row, int64_t column) const {
      return (row - rows.begin) * columns.size() + column - columns.begin;
    }
    const std::byte* At(int64_t row, int64_t column) const {
      return data().data() + IndexOf(row, column) * DTypeSize(*info.dtype);
    }
  };
  // Null when there is no such tensor.
  const Entry* Find(const std::string& name) const;
  const std::map<std::string, Entry>& entries() const { return entries_; }
  void AddMemory(std::unique_ptr<SafetensorsFile> memory) { files_.push_back(std::move(memory)); }
  // Other names for the same files. REQUIRES: every entry's file is one of this checkpoint's.
  void SetEntries(std::map<std::string, Entry> entries) { entries_ = std::move(entries); }

 private:
  // Appends a problem for each tensor that is there already.
  void AddFile(std::unique_ptr<SafetensorsFile> file, std::vector<std::string>* problems);

  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Entry> entries_;
};

}  // namespace hadal
