#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace hadal {

// Bytes of the well-formed UTF-8 sequence at the start of `text` (Unicode table 3-7: no overlong
// forms, no surrogates, nothing above U+10FFFF), or 0 when there is none.
size_t Utf8SequenceLength(std::string_view text);

// All of `text` is well-formed.
bool IsValidUtf8(std::string_view text);

// Length of the longest well-formed prefix.
size_t ValidUtf8Prefix(std::string_view text);

// How many bytes at the end of `text` begin a sequence that further bytes could complete: 0 to 3.
size_t IncompleteUtf8Tail(std::string_view text);

// For messages: at most max_bytes of `text`, ill-formed and control bytes replaced by '?'.
std::string DisplayText(std::string_view text, size_t max_bytes);

}  // namespace hadal
