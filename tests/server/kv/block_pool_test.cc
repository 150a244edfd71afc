#include "server/kv/block_pool.h"

#include <random>
#include <set>
#include <vector>

#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {

TEST_CASE("every block is handed out once until it is released") {
  BlockPool pool(7);
  std::set<int32_t> seen;
  for (int i = 0; i < 7; ++i) seen.insert(pool.Allocate());
  CHECK(seen == std::set<int32_t>{0, 1, 2, 3, 4, 5, 6});
  CHECK(pool.free_blocks() == 0);
  CHECK(pool.Release(3) == 0);
  CHECK(pool.free_blocks() == 1);
  CHECK(pool.Allocate() == 3);
}

TEST_CASE("a block is free when its last holder releases it") {
  BlockPool pool(1);
  const int32_t block = pool.Allocate();
  pool.AddRef(block);
  pool.AddRef(block);
  CHECK(pool.Release(block) == 2);
  CHECK(pool.Release(block) == 1);
  CHECK(pool.free_blocks() == 0);
  CHECK(pool.Release(block) == 0);
  CHECK(pool.free_blocks() == 1);
}

TEST_CASE("random use agrees with plain counting") {
  std::mt19937_64 random(testing::RandomSeed());
  constexpr int kBlocks = 13;
  BlockPool pool(kBlocks);
  std::vector<int> counts(kBlocks, 0);
  for (int step = 0; step < 20000; ++step) {
    const auto block = static_cast<int32_t>(random() % kBlocks);
    switch (random() % 3) {
      case 0:
        if (pool.free_blocks() > 0) {
          const int32_t got = pool.Allocate();
          REQUIRE(counts[got] == 0);
          counts[got] = 1;
        }
        break;
      case 1:
        if (counts[block] > 0) {
          pool.AddRef(block);
          ++counts[block];
        }
        break;
      default:
        if (counts[block] > 0) {
          REQUIRE(pool.Release(block) == --counts[block]);
        }
    }
    int free = 0;
    for (int i = 0; i < kBlocks; ++i) {
      REQUIRE(pool.ref_count(i) == counts[i]);
      free += counts[i] == 0;
    }
    REQUIRE(pool.free_blocks() == free);
  }
}

}  // namespace hadal
