#include "common/utf8.h"

#include <random>

#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

// Encodes by the definition, surrogates and overlong forms included when asked for.
std::string Encode(uint32_t code, int length) {
  if (length == 1) return {static_cast<char>(code)};
  std::string out;
  for (int i = length - 1; i > 0; --i) {
    out.insert(out.begin(), static_cast<char>(0x80 | (code & 0x3f)));
    code >>= 6;
  }
  const uint32_t mark = length == 2 ? 0xC0 : length == 3 ? 0xE0 : 0xF0;
  out.insert(out.begin(), static_cast<char>(mark | code));
  return out;
}

int ShortestLength(uint32_t code) {
  return code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
}

TEST_CASE("exactly the scalar values in their shortest form are well-formed") {
  for (uint32_t code = 0; code < 0x200000; ++code) {
    for (int length = ShortestLength(code); length <= 4; ++length) {
      const bool scalar = code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF);
      const bool good = scalar && length == ShortestLength(code);
      const std::string text = Encode(code, length);
      if (IsValidUtf8(text) != good) FAIL("code " << code << " in " << length << " bytes");
      if (Utf8SequenceLength(text) != (good ? static_cast<size_t>(length) : 0))
        FAIL("code " << code);
    }
  }
  CHECK(IsValidUtf8(""));
  CHECK_FALSE(IsValidUtf8("a\x80"));
  CHECK_FALSE(IsValidUtf8("\xff"));
  CHECK(ValidUtf8Prefix("aé\xe2\x82") == 3);
}

TEST_CASE("an incomplete tail is what further bytes can complete") {
  for (const uint32_t code :
       {0x41u, 0xe9u, 0x20acu, 0xd7ffu, 0xe000u, 0x800u, 0x10000u, 0x1f600u, 0x10ffffu}) {
    const std::string text = Encode(code, ShortestLength(code));
    for (size_t n = 0; n <= text.size(); ++n) {
      INFO(code << " " << n);
      CHECK(IncompleteUtf8Tail("x" + text.substr(0, n)) == (n == text.size() ? 0 : n));
    }
  }
  // Leads whose second byte already rules them out are wrong, not incomplete.
  for (const char* bad :
       {"\xc0", "\xf5", "\xe0\x80", "\xed\xa0", "\xf0\x80", "\xf4\x90", "\x80", "\xe2\x82\x41"}) {
    CHECK(IncompleteUtf8Tail(bad) == 0);
  }
}

TEST_CASE("cutting valid text anywhere leaves a valid part and its tail") {
  std::mt19937_64 random(testing::RandomSeed());
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (int i = 0; i < 20; ++i) {
      uint32_t code = static_cast<uint32_t>(random() % 0x110000) >> (random() % 21);
      if (code >= 0xD800 && code <= 0xDFFF) code = 0x20ac;
      text += Encode(code, ShortestLength(code));
    }
    const std::string cut = text.substr(0, random() % (text.size() + 1));
    REQUIRE(ValidUtf8Prefix(cut) + IncompleteUtf8Tail(cut) == cut.size());
  }
}

TEST_CASE("text for messages") {
  CHECK(DisplayText("aé\n\xff", 100) == "aé??");
  CHECK(DisplayText("aéb", 2) == "a...");
  CHECK(DisplayText("aéb", 3) == "aé...");
  CHECK(DisplayText("", 0) == "");
}

}  // namespace
}  // namespace hadal
