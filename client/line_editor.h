#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace hadal {

// The text being edited: UTF-8, with a cursor between characters. No terminal; testable alone.
class LineBuffer {
 public:
  const std::string& text() const { return text_; }
  size_t cursor() const { return cursor_; }  // in bytes
  void Set(std::string text);
  void Insert(std::string_view bytes);
  void Left();
  void Right();
  void Home() { cursor_ = 0; }
  void End() { cursor_ = text_.size(); }
  void Backspace();
  void Delete();
  void DeleteWord();       // the word before the cursor
  void DeleteToEnd();
  void DeleteToStart();

  // Where the character before `at` starts, and where the one at `at` ends.
  size_t Before(size_t at) const;
  size_t After(size_t at) const;

 private:
  std::string text_;
  size_t cursor_ = 0;
};

// Reads lines from a terminal with history and the usual keys, or plainly when stdin is none.
class LineEditor {
 public:
  enum class End { kLine, kInterrupt, kEof };
  // Shows `prompt` and reads one line. kInterrupt: Ctrl-C; kEof: Ctrl-D on an empty line.
  End ReadLine(const std::string& prompt, std::string* line);

 private:
  End EditLine(const std::string& prompt, std::string* line);
  void HandleEscape();
  void Recall(int step);
  void Redraw(const std::string& prompt) const;

  LineBuffer buffer_;
  std::vector<std::string> history_;
  size_t recalled_ = 0;   // index in history_, its size: the new line
  std::string draft_;     // the new line while history is shown
};

// Columns that UTF-8 text takes on a terminal.
int DisplayWidth(std::string_view text);

}  // namespace hadal
