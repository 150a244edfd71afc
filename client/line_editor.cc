#include "client/line_editor.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cwchar>
#include <iostream>

namespace hadal {
namespace {

bool IsContinuation(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

// Raw mode while it lives; Ctrl-C arrives as a byte, and pastes between marks.
class RawMode {
 public:
  RawMode() {
    tcgetattr(STDIN_FILENO, &saved_);
    termios raw = saved_;
    raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO | ISIG | IEXTEN);
    raw.c_iflag &= ~static_cast<tcflag_t>(IXON | ICRNL);
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
    std::printf("\033[?2004h");
  }
  ~RawMode() {
    std::printf("\033[?2004l");
    std::fflush(stdout);
    tcsetattr(STDIN_FILENO, TCSADRAIN, &saved_);
  }
  RawMode(const RawMode&) = delete;
  RawMode& operator=(const RawMode&) = delete;

 private:
  termios saved_{};
};

// -1 at the end of input, or when nothing comes within timeout_ms (-1: wait).
int ReadByte(int timeout_ms) {
  pollfd fd{STDIN_FILENO, POLLIN, 0};
  if (timeout_ms >= 0 && poll(&fd, 1, timeout_ms) <= 0) return -1;
  unsigned char byte = 0;
  return read(STDIN_FILENO, &byte, 1) == 1 ? byte : -1;
}

int TerminalColumns() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

constexpr int Ctrl(char c) { return c & 0x1f; }

bool IsText(int c) { return (c >= 32 && c != 127) || c == '\t'; }

// After the mark of a paste: the text before the other mark, its lines ended by \n and the last not at all.
std::string ReadPaste() {
  constexpr std::string_view kEnd = "\033[201~";
  std::string bytes;
  while (!bytes.ends_with(kEnd)) {
    const int c = ReadByte(1000);
    if (c < 0) break;
    bytes += static_cast<char>(c);
  }
  if (bytes.ends_with(kEnd)) bytes.resize(bytes.size() - kEnd.size());
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const bool pair = bytes.compare(i, 2, "\r\n") == 0;
    if (bytes[i] == '\n' || (bytes[i] == '\r' && !pair)) text += '\n';
    if (IsText(static_cast<unsigned char>(bytes[i]))) text += bytes[i];
  }
  text.erase(text.find_last_not_of('\n') + 1);
  return text;
}

}  // namespace

int DisplayWidth(std::string_view text) {
  int columns = 0;
  std::mbstate_t state{};
  while (!text.empty()) {
    wchar_t c = 0;
    const size_t n = std::mbrtowc(&c, text.data(), text.size(), &state);
    if (n == 0 || n > text.size()) {
      state = {};
      text.remove_prefix(1);
      ++columns;
      continue;
    }
    columns += std::max(wcwidth(c), 0);
    text.remove_prefix(n);
  }
  return columns;
}

size_t LineBuffer::Before(size_t at) const {
  if (at == 0) return 0;
  do --at;
  while (at > 0 && IsContinuation(text_[at]));
  return at;
}

size_t LineBuffer::After(size_t at) const {
  if (at == text_.size()) return at;
  do ++at;
  while (at < text_.size() && IsContinuation(text_[at]));
  return at;
}

void LineBuffer::Set(std::string text) {
  text_ = std::move(text);
  cursor_ = text_.size();
}

void LineBuffer::Insert(std::string_view bytes) {
  text_.insert(cursor_, bytes);
  cursor_ += bytes.size();
}

void LineBuffer::Left() { cursor_ = Before(cursor_); }
void LineBuffer::Right() { cursor_ = After(cursor_); }

void LineBuffer::Backspace() {
  const size_t start = Before(cursor_);
  text_.erase(start, cursor_ - start);
  cursor_ = start;
}

void LineBuffer::Delete() { text_.erase(cursor_, After(cursor_) - cursor_); }

void LineBuffer::DeleteWord() {
  size_t start = cursor_;
  while (start > 0 && text_[start - 1] == ' ') --start;
  while (start > 0 && text_[start - 1] != ' ') --start;
  text_.erase(start, cursor_ - start);
  cursor_ = start;
}

void LineBuffer::DeleteToEnd() { text_.erase(cursor_); }

void LineBuffer::DeleteToStart() {
  text_.erase(0, cursor_);
  cursor_ = 0;
}

