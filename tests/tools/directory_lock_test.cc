#include "tools/directory_lock.h"

#include <cerrno>
#include <system_error>

#include "tests/common/temp_model_dir.h"
#include "tests/support/catch.h"

namespace hadal {
namespace {
using State = DirectoryLock::State;
using testing::TempDir;

template <int kErrno>
int Fails(int, int) {
  errno = kErrno;
  return -1;
}

int interruptions = 0;
int IsInterrupted(int fd, int how) {
  if (interruptions++ < 3) return Fails<EINTR>(fd, how);
  return flock(fd, how);
}

TEST_CASE("a directory is locked by one run at a time") {
  const TempDir dir;
  {
    const DirectoryLock first(dir.path());
    CHECK(first.state() == State::kHeld);
    CHECK(DirectoryLock(dir.path()).state() == State::kTaken);
  }
  CHECK(DirectoryLock(dir.path()).state() == State::kHeld);
  CHECK_THROWS_AS(DirectoryLock(dir.path() + "/none"), std::system_error);
}

TEST_CASE("only a lock that another holds is taken") {
  const TempDir dir;
  CHECK(DirectoryLock(dir.path(), IsInterrupted).state() == State::kHeld);
  CHECK(interruptions > 3);
  CHECK(DirectoryLock(dir.path(), Fails<EWOULDBLOCK>).state() == State::kTaken);
  CHECK(DirectoryLock(dir.path(), Fails<ENOSYS>).state() == State::kNotSupported);
  CHECK(DirectoryLock(dir.path(), Fails<ENOLCK>).state() == State::kNotSupported);
  CHECK(DirectoryLock(dir.path(), Fails<EOPNOTSUPP>).state() == State::kNotSupported);
  CHECK_THROWS_AS(DirectoryLock(dir.path(), Fails<EIO>), std::system_error);
}

}  // namespace
}  // namespace hadal
