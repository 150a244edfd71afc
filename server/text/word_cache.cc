#include "server/text/word_cache.h"

#include <algorithm>

namespace hadal {

WordCache& WordCache::ForThread(uint64_t tokenizer) {
  thread_local WordCache cache;
  if (cache.tokenizer_ != tokenizer) {
    cache.slots_.assign(kSlots, Slot{});
    cache.tokenizer_ = tokenizer;
  }
  return cache;
}

void WordCache::Insert(std::string_view piece, std::span<const int32_t> ids) {
  if (piece.empty() || piece.size() > kMaxBytes || ids.empty() || ids.size() > kMaxIds) return;
  Slot& slot = slots_[IndexOf(piece)];
  slot.length = static_cast<uint8_t>(piece.size());
  slot.count = static_cast<uint8_t>(ids.size());
  std::copy(piece.begin(), piece.end(), slot.bytes);
  std::copy(ids.begin(), ids.end(), slot.ids);
}

size_t WordCache::IndexOf(std::string_view piece) {
  constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15u;
  uint64_t hash = piece.size();
  const char* p = piece.data();
  size_t left = piece.size();
  for (; left >= 8; p += 8, left -= 8) {
    uint64_t word = 0;
    std::memcpy(&word, p, 8);
    hash = (hash ^ word) * kMultiplier;
    hash ^= hash >> 32;
  }
  uint64_t word = 0;
  std::memcpy(&word, p, left);
  hash = (hash ^ word) * kMultiplier;
  return hash >> 51;
}

}  // namespace hadal
