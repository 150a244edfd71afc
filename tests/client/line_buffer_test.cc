#include <clocale>

#include "client/line_editor.h"
#include "tests/support/catch.h"

namespace hadal {
namespace {

TEST_CASE("the cursor moves by characters and stays inside the text") {
  LineBuffer buffer;
  buffer.Left();
  buffer.Right();
  buffer.Backspace();
  buffer.Delete();
  REQUIRE(buffer.text().empty());
  buffer.Insert("aé中😀");  // 1, 2, 3 and 4 bytes
  REQUIRE(buffer.cursor() == 10);
  for (const size_t at : {6, 3, 1, 0, 0}) {
    buffer.Left();
    REQUIRE(buffer.cursor() == at);
  }
  for (const size_t at : {1, 3, 6, 10, 10}) {
    buffer.Right();
    REQUIRE(buffer.cursor() == at);
  }
  buffer.Home();
  REQUIRE(buffer.cursor() == 0);
  buffer.End();
  REQUIRE(buffer.cursor() == 10);
}

TEST_CASE("whole characters are deleted, before and under the cursor") {
  LineBuffer buffer;
  buffer.Set("aé中😀");
  REQUIRE(buffer.cursor() == buffer.text().size());
  buffer.Delete();
  REQUIRE(buffer.text() == "aé中😀");
  buffer.Backspace();
  REQUIRE(buffer.text() == "aé中");
  buffer.Left();
  buffer.Backspace();
  REQUIRE(buffer.text() == "a中");
  buffer.Delete();
  REQUIRE(buffer.text() == "a");
  buffer.Insert("x");
  REQUIRE(buffer.text() == "ax");
}

TEST_CASE("a character that arrives byte by byte is one character") {
  LineBuffer buffer;
  buffer.Set("ab");
  buffer.Left();
  for (const char byte : std::string("中")) buffer.Insert({&byte, 1});
  REQUIRE(buffer.text() == "a中b");
  buffer.Backspace();
  REQUIRE(buffer.text() == "ab");
}

TEST_CASE("words and the ends of a line are deleted") {
  LineBuffer buffer;
  buffer.Set("one two  drei é ");
  buffer.DeleteWord();
  REQUIRE(buffer.text() == "one two  drei ");
  buffer.DeleteWord();
  REQUIRE(buffer.text() == "one two  ");
  buffer.Home();
  buffer.DeleteWord();
  REQUIRE(buffer.text() == "one two  ");
  for (int i = 0; i < 5; ++i) buffer.Right();
  buffer.DeleteWord();  // what of the word stands before the cursor
  REQUIRE(buffer.text() == "one wo  ");
  buffer.DeleteToEnd();
  REQUIRE(buffer.text() == "one ");
  buffer.Set("left right");
  for (int i = 0; i < 5; ++i) buffer.Left();
  buffer.DeleteToStart();
  REQUIRE(buffer.text() == "right");
  REQUIRE(buffer.cursor() == 0);
}

TEST_CASE("columns: wide, combining and broken characters") {
  REQUIRE(std::setlocale(LC_CTYPE, "C.UTF-8") != nullptr);
  REQUIRE(DisplayWidth("") == 0);
  REQUIRE(DisplayWidth("abc") == 3);
  REQUIRE(DisplayWidth("é") == 1);
  REQUIRE(DisplayWidth("e\u0301") == 1);
  REQUIRE(DisplayWidth("中文") == 4);
  REQUIRE(DisplayWidth("😀") == 2);
  REQUIRE(DisplayWidth("a\xff"
                       "b") == 3);
  REQUIRE(DisplayWidth("\xe4\xb8") >= 1);  // not complete yet
}

}  // namespace
}  // namespace hadal
