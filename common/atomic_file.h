#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace hadal {

// A file that appears under its name whole or not at all. It is written as NAME.partial next to it;
// one that a killed process left behind is overwritten. Errors of the machine (no space, no
// permission) are thrown as std::system_error naming the file.
class AtomicFile {
 public:
  static constexpr std::string_view kSuffix = ".partial";

  explicit AtomicFile(std::string path);
  // Without Commit() nothing stays.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  // In any order, from any thread. The disk begins to write at once, so that Commit() has little
  // left to wait for.
  void WriteAt(uint64_t offset, std::span<const std::byte> bytes);
  // On return bytes and name have reached the disk.
  void Commit();

 private:
  [[noreturn]] void Fail() const;

  const std::string path_;
  const std::string temporary_;
  int fd_ = -1;
  bool committed_ = false;
};

// Brings the names in a directory to the disk, where its file system can: EINVAL and ENOTSUP, which others
// give, are no errors. The rest is thrown as above. `sync` is fsync, but in tests.
void SyncDirectory(const std::string& directory, int (*sync)(int fd) = fsync);

void WriteFileAtomically(const std::string& path, std::string_view content);

}  // namespace hadal