// One line of the terminal; a longer text is shown around the cursor.
void LineEditor::Redraw(const std::string& prompt) const {
  const int room = std::max(TerminalColumns() - DisplayWidth(prompt) - 1, 8);
  std::string flat = buffer_.text();
  for (char& c : flat) {
    if (c == '\t' || c == '\n') c = ' ';  // one column each, in one row
  }
  const std::string_view text = flat;
  const auto width = [&](size_t from, size_t to) { return DisplayWidth(text.substr(from, to - from)); };
  size_t start = buffer_.cursor();
  size_t end = start;
  int before = 0;
  while (start > 0) {
    const size_t previous = buffer_.Before(start);
    const int wider = before + width(previous, start);
    if (wider > room) break;
    before = wider;
    start = previous;
  }
  for (int shown = before; end < text.size();) {
    const size_t next = buffer_.After(end);
    shown += width(end, next);
    if (shown > room) break;
    end = next;
  }
  const int column = DisplayWidth(prompt) + before;
  std::printf("\r%s%.*s\033[K\r", prompt.c_str(), static_cast<int>(end - start),
              text.data() + start);
  if (column > 0) std::printf("\033[%dC", column);
  std::fflush(stdout);
}

void LineEditor::Recall(int step) {
  const size_t target = recalled_ + static_cast<size_t>(step);
  if (target > history_.size()) return;  // also below zero: size_t wraps
  if (recalled_ == history_.size()) draft_ = buffer_.text();
  recalled_ = target;
  buffer_.Set(recalled_ == history_.size() ? draft_ : history_[recalled_]);
}

// After ESC: arrows, Home, End, Delete, pastes; other sequences are read and ignored.
void LineEditor::HandleEscape() {
  const int kind = ReadByte(50);
  if (kind != '[' && kind != 'O') return;
  std::string digits;
  int c = ReadByte(50);
  for (; (c >= '0' && c <= '9') || c == ';'; c = ReadByte(50)) digits += static_cast<char>(c);
  switch (c) {
    case 'A': Recall(-1); break;
    case 'B': Recall(1); break;
    case 'C': buffer_.Right(); break;
    case 'D': buffer_.Left(); break;
    case 'H': buffer_.Home(); break;
    case 'F': buffer_.End(); break;
    case '~':
      if (digits == "1" || digits == "7") buffer_.Home();
      if (digits == "4" || digits == "8") buffer_.End();
      if (digits == "3") buffer_.Delete();
      if (digits == "200") buffer_.Insert(ReadPaste());
      break;
    default: break;
  }
}

LineEditor::End LineEditor::EditLine(const std::string& prompt, std::string* line) {
  const RawMode raw;
  buffer_.Set("");
  recalled_ = history_.size();
  for (;;) {
    Redraw(prompt);
    const int c = ReadByte(-1);
    switch (c) {
      case -1: return End::kEof;
      case '\r':
      case '\n':
        std::printf("\r\n");
        *line = buffer_.text();
        return End::kLine;
      case Ctrl('c'): std::printf("^C\r\n"); return End::kInterrupt;
      case Ctrl('d'):
        if (buffer_.text().empty()) return End::kEof;
        buffer_.Delete();
        break;
      case 127:
      case Ctrl('h'): buffer_.Backspace(); break;
      case Ctrl('a'): buffer_.Home(); break;
      case Ctrl('e'): buffer_.End(); break;
      case Ctrl('b'): buffer_.Left(); break;
      case Ctrl('f'): buffer_.Right(); break;
      case Ctrl('k'): buffer_.DeleteToEnd(); break;
      case Ctrl('u'): buffer_.DeleteToStart(); break;
      case Ctrl('w'): buffer_.DeleteWord(); break;
      case Ctrl('p'): Recall(-1); break;
      case Ctrl('n'): Recall(1); break;
      case Ctrl('l'): std::printf("\033[H\033[2J"); break;
      case 27: HandleEscape(); break;
      default:
        if (IsText(c)) {
          const char byte = static_cast<char>(c);
          buffer_.Insert({&byte, 1});
        }
    }
  }
}

LineEditor::End LineEditor::ReadLine(const std::string& prompt, std::string* line) {
  if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO)) {
    return std::getline(std::cin, *line) ? End::kLine : End::kEof;
  }
  const End end = EditLine(prompt, line);
  if (end == End::kLine && !line->empty() && (history_.empty() || history_.back() != *line)) {
    history_.push_back(*line);
  }
  return end;
}

}  // namespace hadal
