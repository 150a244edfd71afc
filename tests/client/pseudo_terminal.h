#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "client/line_editor.h"

namespace hadal::testing {

struct ReadLines {
  struct Line {
    LineEditor::End end;
    std::string text;  // of kLine
  };
  std::vector<Line> lines;
  std::string output;  // everything written to the terminal
};

// Types the bytes on a terminal of that many columns while `editor` reads `count` lines from it
// with the prompt "> ". Takes stdin and stdout meanwhile: one at a time.
ReadLines Type(LineEditor* editor, std::string_view bytes, int count, int columns = 80);

// What one row of a terminal shows, and where its cursor is.
struct Row {
  std::string text;
  int column = 0;
};
// The rows that the output of a line editor leaves, the last one being where the cursor is. Knows
// what the editor uses: CR, LF, moves to the right, erasing to the end of the row and of the
// screen. All characters are one column wide. REQUIRES: ASCII.
std::vector<Row> Rows(std::string_view output);

}  // namespace hadal::testing
