#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace hadal::testing {

// A directory that disappears with this object.
class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "hadal-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  std::string Write(const std::string& name, std::string_view content) const {
    const std::string file = path_ + "/" + name;
    std::ofstream(file, std::ios::binary) << content;
    return file;
  }

 private:
  std::string path_;
};

// One tensor of a file that a test writes; the bytes are `fill`.
struct FileTensor {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  char fill = 0;
};

inline int64_t ElementBytes(const std::string& dtype) {
  return dtype == "F32" || dtype == "I32"    ? 4
         : dtype == "BF16" || dtype == "F16" ? 2
         : dtype == "I64"                    ? 8
                                             : 1;
}

// Length, header, data: the bytes of a safetensors file.
inline std::string SafetensorsBytes(std::string_view header, std::string_view data) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(header.size() >> (8 * i));
  out.append(header).append(data);
  return out;
}

inline std::string SafetensorsBytes(const std::vector<FileTensor>& tensors) {
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (const FileTensor& tensor : tensors) {
    int64_t bytes = ElementBytes(tensor.dtype);
    for (const int64_t size : tensor.shape) bytes *= size;
    header[tensor.name] = {
        {"dtype", tensor.dtype},
        {"shape", tensor.shape},
        {"data_offsets", {data.size(), data.size() + static_cast<size_t>(bytes)}}};
    data.append(static_cast<size_t>(bytes), tensor.fill);
  }
  return SafetensorsBytes(header.dump(), data);
}

}  // namespace hadal::testing
