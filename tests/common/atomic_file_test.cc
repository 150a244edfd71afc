#include "common/atomic_file.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <numeric>
#include <random>
#include <system_error>
#include <thread>

#include "common/file.h"
#include "tests/common/temp_model_dir.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {
using testing::TempDir;

bool Exists(const std::string& path) { return std::filesystem::exists(path); }

TEST_CASE("a file appears when it is complete") {
  const TempDir dir;
  const std::string path = dir.path() + "/file";
  dir.Write("file.partial", "left behind by a process that was killed, and longer");
  {
    AtomicFile file(path);
    file.WriteAt(0, std::as_bytes(std::span(std::string_view("abc"))));
    CHECK_FALSE(Exists(path));
    CHECK(Exists(path + ".partial"));
    file.Commit();
    CHECK(*ReadFile(path, 100) == "abc");
    CHECK_FALSE(Exists(path + ".partial"));
  }
  CHECK(*ReadFile(path, 100) == "abc");
  { AtomicFile abandoned(path); }
  CHECK(*ReadFile(path, 100) == "abc");
  CHECK_FALSE(Exists(path + ".partial"));
  WriteFileAtomically(path, "");
  CHECK(ReadFile(path, 100)->empty());
}

TEST_CASE("pieces come from many threads in any order") {
  const TempDir dir;
  std::mt19937_64 random(testing::RandomSeed());
  std::string content(100'003, '\0');
  for (char& c : content) c = static_cast<char>(random());
  std::vector<size_t> pieces(content.size() / 997 + 1);
  std::iota(pieces.begin(), pieces.end(), size_t{0});
  std::shuffle(pieces.begin(), pieces.end(), random);
  AtomicFile file(dir.path() + "/file");
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < pieces.size(); i += 3) {
        const auto piece = std::string_view(content).substr(pieces[i] * 997, 997);
        file.WriteAt(pieces[i] * 997, std::as_bytes(std::span(piece)));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  file.Commit();
  CHECK(*ReadFile(dir.path() + "/file", 1 << 20) == content);
}

TEST_CASE("what the machine refuses names the file") {
  const TempDir dir;
  try {
    AtomicFile file(dir.path() + "/none/file");
    FAIL("opened");
  } catch (const std::system_error& error) {
    CHECK(error.code() == std::errc::no_such_file_or_directory);
    CHECK(std::string(error.what()).find("/none/file") != std::string::npos);
  }
  std::filesystem::create_directory(dir.path() + "/taken");
  CHECK_THROWS_AS(WriteFileAtomically(dir.path() + "/taken", "x"), std::system_error);
  CHECK_FALSE(Exists(dir.path() + "/taken.partial"));
}

TEST_CASE("a file system that cannot sync a directory is no error, a disk that fails is one") {
  const TempDir dir;
  SyncDirectory(dir.path());
  const auto fails = [](int error) {
    static int given;
    given = error;
    return +[](int) {
      errno = given;
      return -1;
    };
  };
  SyncDirectory(dir.path(), fails(EINVAL));
  SyncDirectory(dir.path(), fails(ENOTSUP));
  CHECK_THROWS_AS(SyncDirectory(dir.path(), fails(EIO)), std::system_error);
  CHECK_THROWS_AS(SyncDirectory(dir.path() + "/none"), std::system_error);
}

}  // namespace
}  // namespace hadal
