// Runs a libFuzzer target without libFuzzer: seeds first, then mutated seeds. Mutation number i
// depends on (seed, i) alone, so that a failure is repeated with --only i.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
// Set when a sanitizer is linked, which ends the process without a signal.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace {

using Bytes = std::vector<uint8_t>;
constexpr size_t kMaxBytes = 1 << 16;

char g_where[160];  // what to say when a target dies

void SayWhere() {
  const ssize_t written = write(STDERR_FILENO, g_where, std::strlen(g_where));
  (void)written;
}

void OnSignal(int number) {
  SayWhere();
  signal(number, SIG_DFL);
  raise(number);
}

void SayWhereOnDeath() {
  for (const int number : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL}) signal(number, OnSignal);
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(SayWhere);
}

// One engine seed from both numbers (splitmix64's finaliser).
uint64_t Mixed(uint64_t seed, uint64_t iteration) {
  uint64_t x = seed + (iteration + 1) * 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

class Mutator {
 public:
  Mutator(const std::vector<Bytes>& seeds, uint64_t seed, uint64_t iteration)
      : seeds_(seeds), random_(Mixed(seed, iteration)) {}

  Bytes Next() {
    Bytes bytes = seeds_[Below(seeds_.size())];
    const size_t changes = 1 + Below(Below(4) == 0 ? 32 : 4);
    for (size_t i = 0; i < changes; ++i) Change(&bytes);
    if (bytes.size() > kMaxBytes) bytes.resize(kMaxBytes);
    return bytes;
  }

 private:
  size_t Below(size_t n) { return n == 0 ? 0 : random_() % n; }

  void Change(Bytes* bytes) {
    const size_t at = Below(bytes->size() + 1);
    const size_t length = 1 + Below(Below(2) == 0 ? 4 : 64);
    const auto where = bytes->begin() + static_cast<ptrdiff_t>(at);
    const auto until = where + static_cast<ptrdiff_t>(std::min(length, bytes->size() - at));
    switch (Below(9)) {
      case 0:
        if (at < bytes->size()) *where ^= static_cast<uint8_t>(1u << Below(8));
        break;
      case 1:
        if (at < bytes->size()) *where = static_cast<uint8_t>(random_());
        break;
      case 2:
        bytes->erase(where, until);
        break;
      case 3:
        bytes->insert(where, length, static_cast<uint8_t>(random_()));
        break;
      case 4: {
        const Bytes copy(where, until);
        bytes->insert(bytes->begin() + static_cast<ptrdiff_t>(Below(bytes->size() + 1)),
                      copy.begin(), copy.end());
        break;
      }
      case 5:
        bytes->resize(at);
        break;
      case 6:
        Splice(bytes, at);
        break;
      case 7:
        InsertToken(bytes, at);
        break;
      default:
        ReplaceNumber(bytes, at);
        break;
    }
  }

  // The rest of another seed.
  void Splice(Bytes* bytes, size_t at) {
    const Bytes& other = seeds_[Below(seeds_.size())];
    bytes->resize(at);
    bytes->insert(bytes->end(), other.begin() + static_cast<ptrdiff_t>(Below(other.size() + 1)),
                  other.end());
  }

  void InsertToken(Bytes* bytes, size_t at) {
    static const std::vector<std::string> kTokens = {"{",
                                                     "}",
                                                     "[",
                                                     "]",
                                                     ",",
                                                     ":",
                                                     "\"",
                                                     "null",
                                                     "true",
                                                     "-1",
                                                     "0",
                                                     "1e999",
                                                     "\\u0000",
                                                     "\\ud800",
                                                     "18446744073709551615",
                                                     "9223372036854775807",
                                                     "4611686018427387904",
                                                     "\xff",
                                                     "\xed\xa0\x80",
                                                     "\xf0\x9f\x98\x80",
                                                     "\"a\":",
                                                     "{}",
                                                     "[[[[[[[[",
                                                     std::string(1, '\0')};
    const std::string& token = kTokens[Below(kTokens.size())];
    bytes->insert(bytes->begin() + static_cast<ptrdiff_t>(at), token.begin(), token.end());
  }

  // A run of digits becomes another number; in binary data eight bytes become an extreme one.
  void ReplaceNumber(Bytes* bytes, size_t at) {
    while (at < bytes->size() && std::isdigit((*bytes)[at]) == 0) ++at;
    if (at == bytes->size()) {
      const uint64_t extreme = Below(2) == 0 ? ~uint64_t{0} >> Below(64) : uint64_t{1} << Below(64);
      if (bytes->size() < 8) return;
      std::memcpy(bytes->data() + Below(bytes->size() - 7), &extreme, 8);
      return;
    }
    size_t end = at;
    while (end < bytes->size() && std::isdigit((*bytes)[end]) != 0) ++end;
    const std::string number = std::to_string(random_() >> Below(64));
    bytes->erase(bytes->begin() + static_cast<ptrdiff_t>(at),
                 bytes->begin() + static_cast<ptrdiff_t>(end));
    bytes->insert(bytes->begin() + static_cast<ptrdiff_t>(at), number.begin(), number.end());
  }

  const std::vector<Bytes>& seeds_;
  std::mt19937_64 random_;
};

// In the order of their names, so that iterations repeat.
std::vector<Bytes> ReadSeeds(const std::string& folder) {
  std::vector<std::filesystem::path> paths;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.is_regular_file()) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<Bytes> seeds;
  for (const auto& path : paths) {
    std::ifstream in(path, std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  return seeds;
}

uint64_t Seed() {
  const char* fixed = std::getenv("HADAL_TEST_SEED");
  return fixed != nullptr ? std::strtoull(fixed, nullptr, 10) : std::random_device{}();
}

}  // namespace

// usage: x_fuzz CORPUS_FOLDER ITERATIONS [--only ITERATION]
int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s CORPUS_FOLDER ITERATIONS [--only ITERATION]\n", argv[0]);
    return 2;
  }
  std::vector<Bytes> seeds = ReadSeeds(argv[1]);
  const uint64_t iterations = std::strtoull(argv[2], nullptr, 10);
  const uint64_t seed = Seed();
  std::printf("HADAL_TEST_SEED=%" PRIu64 ", %zu seeds, %" PRIu64 " iterations\n", seed,
              seeds.size(), iterations);
  std::fflush(stdout);
  if (seeds.empty()) {
    std::fprintf(stderr, "%s holds no seeds\n", argv[1]);
    return 2;
  }
  SayWhereOnDeath();
  for (size_t i = 0; i < seeds.size(); ++i) {
    std::snprintf(g_where, sizeof(g_where), "failed on seed file %zu of the corpus\n", i);
    LLVMFuzzerTestOneInput(seeds[i].data(), seeds[i].size());
  }
  const bool one = argc == 5 && std::string(argv[3]) == "--only";
  const uint64_t first = one ? std::strtoull(argv[4], nullptr, 10) : 0;
  for (uint64_t i = first; i < (one ? first + 1 : iterations); ++i) {
    std::snprintf(g_where, sizeof(g_where),
                  "failed on HADAL_TEST_SEED=%" PRIu64 " iteration %" PRIu64
                  " (repeat with --only)\n",
                  seed, i);
    const Bytes input = Mutator(seeds, seed, i).Next();
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  return 0;
}
