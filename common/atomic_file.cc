#include "common/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

namespace hadal {

void SyncDirectory(const std::string& directory, int (*sync)(int fd)) {
  const int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const bool synced = fd >= 0 && (sync(fd) == 0 || errno == EINVAL || errno == ENOTSUP);
  const int error = errno;
  if (fd >= 0) close(fd);
  if (!synced) throw std::system_error(error, std::generic_category(), directory);
}

AtomicFile::AtomicFile(std::string path)
    : path_(std::move(path)), temporary_(path_ + std::string(kSuffix)) {
  fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) Fail();
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) close(fd_);
  if (!committed_) unlink(temporary_.c_str());
}

void AtomicFile::Fail() const {
  throw std::system_error(errno, std::generic_category(), temporary_);
}

void AtomicFile::WriteAt(uint64_t offset, std::span<const std::byte> bytes) {
  const uint64_t begin = offset;
  while (!bytes.empty()) {
    const ssize_t written = pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) Fail();
    offset += static_cast<uint64_t>(written);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  sync_file_range(fd_, static_cast<off_t>(begin), static_cast<off_t>(offset - begin),
                  SYNC_FILE_RANGE_WRITE);
}

void AtomicFile::Commit() {
  if (fsync(fd_) != 0) Fail();
  if (close(std::exchange(fd_, -1)) != 0) Fail();
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) Fail();
  committed_ = true;
  const std::string directory = std::filesystem::path(path_).parent_path().string();
  SyncDirectory(directory.empty() ? "." : directory);
}

void WriteFileAtomically(const std::string& path, std::string_view content) {
  AtomicFile file(path);
  file.WriteAt(0, std::as_bytes(std::span(content)));
  file.Commit();
}

}  // namespace hadal
