// A tokenizer.json from outside: refused with a status, or its tokenizer encodes and decodes.
#include <cstdint>
#include <string>
#include <string_view>

#include "common/check.h"
#include "common/utf8.h"
#include "server/text/tokenizer.h"
#include "server/text/utf8_cursor.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = hadal::Tokenizer::Parse(input, "");
  if (!tokenizer.ok()) return 0;
  std::string text = "it's 12345  \n\n\xE4\xB8\xAD\xE6\x96\x87 <|end|>\xCC\x81";
  hadal::AppendLossyUtf8(input.substr(0, 2000), &text);
  for (const bool control : {false, true}) {
    const auto ids =
        control ? (*tokenizer)->EncodeWithControl(text) : (*tokenizer)->EncodeText(text);
    for (const int32_t id : ids) HADAL_CHECK(id >= 0 && id < (*tokenizer)->id_limit());
    HADAL_CHECK(hadal::IsValidUtf8((*tokenizer)->Decode(ids, control)));
  }
  return 0;
}
