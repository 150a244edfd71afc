#include "kernels/cpu/scratch.h"

#include <cstring>

#include "tests/support/catch.h"

namespace hadal {
namespace {

TEST_CASE("scratch memory of live scopes never overlaps and keeps its contents") {
  ScratchArena arena;
  ScratchArena::Scope outer(arena);
  char* a = arena.Allocate<char>(1000);
  std::memset(a, 1, 1000);
  for (int round = 0; round < 5; ++round) {
    ScratchArena::Scope inner(arena);
    char* b = arena.Allocate<char>(300000);
    char* c = arena.Allocate<char>(1);
    CHECK(reinterpret_cast<uintptr_t>(b) % 64 == 0);
    CHECK(reinterpret_cast<uintptr_t>(c) % 64 == 0);
    std::memset(b, 2, 300000);
    *c = 3;
    CHECK(b[299999] == 2);
  }
  for (int i = 0; i < 1000; ++i) CHECK(a[i] == 1);
}

TEST_CASE("scratch memory stops growing once it is warm") {
  ScratchArena arena;
  const auto use = [&] {
    ScratchArena::Scope scope(arena);
    for (int i = 1; i < 50; ++i) arena.Allocate<double>(i * 100);
    return arena.capacity();
  };
  use();
  const int64_t warm = use();
  for (int i = 0; i < 10; ++i) CHECK(use() == warm);
}

}  // namespace
}  // namespace hadal
