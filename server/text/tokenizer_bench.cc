// hadal-tokenizer-bench: encoding and decoding speed of one core, next to what the machine needs to
// copy and to validate the same bytes.
#include <time.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "common/file.h"
#include "common/utf8.h"
#include "server/text/tokenizer.h"
#include "server/text/utf8_cursor.h"

namespace hadal {
namespace {

constexpr uint64_t kMaxTextBytes = 64ull << 20;
constexpr size_t kPromptBytes = 8 << 10;  // encoded in requests of about this size

// Processor time of this thread: what others run on the machine does not count.
double ThreadSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// The best of the runs that fit into `seconds`, in MB/s of `bytes`.
template <typename Work>
double Rate(double seconds, size_t bytes, Work work) {
  const double begin = ThreadSeconds();
  double best = 1e30;
  do {
    const double start = ThreadSeconds();
    work();
    best = std::min(best, ThreadSeconds() - start);
  } while (ThreadSeconds() - begin < seconds);
  return static_cast<double>(bytes) / best / 1e6;
}

// Tokens drawn at random from the whole vocabulary: every language it knows, and the least help
// that a cache of words can give.
std::string RandomVocabularyText(const Tokenizer& tokenizer, size_t bytes) {
  std::mt19937_64 random(1);
  std::uniform_int_distribution<int32_t> pick(0, tokenizer.id_limit() - 1);
  std::string raw;
  while (raw.size() < bytes) {
    const int32_t id = pick(random);
    if (!tokenizer.IsSpecial(id)) raw += tokenizer.TokenBytes(id);
  }
  std::string text;
  AppendLossyUtf8(raw, &text);
  return text;
}

std::vector<std::string_view> Prompts(std::string_view text) {
  std::vector<std::string_view> prompts;
  while (!text.empty()) {
    const size_t size =
        text.size() <= kPromptBytes ? text.size() : PreviousChar(text, kPromptBytes);
    prompts.push_back(text.substr(0, size));
    text.remove_prefix(size);
  }
  return prompts;
}

void Measure(const char* name, const Tokenizer& tokenizer, const std::string& text,
             double seconds) {
  std::string copy(text.size(), '\0');
  const double copied =
      Rate(seconds, text.size(), [&] { std::memcpy(copy.data(), text.data(), text.size()); });
  bool valid = true;
  const double validated = Rate(seconds, text.size(), [&] { valid = valid && IsValidUtf8(text); });
  std::vector<int32_t> ids;
  const double encoded = Rate(seconds, text.size(), [&] {
    ids.clear();
    for (const std::string_view prompt : Prompts(text)) {
      const std::vector<int32_t> part = tokenizer.EncodeText(prompt);
      ids.insert(ids.end(), part.begin(), part.end());
    }
  });
  std::string decoded;
  const double decode = Rate(seconds, text.size(), [&] { decoded = tokenizer.Decode(ids, false); });
  std::printf("%s: %zu bytes, %zu tokens, %.2f bytes per token%s\n", name, text.size(), ids.size(),
              static_cast<double>(text.size()) / static_cast<double>(ids.size()),
              decoded == text && valid ? "" : " (ROUND TRIP FAILED)");
  std::printf("  memcpy          %9.1f MB/s\n", copied);
  std::printf("  UTF-8 validation%9.1f MB/s\n", validated);
  std::printf("  encode          %9.1f MB/s  %5.1f %% of validation\n", encoded,
              100 * encoded / validated);
  std::printf("  decode          %9.1f MB/s  %5.1f %% of validation\n", decode,
              100 * decode / validated);
}

int Run(int argc, char** argv) {
  std::string model;
  std::vector<std::string> files;
  double seconds = 1;
  CLI::App app("Tokenizer speed on one core");
  app.add_option("--model", model, "Folder with tokenizer.json")->required();
  app.add_option("--text", files, "UTF-8 text files to encode");
  app.add_option("--seconds", seconds, "Time for each measurement");
  CLI11_PARSE(app, argc, argv);

  const auto tokenizer = Tokenizer::Load(model);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.status().message().c_str());
    return 1;
  }
  for (const std::string& file : files) {
    const auto text = ReadFile(file, kMaxTextBytes);
    if (!text.ok() || text->empty() || !IsValidUtf8(*text)) {
      std::fprintf(stderr, "%s: must be a readable, non-empty file of UTF-8\n", file.c_str());
      return 1;
    }
    Measure(file.c_str(), **tokenizer, *text, seconds);
  }
  Measure("random vocabulary", **tokenizer, RandomVocabularyText(**tokenizer, 4 << 20), seconds);
  return 0;
}

}  // namespace
}  // namespace hadal

int main(int argc, char** argv) { return hadal::Run(argc, argv); }
