#include "client/line_editor.h"

#include <algorithm>
#include <clocale>
#include <random>

#include "tests/client/pseudo_terminal.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using End = LineEditor::End;
using testing::ReadLines;
using testing::Row;
using testing::Rows;
using testing::Type;

const std::string kUp = "\033[A";
const std::string kDown = "\033[B";
const std::string kRight = "\033[C";
const std::string kLeft = "\033[D";

constexpr char Ctrl(char c) { return static_cast<char>(c & 0x1f); }

// The line that these keys and Enter make, in a fresh editor.
std::string Edited(const std::string& keys) {
  LineEditor editor;
  const ReadLines read = Type(&editor, keys + "\r", 1);
  REQUIRE(read.lines[0].end == End::kLine);
  return read.lines[0].text;
}

TEST_CASE("keys edit the line") {
  REQUIRE(std::setlocale(LC_CTYPE, "C.UTF-8") != nullptr);
  REQUIRE(Edited("hello") == "hello");
  REQUIRE(Edited("") == "");
  REQUIRE(Edited("né中😀") == "né中😀");
  REQUIRE(Edited("né中😀" + kLeft + kLeft + "x") == "néx中😀");
  REQUIRE(Edited("né中😀\x7f\x7f!") == "né!");
  REQUIRE(Edited("é" + kLeft + kLeft + kLeft + "x" + kRight + kRight + "y") == "xéy");
  for (const std::string home : {"\033[H", "\033OH", "\033[1~", "\033[7~", "\x01"}) {
    REQUIRE(Edited("bc" + home + "a") == "abc");
  }
  for (const std::string end : {"\033[F", "\033OF", "\033[4~", "\033[8~", "\x05"}) {
    REQUIRE(Edited("ab\x01" + end + "c") == "abc");
  }
  REQUIRE(Edited(std::string("a中c\x01\033[3~") + Ctrl('d')) == "c");
  REQUIRE(Edited(std::string("one two\x02\x02") + Ctrl('w')) == "one wo");
  REQUIRE(Edited(std::string("one two\x02\x02\x02") + Ctrl('k')) == "one ");
  REQUIRE(Edited(std::string("one two\x02\x02\x02") + Ctrl('u')) == "two");
}

TEST_CASE("keys that mean nothing leave no trace") {
  // F5, Shift-Tab, Ctrl-Right, Ctrl-G, and the marks around a bracketed paste.
  REQUIRE(Edited("a\033[15~b\033[Zc\033[1;5Cde\x07"
                 "f\033[200~g\033[201~") == "abcdefg");
}

TEST_CASE("a tab is text of one column") {
  LineEditor editor;
  const ReadLines read = Type(&editor, "a\tb" + kLeft + kLeft + "x\r", 1);
  REQUIRE(read.lines[0].text == "ax\tb");
  const auto rows = Rows(read.output.substr(0, read.output.rfind("\r\n")));
  REQUIRE(rows.back().text == "> ax b");
  REQUIRE(rows.back().column == 4);
}

TEST_CASE("a paste between marks is one message of several lines") {
  const std::string begin = "\033[200~";
  const std::string end = "\033[201~";
  REQUIRE(Edited("say: " + begin + "eins\rzwei é\r\n\tdrei\n\nfünf\r\n" + end + "!") ==
          "say: eins\nzwei é\n\tdrei\n\nfünf!");
  REQUIRE(Edited(begin + "a\x03\033b\x7f" + end) == "ab");  // keys in it are no keys
  REQUIRE(Edited(begin + end + "x") == "x");
  LineEditor editor;
  const ReadLines read = Type(&editor, begin + "a\rb" + end + kLeft + "x\r" + kUp + "\r", 2);
  REQUIRE(read.lines[0].text == "a\nxb");
  REQUIRE(read.lines[1].text == "a\nxb");
  const auto rows = Rows(read.output.substr(0, read.output.find("\r\n")));
  REQUIRE(rows.back().text == "> a xb");
  // The terminal is asked for the marks, and no more once the line is read.
  REQUIRE(read.output.starts_with("\033[?2004h"));
  REQUIRE(read.output.ends_with("\033[?2004l"));
}

TEST_CASE("lines are recalled, and the new line is kept meanwhile") {
  LineEditor editor;
  const std::string keys = "first\rsecond\rdra" + kUp + kUp + kUp + "!\r" +  // first!
                           "draft" + kUp + kDown + "s" + kDown + "\r" +      // drafts
                           kUp + kUp + "\x10\x0e\r" +                        // by Ctrl-P, Ctrl-N
                           kUp + kUp + kUp + kUp + kUp + "\r";
  const ReadLines read = Type(&editor, keys, 6);
  std::vector<std::string> lines;
  for (const auto& line : read.lines) {
    REQUIRE(line.end == End::kLine);
    lines.push_back(line.text);
  }
  REQUIRE(lines ==
          std::vector<std::string>{"first", "second", "first!", "drafts", "first!", "first"});
}

