#pragma once

#include <sys/file.h>

#include <string>

namespace hadal {

// Held while a run writes; the kernel gives it back when the process ends, however it ends.
class DirectoryLock {
 public:
  enum class State {
    kHeld,
    kTaken,         // by another run
    kNotSupported,  // the file system has no locks
  };

  // Throws std::system_error naming the directory. `lock` is flock, but in tests.
  explicit DirectoryLock(const std::string& directory, int (*lock)(int fd, int how) = flock);
  ~DirectoryLock();
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;
  State state() const { return state_; }

 private:
  State Take(int (*lock)(int fd, int how)) const;

  const std::string directory_;
  const int fd_;
  State state_ = State::kTaken;
};

}  // namespace hadal
