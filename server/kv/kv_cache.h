#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/step_plan.h"
#include "server/kv/block_pool.h"
#include "server/kv/prefix_cache.h"

namespace hadal {

inline int32_t BlocksFor(int64_t num_tokens) {
  return static_cast<int32_t>((num_tokens + kBlockSize - 1) / kBlockSize);
}

// The KV blocks of one D group: the pool, and the prefix cache on top of it, which holds one
// reference of every block that it knows. Callers hold references on behalf of their sequences and
// return each of them once. Not thread-safe.
class KvCache {
 public:
  explicit KvCache(int32_t num_blocks) : pool_(num_blocks) {}

  int32_t num_blocks() const { return pool_.num_blocks(); }
  // Blocks that no caller holds: free ones and cached ones that can be evicted.
  int32_t available() const { return pool_.free_blocks() + prefixes_.parked(); }

  // The cached blocks of the longest known prefix of `prompt`, one reference each for the caller.
  // Never the whole prompt: at least its last token is left to compute, since the first sampled
  // token needs its logits.
  std::vector<int32_t> AcquirePrefix(std::span<const int32_t> prompt);

  // Appends `count` blocks, one reference each for the caller, evicting as needed.
  // REQUIRES: available() >= count.
  void Allocate(int32_t count, std::vector<int32_t>* blocks);

  // Returns one reference of each, the last block first, so that a prefix outlives its extensions
  // in the cache.
  void Release(std::span<const int32_t> blocks);

  // Makes the full blocks of `prompt` findable: prompt token i is in blocks[i / kBlockSize].
  // Prompt tokens only: KV of generated tokens is the same function of its inputs, but the layers
  // below it were computed with the other attention form and round differently; a prompt served
  // from such blocks would make output depend on what happened to be cached.
  // REQUIRES: the caller holds the blocks, and every step that fills them has run.
  void Publish(std::span<const int32_t> prompt, std::span<const int32_t> blocks);

  // No later prompt gets these blocks. The caller's references stay.
  void Forget(std::span<const int32_t> blocks);

 private:
  BlockPool pool_;
  PrefixCache prefixes_;
};

}  // namespace hadal
