#include "server/kv/kv_cache.h"

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "tests/server/kv/tokens.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {
using testing::Tokens;

// Blocks for a prompt as a scheduler takes them, published.
std::vector<int32_t> Serve(KvCache* cache, const std::vector<int32_t>& prompt) {
  std::vector<int32_t> blocks = cache->AcquirePrefix(prompt);
  const auto missing =
      BlocksFor(static_cast<int64_t>(prompt.size())) - static_cast<int32_t>(blocks.size());
  cache->Allocate(missing, &blocks);
  cache->Publish(prompt, blocks);
  return blocks;
}

}  // namespace

TEST_CASE("blocks hold 64 tokens") {
  CHECK(BlocksFor(0) == 0);
  CHECK(BlocksFor(1) == 1);
  CHECK(BlocksFor(64) == 1);
  CHECK(BlocksFor(65) == 2);
}

TEST_CASE("the whole prompt never comes from the cache") {
  KvCache cache(10);
  const auto blocks = Serve(&cache, Tokens(0, 128));
  REQUIRE(blocks.size() == 2);
  CHECK(cache.AcquirePrefix(Tokens(0, 128)).size() == 1);
  CHECK(cache.AcquirePrefix(Tokens(0, 129)).size() == 2);
  CHECK(cache.AcquirePrefix(Tokens(0, 64)).empty());
  CHECK(cache.AcquirePrefix(Tokens(0, 1)).empty());
}

TEST_CASE("a released prefix stays until its blocks are needed, longest part first") {
  KvCache cache(4);
  const auto blocks = Serve(&cache, Tokens(0, 200));
  CHECK(cache.available() == 0);
  cache.Release(blocks);
  CHECK(cache.available() == 4);

  // Three of four blocks are cached; two more are needed: the free one, then the last of the chain.
  std::vector<int32_t> other;
  cache.Allocate(2, &other);
  CHECK(cache.available() == 2);
  const auto again = cache.AcquirePrefix(Tokens(0, 200));
  CHECK(again == std::vector<int32_t>(blocks.begin(), blocks.begin() + 2));
  CHECK(cache.available() == 0);
}

TEST_CASE("forgotten blocks stay with their holders and are found by nobody") {
  KvCache cache(5);
  const auto held = Serve(&cache, Tokens(0, 130));
  const auto shared = cache.AcquirePrefix(Tokens(0, 130));
  REQUIRE(shared.size() == 2);
  cache.Forget(held);
  CHECK(cache.AcquirePrefix(Tokens(0, 130)).empty());
  cache.Release(held);
  CHECK(cache.available() == 3);
  cache.Release(shared);
  CHECK(cache.available() == 5);
}

// Against a naive model that knows for every block what was written into it last and by whom it is
// held: a hit must be exactly the tokens of the prompt, an allocated block held by nobody.
TEST_CASE("random prompts: hits hold what they claim and nothing leaks") {
  std::mt19937_64 random(testing::RandomSeed());
  for (int round = 0; round < 40; ++round) {
    const auto total = static_cast<int32_t>(2 + random() % 30);
    KvCache cache(total);
    std::vector<std::vector<int32_t>> contents(total);  // the whole prefix up to the block's end
    std::vector<int> holders(total, 0);
    struct Holder {
      std::vector<int32_t> prompt, blocks;
    };
    std::vector<Holder> live;
    for (int step = 0; step < 300; ++step) {
      if (random() % 2 == 0 && !live.empty()) {
        const size_t i = random() % live.size();
        if (random() % 10 == 0) cache.Forget(live[i].blocks);
        for (const int32_t block : live[i].blocks) --holders[block];
        cache.Release(live[i].blocks);
        live.erase(live.begin() + static_cast<std::ptrdiff_t>(i));
      } else {
        // Few distinct tokens per block, so that prefixes meet and part.
        std::vector<int32_t> prompt;
        const size_t length = 1 + random() % 300;
        while (prompt.size() < length)
          prompt.resize(prompt.size() + 64, static_cast<int32_t>(random() % 2));
        prompt.resize(length);
        std::vector<int32_t> blocks = cache.AcquirePrefix(prompt);
        REQUIRE(blocks.size() * kBlockSize < prompt.size());
        for (size_t i = 0; i < blocks.size(); ++i) {
          const std::vector<int32_t> prefix(prompt.begin(), prompt.begin() + 64 * (i + 1));
          REQUIRE(contents[blocks[i]] == prefix);
        }
        const size_t cached = blocks.size();
        const auto wanted = BlocksFor(static_cast<int64_t>(length));
        if (cache.available() < wanted - static_cast<int32_t>(cached)) {
          cache.Release(blocks);
          continue;
        }
        cache.Allocate(wanted - static_cast<int32_t>(cached), &blocks);
        for (size_t i = cached; i < blocks.size(); ++i) {
          REQUIRE(holders[blocks[i]] == 0);
          const size_t end = std::min(prompt.size(), 64 * (i + 1));
          contents[blocks[i]].assign(prompt.begin(),
                                     prompt.begin() + static_cast<std::ptrdiff_t>(end));
        }
        for (const int32_t block : blocks) ++holders[block];
        if (random() % 4 != 0) cache.Publish(prompt, blocks);
        live.push_back({prompt, blocks});
      }
      REQUIRE(cache.available() == std::ranges::count(holders, 0));
    }
    for (const Holder& holder : live) cache.Release(holder.blocks);
    CHECK(cache.available() == total);
  }
}

}  // namespace hadal
