#include "common/host_memory.h"

#include <string>

#include "tests/common/temp_model_dir.h"
#include "tests/support/catch.h"

namespace hadal {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

// A root whose host has 16 GiB available.
class FakeRoot {
 public:
  FakeRoot() {
    std::filesystem::create_directories(dir_.path() + "/proc");
    std::filesystem::create_directories(dir_.path() + "/sys/fs/cgroup/memory");
    dir_.Write("proc/meminfo",
               "MemTotal:       33554432 kB\nMemFree:  1048576 kB\nMemAvailable:   16777216 kB\n");
  }
  void Write(const std::string& name, const std::string& content) const {
    dir_.Write("sys/fs/cgroup/" + name, content + "\n");
  }
  void Write(const std::string& name, int64_t number) const { Write(name, std::to_string(number)); }
  int64_t Available() const { return AvailableHostMemory(dir_.path()); }

 private:
  testing::TempDir dir_;
};

TEST_CASE("without a limit the host's memory is available") {
  const FakeRoot root;
  CHECK(root.Available() == 16 * kGiB);
  root.Write("memory.max", "max");
  root.Write("memory.current", 12 * kGiB);
  CHECK(root.Available() == 16 * kGiB);
  CHECK(AvailableHostMemory("/nowhere") > int64_t{1} << 60);
}

TEST_CASE("a control group of version 2 limits, cached files aside") {
  const FakeRoot root;
  root.Write("memory.max", 8 * kGiB);
  root.Write("memory.current", 7 * kGiB);
  CHECK(root.Available() == 1 * kGiB);
  root.Write("memory.stat",
             "anon 1\nfile 5368709120\ninactive_file 4294967296\nactive_file 1073741824");
  CHECK(root.Available() == 6 * kGiB);
  root.Write("memory.max", 64 * kGiB);
  CHECK(root.Available() == 16 * kGiB);
}

TEST_CASE("a control group of version 1 limits, cached files aside") {
  const FakeRoot root;
  root.Write("memory/memory.limit_in_bytes", 8 * kGiB);
  root.Write("memory/memory.usage_in_bytes", 7 * kGiB);
  CHECK(root.Available() == 1 * kGiB);
  root.Write("memory/memory.stat",
             "inactive_file 1\nactive_file 1\ntotal_inactive_file 2147483648\ntotal_active_file "
             "1073741824");
  CHECK(root.Available() == 4 * kGiB);
  root.Write("memory/memory.limit_in_bytes", 9223372036854771712);  // what version 1 calls no limit
  CHECK(root.Available() == 16 * kGiB);
}

TEST_CASE("a group that is full has nothing left, whatever its counters say") {
  const FakeRoot root;
  root.Write("memory.max", 2 * kGiB);
  root.Write("memory.current", 3 * kGiB);
  CHECK(root.Available() == 0);
  root.Write("memory.stat",
             "inactive_file 4294967296\nactive_file 0");  // counted at another moment
  CHECK(root.Available() == 2 * kGiB);
}

}  // namespace
}  // namespace hadal
