#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace hadal {

// Ids index tables, so their size is bounded. INVALID_ARGUMENT naming `field`.
Status CheckTokenId(int64_t id, std::string_view field);

// The bytes of every token, back to back. Built once, then immutable.
class TokenTable {
 public:
  struct Entry {
    std::string bytes;  // empty: no token
    bool special = false;
  };
  TokenTable() = default;
  // Entry i is id i.
  explicit TokenTable(const std::vector<Entry>& entries);

  int32_t limit() const { return static_cast<int32_t>(special_.size()); }
  // Empty for ids without a token.
  std::string_view Bytes(int32_t id) const {
    if (id < 0 || id >= limit()) return {};
    const auto i = static_cast<size_t>(id);
    return std::string_view(bytes_).substr(offsets_[i], offsets_[i + 1] - offsets_[i]);
  }
  bool IsSpecial(int32_t id) const {
    return id >= 0 && id < limit() && special_[static_cast<size_t>(id)];
  }

 private:
  std::string bytes_;
  std::vector<size_t> offsets_;  // [limit + 1]
  std::vector<bool> special_;    // [limit]
};

}  // namespace hadal
