#include "tools/output_file.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <vector>

#include "tests/support/catch.h"
#include "tests/support/no_threads.h"

namespace hadal {
namespace {

constexpr int64_t kRows = 9, kRowBytes = 1 << 20;  // three jobs

// One tensor whose row r holds bytes of value r.
OutputFile NumberedRows() {
  OutputFile file;
  const size_t tensor = file.AddTensor("rows", "U8", {kRows, kRowBytes});
  file.works.push_back(
      {.rows = kRows, .row_bytes = kRowBytes, .produce = [=](Range rows, Production* out) {
         out->buffer.resize(static_cast<size_t>(rows.size() * kRowBytes));
         for (int64_t r = rows.begin; r < rows.end; ++r) {
           std::memset(out->buffer.data() + (r - rows.begin) * kRowBytes, static_cast<int>(r),
                       kRowBytes);
         }
         out->pieces.push_back(
             {tensor, static_cast<uint64_t>(rows.begin * kRowBytes), out->buffer});
         return OkStatus();
       }});
  file.Finish("");
  return file;
}

TEST_CASE("every piece of a file is produced, by however few threads there are") {
  const OutputFile file = NumberedRows();
  for (const bool alone : {false, true}) {
    CAPTURE(alone);
    std::optional<testing::NoThreads> no_threads;
    if (alone) no_threads.emplace();
    std::vector<std::byte> written(file.bytes);
    std::atomic<uint64_t> counted = 0;
    const Status status = ProduceFile(
        file, 4,
        [&](uint64_t offset, std::span<const std::byte> bytes) {
          std::copy(bytes.begin(), bytes.end(), written.begin() + static_cast<int64_t>(offset));
          return OkStatus();
        },
        [&](uint64_t bytes) { counted += bytes; });
    CHECK(status.ok());
    CHECK(counted == kRows * kRowBytes);
    int64_t wrong = 0;
    for (int64_t i = 0; i < kRows * kRowBytes; ++i) {
      wrong += written[file.prefix.size() + static_cast<size_t>(i)] !=
               static_cast<std::byte>(i / kRowBytes);
    }
    CHECK(wrong == 0);
  }
}

}  // namespace
}  // namespace hadal
