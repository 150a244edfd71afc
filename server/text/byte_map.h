#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace hadal {

// GPT-2's printable stand-in for a byte: bytes that print map to themselves, the others to U+0100
// and up.
uint32_t ByteToCodePoint(uint8_t byte);
// The stand-in in UTF-8, as vocabularies spell it.
std::string ByteToken(uint8_t byte);
// All characters of a vocabulary's token are stand-ins.
bool IsByteSpelled(std::string_view token);
// The bytes that a vocabulary's token stands for; a token with any other character stands for its
// own UTF-8 bytes.
std::string TokenToBytes(std::string_view token);

}  // namespace hadal
