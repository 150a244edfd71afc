#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/layout.h"
#include "common/safetensors.h"
#include "common/status.h"

namespace hadal {

// What one job has computed. Reused from job to job by one thread.
struct Production {
  // Bytes of a tensor of the output file, inside `buffer` or inside a source file.
  struct Piece {
    size_t tensor = 0;    // index in OutputFile::tensors
    uint64_t offset = 0;  // in that tensor
    std::span<const std::byte> bytes;
  };
  struct Source {
    const SafetensorsFile* file = nullptr;
    std::span<const std::byte> bytes;
  };
  std::vector<Piece> pieces;
  std::vector<std::byte> buffer;
  std::vector<Source> sources;  // what was read, to be released when the pieces are used

  // data().subspan(offset, size) of a source tensor, read from the disk. DATA_LOSS.
  StatusOr<std::span<const std::byte>> Read(const Checkpoint::Entry& entry, uint64_t offset,
                                            uint64_t size);
};

// How one source tensor enters the output: rows that can be computed apart and in any order.
struct Work {
  int64_t rows = 0;
  int64_t multiple = 1;    // ranges of rows begin at multiples of it
  uint64_t row_bytes = 0;  // read and written for one row
  // Thread-safe. Appends to pieces and sources.
  std::function<Status(Range rows, Production*)> produce;
};

// One safetensors file to be written.
struct OutputFile {
  std::string name;                 // without directory
  std::vector<TensorInfo> tensors;  // begin and end are set by Finish
  std::vector<Work> works;
  std::string prefix;  // what stands before the data
  uint64_t bytes = 0;  // of the whole file

  // Returns the index of the tensor.
  size_t AddTensor(std::string tensor_name, std::string dtype_name, std::vector<int64_t> shape);
  // Lays the tensors out. `format` as in LayOutSafetensors.
  void Finish(std::string_view format);
};

// Where the pieces of a file go. Thread-safe; the offset is from the start of the file.
using Sink = std::function<Status(uint64_t offset, std::span<const std::byte> bytes)>;

// Computes every piece of the file on `threads` threads, fewer where memory would pass its bound,
// and hands it to `sink`; `done` counts the bytes as they come. Returns the first error; rethrows
// what a thread threw.
Status ProduceFile(const OutputFile& file, int threads, const Sink& sink,
                   const std::function<void(uint64_t bytes)>& done);

}  // namespace hadal