TEST_CASE("history holds no empty lines and no line twice in a row") {
  LineEditor editor;
  const ReadLines read = Type(&editor, "a\rb\rb\r\r" + kUp + kUp + "\r", 5);
  REQUIRE(read.lines[4].text == "a");
}

TEST_CASE("Ctrl-C gives up the line, Ctrl-D ends only an empty one") {
  LineEditor editor;
  const std::string keys =
      std::string("typed") + Ctrl('c') + "next\r" + kUp + "\x03" + "ab\x01\x04\r" + Ctrl('d');
  const ReadLines read = Type(&editor, keys, 5);
  REQUIRE(read.lines[0].end == End::kInterrupt);
  REQUIRE(read.lines[1].text == "next");
  REQUIRE(read.lines[2].end == End::kInterrupt);
  REQUIRE(read.lines[3].text == "b");
  REQUIRE(read.lines[4].end == End::kEof);
  REQUIRE(read.output.find("^C") != std::string::npos);
}

TEST_CASE("a paste of several lines is read line by line") {
  LineEditor editor;
  const ReadLines read = Type(&editor, "erste Zeile\nzweite — 中文\r\ndritte\n", 4);
  REQUIRE(read.lines[0].text == "erste Zeile");
  REQUIRE(read.lines[1].text == "zweite — 中文");
  REQUIRE(read.lines[2].text.empty());
  REQUIRE(read.lines[3].text == "dritte");
}

TEST_CASE("a long paste arrives whole") {
  std::string text;
  for (int i = 0; text.size() < 3000; ++i) text += std::to_string(i) + " é中 ";
  REQUIRE(Edited(text) == text);
}

TEST_CASE("the row shows the text around the cursor") {
  std::string text;
  for (int i = 10; i < 80; ++i) text += std::to_string(i) + ",";
  for (const int columns : {12, 20, 41, 500}) {
    for (const size_t back : {0, 1, 30, 130, 209, 210}) {
      LineEditor editor;
      std::string keys = text;
      for (size_t i = 0; i < back; ++i) keys += kLeft;
      const ReadLines read = Type(&editor, keys + "\r", 1, columns);
      const auto rows = Rows(read.output.substr(0, read.output.rfind("\r\n")));
      REQUIRE(rows.size() == 1);
      const auto& [row, column] = rows[0];
      CAPTURE(columns, back, row, column);
      REQUIRE(row.starts_with("> "));
      REQUIRE(row.size() <= static_cast<size_t>(columns));
      REQUIRE(row.size() + back >= std::min(static_cast<size_t>(columns) - 1, text.size() + 2));
      // The text is a row of different numbers, so that what is shown stands in one place of it.
      const std::string shown = row.substr(2);
      const size_t cursor = text.size() - back;
      const size_t before = static_cast<size_t>(column) - 2;
      REQUIRE(before <= cursor);
      REQUIRE(text.substr(cursor - before, shown.size()) == shown);
    }
  }
}

// A line as a list of characters, edited in the plainest way.
class Model {
 public:
  std::string Key(size_t kind, const std::string& character) {
    const auto at = [&] { return chars_.begin() + static_cast<ptrdiff_t>(cursor_); };
    switch (kind) {
      case 0:
        cursor_ -= cursor_ > 0;
        return kLeft;
      case 1:
        cursor_ += cursor_ < chars_.size();
        return kRight;
      case 2:
        cursor_ = 0;
        return "\x01";
      case 3:
        cursor_ = chars_.size();
        return "\x05";
      case 4:
        if (cursor_ > 0) {
          --cursor_;
          chars_.erase(at());
        }
        return "\x7f";
      case 5:
        if (cursor_ < chars_.size()) chars_.erase(at());
        return "\033[3~";
      default:
        chars_.insert(at(), character);
        ++cursor_;
        return character;
    }
  }
  std::string Text() const {
    std::string text;
    for (const std::string& c : chars_) text += c;
    return text;
  }
  size_t cursor() const { return cursor_; }

 private:
  std::vector<std::string> chars_;
  size_t cursor_ = 0;
};

TEST_CASE("random keys make the line, and the screen, that a simple model makes") {
  std::mt19937_64 random(testing::RandomSeed());
  const std::vector<std::string> any = {"a", "Z", " ", "é", "中", "😀", "\u0301"};
  for (int round = 0; round < 150; ++round) {
    const bool ascii = round % 2 == 0;
    Model model;
    std::string keys;
    for (size_t n = random() % 60; n > 0; --n) {
      keys += model.Key(random() % 12, any[random() % (ascii ? 3 : any.size())]);
    }
    LineEditor editor;
    const ReadLines read = Type(&editor, keys + "\r", 1);
    CAPTURE(keys);
    REQUIRE(read.lines[0].text == model.Text());
    if (!ascii) continue;
    const auto rows = Rows(read.output.substr(0, read.output.rfind("\r\n")));
    REQUIRE(rows.back().text == "> " + model.Text());
    REQUIRE(rows.back().column == static_cast<int>(2 + model.cursor()));
  }
}

}  // namespace
}  // namespace hadal
