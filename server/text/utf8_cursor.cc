#include "server/text/utf8_cursor.h"

#include <algorithm>

#include "common/utf8.h"

namespace hadal {
namespace {

// Bytes of the maximal ill-formed part that `bytes` starts with, as Unicode section 3.9 counts.
size_t IllFormedLength(std::string_view bytes) {
  for (size_t n = std::min<size_t>(3, bytes.size()); n > 1; --n) {
    if (IncompleteUtf8Tail(bytes.substr(0, n)) == n) return n;
  }
  return 1;
}

}  // namespace

void AppendUtf8(uint32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
    return;
  }
  const int continuation = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  constexpr uint8_t kLead[] = {0, 0xC0, 0xE0, 0xF0};
  out->push_back(static_cast<char>(kLead[continuation] | c >> (6 * continuation)));
  for (int i = continuation - 1; i >= 0; --i) {
    out->push_back(static_cast<char>(0x80 | (c >> (6 * i) & 0x3F)));
  }
}

void AppendLossyUtf8(std::string_view bytes, std::string* out) {
  while (!bytes.empty()) {
    const size_t valid = ValidUtf8Prefix(bytes);
    out->append(bytes.substr(0, valid));
    bytes.remove_prefix(valid);
    if (bytes.empty()) return;
    out->append("\xEF\xBF\xBD");
    bytes.remove_prefix(IllFormedLength(bytes));
  }
}

}  // namespace hadal
