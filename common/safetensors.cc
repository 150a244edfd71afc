#include "common/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "common/check.h"

namespace hadal {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kLengthBytes = 8;

uint64_t LittleEndian64(const std::byte* bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | std::to_integer<uint64_t>(bytes[i]);
  return value;
}

// Whole pages, outwards: a neighbour's bytes that go along come back from the page cache.
int AdvisePages(std::span<const std::byte> bytes, int advice) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<uintptr_t>(bytes.data()) / page * page;
  const auto last = reinterpret_cast<uintptr_t>(bytes.data() + bytes.size());
  return madvise(reinterpret_cast<void*>(first), last - first, advice);
}

// Closes on every way out.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const FileDescriptor fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) return NotFound("{}: {}", path, std::strerror(errno));
  struct stat info {};
  if (fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode)) {
    return DataLoss("{}: not a regular file", path);
  }
  const auto size = static_cast<uint64_t>(info.st_size);
  if (size < kLengthBytes) {
    return DataLoss("{}: {} bytes are too few for a safetensors file", path, size);
  }
  void* map = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (map == MAP_FAILED) return DataLoss("{}: cannot be mapped: {}", path, std::strerror(errno));

  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile);
  file->path_ = path;
  file->map_ = static_cast<const std::byte*>(map);
  file->map_bytes_ = size;
  const uint64_t header_bytes = LittleEndian64(file->map_);
  if (header_bytes > kMaxHeaderBytes || header_bytes > size - kLengthBytes) {
    return DataLoss(
        "{}: the header claims {} bytes, but the file holds {}; it is no safetensors "
        "file or it is truncated",
        path, header_bytes, size);
  }
  file->data_offset_ = kLengthBytes + header_bytes;
  const std::string_view header(reinterpret_cast<const char*>(file->map_) + kLengthBytes,
                                header_bytes);
  auto tensors = ParseSafetensorsHeader(header, size - file->data_offset_);
  if (!tensors.ok()) return DataLoss("{}: {}", path, tensors.status().message());
  file->tensors_ = std::move(tensors).value();
  return file;
}

StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::InMemory(const std::string& label,
                                                                     int64_t bytes) {
  void* map = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) {
    return ResourceExhausted("{}: no memory for {} bytes: {}", label, bytes, std::strerror(errno));
  }
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile);
  file->path_ = label;
  file->in_memory_ = true;
  file->map_ = static_cast<const std::byte*>(map);
  file->map_bytes_ = static_cast<size_t>(bytes);
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (map_ != nullptr) munmap(const_cast<std::byte*>(map_), map_bytes_);
}

std::span<const std::byte> SafetensorsFile::data(const TensorInfo& tensor) const {
  HADAL_CHECK(tensor.begin <= tensor.end && tensor.end <= map_bytes_ - data_offset_);
  return {map_ + data_offset_ + tensor.begin, tensor.end - tensor.begin};
}

// A kernel older than 5.14 does not know the call; pages then come as they are touched.
Status SafetensorsFile::Prefetch(std::span<const std::byte> bytes) const {
  if (bytes.empty() || AdvisePages(bytes, MADV_POPULATE_READ) == 0 || errno == EINVAL) {
    return OkStatus();
  }
  return DataLoss("{}: cannot be read: {}; the disk failed or the file was shortened meanwhile",
                  path_, std::strerror(errno));
}

void SafetensorsFile::Release(std::span<const std::byte> bytes) const {
  if (!bytes.empty() && !in_memory_) AdvisePages(bytes, MADV_DONTNEED);
}

}  // namespace hadal
