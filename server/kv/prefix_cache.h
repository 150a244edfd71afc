#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

#include "common/step_plan.h"

namespace hadal {

// Which blocks hold the KV of which token prefixes. An entry is a full block; it is found through
// the serial of the entry before it and its own 64 tokens, both compared on a hit, so that by
// induction a hit is the same prefix and never merely the same hash. Serials are not reused.
//
// An entry is `parked` while no sequence holds its block; parked entries are evicted in the order
// in which they were parked. Not thread-safe.
class PrefixCache {
 public:
  // The blocks that hold the longest known prefix of `tokens`, at most `max_blocks`.
  std::vector<int32_t> Match(std::span<const int32_t> tokens, int32_t max_blocks) const;

  // Makes the full blocks of `tokens` known: blocks[i] holds tokens [64 i, 64 i + 64). Where the
  // same prefix is known already, the older entry stays. Returns the blocks that had no entry and
  // got one.
  // REQUIRES: blocks.size() >= tokens.size() / kBlockSize.
  std::vector<int32_t> Insert(std::span<const int32_t> tokens, std::span<const int32_t> blocks);

  bool Contains(int32_t block) const { return entries_.contains(block); }
  // REQUIRES: Contains(block) for these three.
  void Park(int32_t block);
  void Unpark(int32_t block);
  void Erase(int32_t block);

  int32_t parked() const { return static_cast<int32_t>(parked_.size()); }
  // Forgets the entry parked longest ago and returns its block. REQUIRES: parked() > 0.
  int32_t Evict();

 private:
  using BlockTokens = std::array<int32_t, kBlockSize>;
  struct Entry {
    uint64_t serial = 0;
    uint64_t parent = 0;  // serial of the entry before it, kRoot for the first block
    uint64_t hash = 0;
    BlockTokens tokens;
    bool is_parked = false;
    std::list<int32_t>::iterator position;  // in parked_, valid while is_parked
  };
  static constexpr uint64_t kRoot = 0;

  static uint64_t Hash(uint64_t parent, std::span<const int32_t> tokens);
  // The block that follows `parent` with these 64 tokens, -1: none.
  int32_t Find(uint64_t parent, std::span<const int32_t> tokens) const;
  Entry& Get(int32_t block);

  std::unordered_map<int32_t, Entry> entries_;  // by block
  std::unordered_multimap<uint64_t, int32_t> blocks_by_hash_;
  std::list<int32_t> parked_;  // longest ago first
  uint64_t next_serial_ = kRoot + 1;
};

}  // namespace hadal
