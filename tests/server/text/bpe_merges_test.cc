#include "server/text/bpe_merges.h"

#include <map>
#include <random>

#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

std::vector<int32_t> IdentityBytes() {
  std::vector<int32_t> ids(256);
  for (int i = 0; i < 256; ++i) ids[static_cast<size_t>(i)] = i;
  return ids;
}

// The definition, one merge at a time.
std::vector<int32_t> NaiveMerge(const std::vector<MergeRule>& rules, std::vector<int32_t> ids) {
  std::map<std::pair<int32_t, int32_t>, size_t> ranks;
  for (size_t rank = 0; rank < rules.size(); ++rank) {
    ranks[{rules[rank].left, rules[rank].right}] = rank;
  }
  for (;;) {
    size_t best_rank = rules.size();
    size_t best = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto found = ranks.find({ids[i], ids[i + 1]});
      if (found != ranks.end() && found->second < best_rank) {
        best_rank = found->second;
        best = i;
      }
    }
    if (best_rank == rules.size()) return ids;
    ids[best] = rules[best_rank].result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

// Rules over the bytes 0 to 3 and the results of earlier rules; some pairs stand twice.
std::vector<MergeRule> RandomRules(std::mt19937_64* random, size_t count) {
  std::vector<int32_t> known = {0, 1, 2, 3};
  std::vector<MergeRule> rules;
  for (size_t i = 0; i < count; ++i) {
    const int32_t left = known[(*random)() % known.size()];
    const int32_t right = known[(*random)() % known.size()];
    const auto result = static_cast<int32_t>(256 + i);
    rules.push_back({left, right, result});
    known.push_back(result);
  }
  std::shuffle(rules.begin(), rules.end(), *random);
  return rules;
}

TEST_CASE("merging follows the definition at every length") {
  std::mt19937_64 random(testing::RandomSeed());
  for (int round = 0; round < 400; ++round) {
    const std::vector<MergeRule> rules = RandomRules(&random, random() % 60);
    const BpeMerges merges(rules, IdentityBytes());
    const size_t length = random() % 130;  // on both sides of the switch to a heap
    std::string piece;
    for (size_t i = 0; i < length; ++i) piece += static_cast<char>(random() % 4);
    const std::vector<int32_t> bytes(piece.begin(), piece.end());
    std::vector<int32_t> ids = {-7};
    merges.Encode(piece, &ids);
    std::vector<int32_t> expected = NaiveMerge(rules, bytes);
    expected.insert(expected.begin(), -7);  // what was there before stays
    REQUIRE(ids == expected);
  }
}

TEST_CASE("bytes without a token are dropped and their neighbours meet") {
  std::vector<int32_t> byte_ids = IdentityBytes();
  byte_ids['x'] = -1;
  const BpeMerges merges({{'a', 'b', 300}}, byte_ids);
  std::vector<int32_t> ids;
  merges.Encode("axbxx", &ids);
  REQUIRE(ids == std::vector<int32_t>{300});
  ids.clear();
  merges.Encode("xx", &ids);
  REQUIRE(ids.empty());
}

TEST_CASE("a long run of one byte is not quadratic") {
  std::vector<MergeRule> rules;
  for (int32_t i = 0; i < 10; ++i) {
    const int32_t half = i == 0 ? 'a' : 299 + i;
    rules.push_back({half, half, 300 + i});
  }
  const BpeMerges merges(rules, IdentityBytes());
  std::vector<int32_t> ids;
  merges.Encode(std::string(1 << 20, 'a'), &ids);
  REQUIRE(ids == std::vector<int32_t>(1 << 10, 309));
}

}  // namespace
}  // namespace hadal
