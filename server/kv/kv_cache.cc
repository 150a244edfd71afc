#include "server/kv/kv_cache.h"

#include "common/check.h"

namespace hadal {
namespace {
// Of a cached block that no caller holds: the cache's own reference.
constexpr int32_t kOnlyCached = 1;
}  // namespace

std::vector<int32_t> KvCache::AcquirePrefix(std::span<const int32_t> prompt) {
  const auto max_blocks =
      prompt.empty() ? 0 : static_cast<int32_t>((prompt.size() - 1) / kBlockSize);
  std::vector<int32_t> blocks = prefixes_.Match(prompt, max_blocks);
  for (const int32_t block : blocks) {
    if (pool_.ref_count(block) == kOnlyCached) prefixes_.Unpark(block);
    pool_.AddRef(block);
  }
  return blocks;
}

void KvCache::Allocate(int32_t count, std::vector<int32_t>* blocks) {
  HADAL_CHECK(available() >= count, "{} blocks wanted, {} available", count, available());
  for (int32_t i = 0; i < count; ++i) {
    if (pool_.free_blocks() == 0) pool_.Release(prefixes_.Evict());
    blocks->push_back(pool_.Allocate());
  }
}

void KvCache::Release(std::span<const int32_t> blocks) {
  for (auto it = blocks.rbegin(); it != blocks.rend(); ++it) {
    const int32_t left = pool_.Release(*it);
    if (left == kOnlyCached && prefixes_.Contains(*it)) prefixes_.Park(*it);
  }
}

void KvCache::Publish(std::span<const int32_t> prompt, std::span<const int32_t> blocks) {
  for (const int32_t block : prefixes_.Insert(prompt, blocks)) pool_.AddRef(block);
}

void KvCache::Forget(std::span<const int32_t> blocks) {
  for (const int32_t block : blocks) {
    if (!prefixes_.Contains(block)) continue;
    prefixes_.Erase(block);
    pool_.Release(block);
  }
}

}  // namespace hadal
