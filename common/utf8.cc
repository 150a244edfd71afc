#include "common/utf8.h"

#include <algorithm>

namespace hadal {
namespace {

// What may follow a lead byte: the length of the sequence and the range of its second byte; later
// bytes are 80..BF. Length 0: not a lead byte.
struct Lead {
  uint8_t length;
  uint8_t low;
  uint8_t high;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte >= 0xC2 && byte <= 0xDF) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte >= 0xF1 && byte <= 0xF3) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

// Bytes at the start of `text` that can stand at the start of the sequence `lead` opens.
size_t MatchedBytes(std::string_view text, Lead lead) {
  const size_t n = std::min<size_t>(text.size(), lead.length);
  for (size_t i = 1; i < n; ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    const uint8_t low = i == 1 ? lead.low : 0x80;
    const uint8_t high = i == 1 ? lead.high : 0xBF;
    if (byte < low || byte > high) return i;
  }
  return n;
}

}  // namespace

size_t Utf8SequenceLength(std::string_view text) {
  if (text.empty()) return 0;
  const Lead lead = LeadOf(static_cast<uint8_t>(text[0]));
  return lead.length != 0 && MatchedBytes(text, lead) == lead.length ? lead.length : 0;
}

size_t ValidUtf8Prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t length = Utf8SequenceLength(text.substr(at));
    if (length == 0) break;
    at += length;
  }
  return at;
}

bool IsValidUtf8(std::string_view text) { return ValidUtf8Prefix(text) == text.size(); }

size_t IncompleteUtf8Tail(std::string_view text) {
  for (size_t tail = 1; tail <= std::min<size_t>(3, text.size()); ++tail) {
    const std::string_view end = text.substr(text.size() - tail);
    const Lead lead = LeadOf(static_cast<uint8_t>(end[0]));
    if (lead.length > tail && MatchedBytes(end, lead) == tail) return tail;
    if (lead.length != 0) return 0;
  }
  return 0;
}

std::string DisplayText(std::string_view text, size_t max_bytes) {
  std::string out;
  size_t at = 0;
  while (at < text.size()) {
    const size_t length = Utf8SequenceLength(text.substr(at));
    const size_t step = std::max<size_t>(length, 1);
    if (out.size() + step > max_bytes) return out + "...";
    const auto byte = static_cast<uint8_t>(text[at]);
    if (length == 0 || byte < 0x20 || byte == 0x7f) {
      out += '?';
    } else {
      out.append(text.substr(at, step));
    }
    at += step;
  }
  return out;
}

}  // namespace hadal
