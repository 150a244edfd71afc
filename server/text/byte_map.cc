#include "server/text/byte_map.h"

#include <array>

#include "server/text/utf8_cursor.h"

namespace hadal {
namespace {

constexpr uint32_t kStandIns = 0x144;  // one more than the largest

struct Maps {
  std::array<uint32_t, 256> code_points{};
  std::array<int16_t, kStandIns> bytes{};  // -1: no byte
};

const Maps& GetMaps() {
  static const Maps maps = [] {
    Maps made;
    made.bytes.fill(-1);
    uint32_t next = 0x100;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool prints = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      const uint32_t code_point = prints ? byte : next++;
      made.code_points[byte] = code_point;
      made.bytes[code_point] = static_cast<int16_t>(byte);
    }
    return made;
  }();
  return maps;
}

// The byte whose stand-in begins at `at`; -1: no stand-in does.
int ByteAt(std::string_view token, size_t at, size_t* next) {
  const DecodedChar c = DecodeChar(token, at);
  *next = at + c.length;
  return c.code_point < kStandIns ? GetMaps().bytes[c.code_point] : -1;
}

}  // namespace

uint32_t ByteToCodePoint(uint8_t byte) { return GetMaps().code_points[byte]; }

std::string ByteToken(uint8_t byte) {
  std::string token;
  AppendUtf8(ByteToCodePoint(byte), &token);
  return token;
}

bool IsByteSpelled(std::string_view token) {
  for (size_t at = 0; at < token.size();) {
    if (ByteAt(token, at, &at) < 0) return false;
  }
  return true;
}

std::string TokenToBytes(std::string_view token) {
  if (!IsByteSpelled(token)) return std::string(token);
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    bytes.push_back(static_cast<char>(ByteAt(token, at, &at)));
  }
  return bytes;
}

}  // namespace hadal
