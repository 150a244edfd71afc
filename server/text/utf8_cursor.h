#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "server/text/unicode_categories.h"

namespace hadal {

struct DecodedChar {
  uint32_t code_point;
  uint32_t length;  // bytes
};

// The character at `at`. REQUIRES: at < text.size(), and valid UTF-8 from there on; anything else
// gives some character without reading outside `text`.
inline DecodedChar DecodeChar(std::string_view text, size_t at) {
  const auto* p = reinterpret_cast<const uint8_t*>(text.data()) + at;
  const size_t left = text.size() - at;
  if (p[0] < 0x80 || left < 2) return {p[0], 1};
  if (p[0] < 0xE0) return {(p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu), 2};
  if (left < 3) return {0xFFFD, 1};
  if (p[0] < 0xF0) return {(p[0] & 0x0Fu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu), 3};
  if (left < 4) return {0xFFFD, 1};
  const uint32_t c =
      (p[0] & 0x07u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
  return {c < CategoryTable::kLimit ? c : 0xFFFD, 4};
}

// The first byte of the character that ends at `end`. REQUIRES: 0 < end <= text.size().
inline size_t PreviousChar(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

// REQUIRES: code_point < CategoryTable::kLimit.
void AppendUtf8(uint32_t code_point, std::string* out);

// Appends `bytes` with every maximal ill-formed part as U+FFFD.
void AppendLossyUtf8(std::string_view bytes, std::string* out);

}  // namespace hadal
