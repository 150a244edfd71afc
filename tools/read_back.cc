#include "tools/read_back.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <vector>

namespace hadal {
namespace {

template <typename... Args>
Status Differs(fmt::format_string<Args...> format, Args&&... args) {
  return {StatusCode::kAborted, fmt::format(format, std::forward<Args>(args)...)};
}

// A file read at any place from any thread.
class ReadFileAt {
 public:
  explicit ReadFileAt(const std::string& path)
      : path_(path), fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~ReadFileAt() {
    if (fd_ >= 0) close(fd_);
  }
  ReadFileAt(const ReadFileAt&) = delete;
  ReadFileAt& operator=(const ReadFileAt&) = delete;

  // ABORTED unless the file can be opened and has this size.
  Status CheckSize(uint64_t bytes) const {
    struct stat info {};
    if (fd_ < 0 || fstat(fd_, &info) != 0) return Differs("{}: {}", path_, std::strerror(errno));
    const auto size = static_cast<uint64_t>(info.st_size);
    if (size == bytes) return OkStatus();
    return Differs("{}: holds {} bytes, not {}", path_, size, bytes);
  }

  void DropCache() const { posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED); }

  Status Compare(uint64_t offset, std::span<const std::byte> wanted) const {
    thread_local std::vector<std::byte> found;
    found.resize(std::min<size_t>(wanted.size(), 1 << 20));
    while (!wanted.empty()) {
      const size_t size = std::min(wanted.size(), found.size());
      const ssize_t got = pread(fd_, found.data(), size, static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return Differs("{}: {}", path_, std::strerror(errno));
      if (got == 0) return Differs("{}: ends at byte {}", path_, offset);
      const auto count = static_cast<size_t>(got);
      const auto at = std::mismatch(found.begin(), found.begin() + got, wanted.begin()).first;
      if (at != found.begin() + got) {
        return Differs("{}: byte {} differs", path_,
                       offset + static_cast<uint64_t>(at - found.begin()));
      }
      offset += count;
      wanted = wanted.subspan(count);
    }
    return OkStatus();
  }

 private:
  const std::string path_;
  const int fd_;
};

}  // namespace

Status CompareWithPlan(const std::string& path, const OutputFile& file, int threads,
                       const std::function<void(uint64_t bytes)>& done) {
  const ReadFileAt written(path);
  HADAL_RETURN_IF_ERROR(written.CheckSize(file.bytes));
  written.DropCache();
  HADAL_RETURN_IF_ERROR(written.Compare(0, std::as_bytes(std::span(file.prefix))));
  return ProduceFile(
      file, threads,
      [&](uint64_t offset, std::span<const std::byte> bytes) {
        return written.Compare(offset, bytes);
      },
      done);
}

Status CompareFiles(const std::string& from, const std::string& to) {
  std::ifstream in(from, std::ios::binary | std::ios::ate);
  if (!in) return DataLoss("{}: cannot be opened; check its permissions", from);
  const ReadFileAt written(to);
  HADAL_RETURN_IF_ERROR(written.CheckSize(static_cast<uint64_t>(in.tellg())));
  in.seekg(0);
  std::vector<char> buffer(1 << 20);
  uint64_t offset = 0;
  while (in.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) || in.gcount() > 0) {
    const std::span chunk(buffer.data(), static_cast<size_t>(in.gcount()));
    HADAL_RETURN_IF_ERROR(written.Compare(offset, std::as_bytes(chunk)));
    offset += chunk.size();
  }
  return OkStatus();
}

Status CompareText(const std::string& path, std::string_view text) {
  const ReadFileAt written(path);
  HADAL_RETURN_IF_ERROR(written.CheckSize(text.size()));
  return written.Compare(0, std::as_bytes(std::span(text)));
}

}  // namespace hadal
