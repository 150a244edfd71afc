// hadal-cast-bench: how fast one core casts, without reading and writing files.
#include <time.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/check.h"
#include "tools/tensor_work.h"

namespace hadal {
namespace {

// As many columns as V3's matrices have, and more rows than any cache holds.
constexpr int64_t kRows = 16384;
constexpr int64_t kColumns = 7168;
constexpr int64_t kBlock = 128;
constexpr int64_t kJobRows = 128;  // 2.6 MiB read and written, as in a run

// Processor time of this thread: what others run on the machine does not count.
double ThreadSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// A tensor in memory, with the bytes that `byte` gives.
struct Source {
  std::unique_ptr<SafetensorsFile> file;
  Checkpoint::Entry entry;

  template <typename Byte>
  Source(DType dtype, int64_t rows, int64_t columns, Byte byte) {
    const int64_t size = rows * columns * DTypeSize(dtype);
    file = *SafetensorsFile::InMemory("bench", size);
    for (int64_t i = 0; i < size; ++i) file->memory()[i] = static_cast<std::byte>(byte(i));
    entry = {.info = {.name = "bench",
                      .dtype_name = std::string(DTypeName(dtype)),
                      .dtype = dtype,
                      .shape = {rows, columns},
                      .end = static_cast<uint64_t>(size)},
             .file = file.get(),
             .rows = {0, rows},
             .columns = {0, columns}};
  }
};

// GB/s of `bytes`: the median of five passes over the matrix, after one that is not counted.
double Rate(const OutputFile& file, int64_t bytes) {
  std::vector<double> seconds;
  Production production;
  for (int pass = 0; pass < 6; ++pass) {
    const double start = ThreadSeconds();
    for (int64_t row = 0; row < kRows; row += kJobRows) {
      production.pieces.clear();
      production.sources.clear();
      const Status done = file.works[0].produce({row, row + kJobRows}, &production);
      HADAL_CHECK(done.ok(), "{}", done.message());
    }
    if (pass > 0) seconds.push_back(ThreadSeconds() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  return static_cast<double>(bytes) / seconds[seconds.size() / 2] / 1e9;
}

void Measure() {
  std::mt19937 random(1);
  OutputFile to_bf16;
  const Source codes(DType::kF8E4M3, kRows, kColumns, [&](int64_t) { return random(); });
  const Source scales(DType::kF32, kRows / kBlock, kColumns / kBlock,
                      [](int64_t i) { return i % 4 == 3 ? 0x3f : 0x40; });
  AddCastToBf16(codes.entry, scales.entry, BlockShape{}, &to_bf16);
  std::printf("FP8 to bf16: %.2f GB/s of FP8 on one core\n", Rate(to_bf16, kRows * kColumns));
  OutputFile to_fp8;
  const Source values(DType::kBF16, kRows, kColumns, [&](int64_t i) {
    return i % 2 == 0 ? random() : 0x3c + random() % 3 + random() % 2 * 0x80;
  });
  AddCastToF8E4M3(values.entry, BlockShape{}, false, &to_fp8);
  std::printf("bf16 to FP8: %.2f GB/s of bf16 on one core\n", Rate(to_fp8, 2 * kRows * kColumns));
}

}  // namespace
}  // namespace hadal

int main(int argc, char**) {
  if (argc > 1) {
    std::puts("usage: hadal-cast-bench\nPrints how fast one core casts what lies in memory.");
    return 2;
  }
  hadal::Measure();
  return 0;
}
