#include "server/kv/prefix_cache.h"

#include <vector>

#include "tests/server/kv/tokens.h"
#include "tests/support/catch.h"

namespace hadal {
namespace {
using testing::Tokens;

std::vector<int32_t> Concat(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

using Blocks = std::vector<int32_t>;

}  // namespace

TEST_CASE("only full blocks of the same prefix are found") {
  PrefixCache cache;
  const auto prompt = Tokens(100, 64 * 3 + 17);
  CHECK(cache.Insert(prompt, Blocks{5, 6, 7, 8}) == Blocks{5, 6, 7});
  CHECK(!cache.Contains(8));

  CHECK(cache.Match(prompt, 99) == Blocks{5, 6, 7});
  CHECK(cache.Match(prompt, 2) == Blocks{5, 6});
  CHECK(cache.Match(Tokens(100, 127), 99) == Blocks{5});
  CHECK(cache.Match(Tokens(100, 63), 99).empty());
  CHECK(cache.Match(Tokens(101, 64), 99).empty());

  // The second block's tokens alone, without what was before them, are another prefix.
  CHECK(cache.Match(Tokens(164, 64), 99).empty());
  // One token differs in the middle of the second block.
  auto other = prompt;
  other[64 + 31] = 7;
  CHECK(cache.Match(other, 99) == Blocks{5});
}

TEST_CASE("equal blocks under different parents are different entries") {
  PrefixCache cache;
  const auto tail = Tokens(1000, 64);
  const auto a = Concat(Tokens(0, 64), tail);
  const auto b = Concat(Tokens(500, 64), tail);
  cache.Insert(a, Blocks{1, 2});
  cache.Insert(b, Blocks{3, 4});
  CHECK(cache.Match(a, 9) == Blocks{1, 2});
  CHECK(cache.Match(b, 9) == Blocks{3, 4});
}

TEST_CASE("the older entry of the same prefix stays and is extended") {
  PrefixCache cache;
  cache.Insert(Tokens(0, 64), Blocks{1});
  CHECK(cache.Insert(Tokens(0, 128), Blocks{8, 9}) == Blocks{9});
  CHECK(cache.Match(Tokens(0, 128), 9) == Blocks{1, 9});
  CHECK(!cache.Contains(8));
}

TEST_CASE("blocks are evicted in the order in which they were parked") {
  PrefixCache cache;
  cache.Insert(Tokens(0, 64), Blocks{1});
  cache.Insert(Tokens(100, 64), Blocks{2});
  cache.Insert(Tokens(200, 64), Blocks{3});
  for (const int32_t block : {3, 1, 2}) cache.Park(block);
  cache.Unpark(3);
  cache.Park(3);
  CHECK(cache.parked() == 3);
  CHECK(cache.Evict() == 1);
  CHECK(cache.Evict() == 2);
  CHECK(cache.Match(Tokens(200, 64), 9) == Blocks{3});
  CHECK(cache.Evict() == 3);
  CHECK(cache.parked() == 0);
  CHECK(cache.Match(Tokens(200, 64), 9).empty());
}

TEST_CASE("a block whose parent was erased joins the chain that is inserted anew") {
  PrefixCache cache;
  const auto prompt = Tokens(0, 192);
  cache.Insert(prompt, Blocks{1, 2, 3});
  cache.Erase(1);
  CHECK(cache.Match(prompt, 9).empty());
  CHECK(cache.Insert(prompt, Blocks{1, 2, 3}) == Blocks{1});
  CHECK(cache.Match(prompt, 9) == Blocks{1, 2, 3});
}

}  // namespace hadal
