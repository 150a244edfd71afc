#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace hadal {

// The ids of pieces seen before, for one tokenizer and one thread. Of fixed size: a new piece takes
// the place of the one that hashes alike.
class WordCache {
 public:
  // This thread's cache. It serves one tokenizer at a time, named by an id that no other tokenizer
  // ever had, and starts anew when that changes.
  static WordCache& ForThread(uint64_t tokenizer);

  // Valid until the next Insert; empty: not known.
  std::span<const int32_t> Find(std::string_view piece) const {
    if (piece.empty() || piece.size() > kMaxBytes) return {};
    const Slot& slot = slots_[IndexOf(piece)];
    if (slot.length != piece.size() || std::memcmp(slot.bytes, piece.data(), piece.size()) != 0) {
      return {};
    }
    return {slot.ids, slot.count};
  }
  // Forgets at once what does not fit.
  void Insert(std::string_view piece, std::span<const int32_t> ids);

 private:
  static constexpr size_t kSlots = 8192;
  static constexpr size_t kMaxBytes = 30;
  static constexpr size_t kMaxIds = 8;
  struct Slot {
    uint8_t length = 0;
    uint8_t count = 0;
    char bytes[kMaxBytes];
    int32_t ids[kMaxIds];
  };
  static_assert(sizeof(Slot) == 64);

  static size_t IndexOf(std::string_view piece);

  uint64_t tokenizer_ = 0;
  std::vector<Slot> slots_;
};

}  // namespace hadal
