#include "tools/directory_lock.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace hadal {

DirectoryLock::DirectoryLock(const std::string& directory, int (*lock)(int fd, int how))
    : directory_(directory), fd_(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  if (fd_ < 0) throw std::system_error(errno, std::generic_category(), directory);
  try {
    state_ = Take(lock);
  } catch (...) {
    close(fd_);
    throw;
  }
}

DirectoryLock::~DirectoryLock() { close(fd_); }

DirectoryLock::State DirectoryLock::Take(int (*lock)(int fd, int how)) const {
  while (lock(fd_, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    if (errno == EWOULDBLOCK) return State::kTaken;
    if (errno == ENOSYS || errno == ENOLCK || errno == EOPNOTSUPP) return State::kNotSupported;
    throw std::system_error(errno, std::generic_category(), directory_);
  }
  return State::kHeld;
}

}  // namespace hadal
