#include "tests/client/pseudo_terminal.h"

#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <thread>

#include "common/check.h"

namespace hadal::testing {
namespace {

// Stdin and stdout are `fd` while it lives.
class StandardStreams {
 public:
  explicit StandardStreams(int fd) {
    std::fflush(stdout);
    HADAL_CHECK(dup2(fd, STDIN_FILENO) == STDIN_FILENO);
    HADAL_CHECK(dup2(fd, STDOUT_FILENO) == STDOUT_FILENO);
  }
  ~StandardStreams() {
    std::fflush(stdout);
    dup2(in_, STDIN_FILENO);
    dup2(out_, STDOUT_FILENO);
    close(in_);
    close(out_);
  }
  StandardStreams(const StandardStreams&) = delete;
  StandardStreams& operator=(const StandardStreams&) = delete;

 private:
  const int in_ = dup(STDIN_FILENO);
  const int out_ = dup(STDOUT_FILENO);
};

// The person: types as fast as the terminal takes it, and sees all output, until the terminal goes.
void TypeAndWatch(int master, std::string_view bytes, std::string* output) {
  for (;;) {
    pollfd fd{master, static_cast<short>(bytes.empty() ? POLLIN : POLLIN | POLLOUT), 0};
    if (poll(&fd, 1, -1) < 0) return;
    if ((fd.revents & POLLOUT) != 0) {
      const ssize_t written = write(master, bytes.data(), std::min<size_t>(bytes.size(), 256));
      if (written > 0) bytes.remove_prefix(static_cast<size_t>(written));
    }
    if ((fd.revents & (POLLIN | POLLHUP)) == 0) continue;
    char buffer[4096];
    const ssize_t got = read(master, buffer, sizeof buffer);
    if (got <= 0) return;
    output->append(buffer, static_cast<size_t>(got));
  }
}

}  // namespace

ReadLines Type(LineEditor* editor, std::string_view bytes, int count, int columns) {
  int master = -1;
  int slave = -1;
  winsize size{.ws_row = 24, .ws_col = static_cast<unsigned short>(columns)};
  // Raw from the start: what is typed before the editor reads must reach it as it is.
  termios raw{};
  cfmakeraw(&raw);
  HADAL_CHECK(openpty(&master, &slave, nullptr, &raw, &size) == 0);
  ReadLines result;
  std::thread person([&] { TypeAndWatch(master, bytes, &result.output); });
  {
    const StandardStreams streams(slave);
    for (int i = 0; i < count; ++i) {
      std::string line;
      const LineEditor::End end = editor->ReadLine("> ", &line);
      result.lines.push_back({end, end == LineEditor::End::kLine ? line : ""});
    }
  }
  close(slave);
  person.join();
  close(master);
  return result;
}

std::vector<Row> Rows(std::string_view output) {
  std::vector<Row> rows(1);
  for (size_t i = 0; i < output.size(); ++i) {
    Row& row = rows.back();
    const auto column = static_cast<size_t>(row.column);
    if (output[i] == '\r') {
      row.column = 0;
    } else if (output[i] == '\n') {
      rows.push_back({"", row.column});
    } else if (output[i] != '\033') {
      if (row.text.size() <= column) row.text.resize(column + 1, ' ');
      row.text[column] = output[i];
      ++row.column;
    } else {
      const size_t last = output.find_first_not_of("?0123456789", i + 2);
      HADAL_CHECK(last != std::string_view::npos && output[i + 1] == '[');
      const int number = std::atoi(output.data() + i + 2);
      if (output[last] == 'C') row.column += number;
      if (output[last] == 'K') row.text.resize(std::min(row.text.size(), column));
      if (output[last] == 'H') row.column = 0;
      if (output[last] == 'J') rows.assign(1, {"", row.column});
      i = last;
    }
  }
  return rows;
}

}  // namespace hadal::testing
