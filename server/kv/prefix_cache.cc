#include "server/kv/prefix_cache.h"

#include <algorithm>

#include "common/check.h"

namespace hadal {

uint64_t PrefixCache::Hash(uint64_t parent, std::span<const int32_t> tokens) {
  uint64_t hash = parent * 0x9e3779b97f4a7c15u;
  for (const int32_t token : tokens) {
    hash = (hash ^ static_cast<uint32_t>(token)) * 0xff51afd7ed558ccdu;
    hash ^= hash >> 32;
  }
  return hash;
}

int32_t PrefixCache::Find(uint64_t parent, std::span<const int32_t> tokens) const {
  const auto [begin, end] = blocks_by_hash_.equal_range(Hash(parent, tokens));
  for (auto it = begin; it != end; ++it) {
    const Entry& entry = entries_.at(it->second);
    if (entry.parent == parent && std::ranges::equal(entry.tokens, tokens)) return it->second;
  }
  return -1;
}

std::vector<int32_t> PrefixCache::Match(std::span<const int32_t> tokens, int32_t max_blocks) const {
  std::vector<int32_t> found;
  const auto full_blocks = static_cast<int32_t>(tokens.size() / kBlockSize);
  uint64_t parent = kRoot;
  for (int32_t i = 0; i < std::min(full_blocks, max_blocks); ++i) {
    const int32_t block =
        Find(parent, tokens.subspan(static_cast<size_t>(i) * kBlockSize, kBlockSize));
    if (block < 0) break;
    parent = entries_.at(block).serial;
    found.push_back(block);
  }
  return found;
}

std::vector<int32_t> PrefixCache::Insert(std::span<const int32_t> tokens,
                                         std::span<const int32_t> blocks) {
  const size_t full_blocks = tokens.size() / kBlockSize;
  HADAL_CHECK(blocks.size() >= full_blocks, "{} blocks for {} tokens", blocks.size(),
              tokens.size());
  std::vector<int32_t> inserted;
  uint64_t parent = kRoot;
  for (size_t i = 0; i < full_blocks; ++i) {
    const auto span = tokens.subspan(i * kBlockSize, kBlockSize);
    const int32_t known = Find(parent, span);
    if (known >= 0) {
      parent = entries_.at(known).serial;
      continue;
    }
    // An entry whose parent was erased can be found no more; its block moves to the new chain.
    const bool stranded = Contains(blocks[i]);
    if (stranded) Erase(blocks[i]);
    Entry entry{.serial = next_serial_++, .parent = parent, .hash = Hash(parent, span)};
    std::ranges::copy(span, entry.tokens.begin());
    parent = entry.serial;
    blocks_by_hash_.emplace(entry.hash, blocks[i]);
    entries_.emplace(blocks[i], std::move(entry));
    if (!stranded) inserted.push_back(blocks[i]);
  }
  return inserted;
}

PrefixCache::Entry& PrefixCache::Get(int32_t block) {
  const auto it = entries_.find(block);
  HADAL_CHECK(it != entries_.end(), "block {} has no entry", block);
  return it->second;
}

void PrefixCache::Park(int32_t block) {
  Entry& entry = Get(block);
  HADAL_CHECK(!entry.is_parked, "block {} is parked already", block);
  entry.position = parked_.insert(parked_.end(), block);
  entry.is_parked = true;
}

void PrefixCache::Unpark(int32_t block) {
  Entry& entry = Get(block);
  HADAL_CHECK(entry.is_parked, "block {} is not parked", block);
  parked_.erase(entry.position);
  entry.is_parked = false;
}

void PrefixCache::Erase(int32_t block) {
  const Entry& entry = Get(block);
  if (entry.is_parked) parked_.erase(entry.position);
  const auto [begin, end] = blocks_by_hash_.equal_range(entry.hash);
  blocks_by_hash_.erase(
      std::find_if(begin, end, [&](const auto& item) { return item.second == block; }));
  entries_.erase(block);
}

int32_t PrefixCache::Evict() {
  HADAL_CHECK(!parked_.empty(), "no block can be evicted");
  const int32_t block = parked_.front();
  Erase(block);
  return block;
}

}  // namespace hadal
