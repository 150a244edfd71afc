#pragma once

#include <cstdint>

namespace hadal {

// Half-open range [begin, end).
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  bool Contains(int64_t i) const { return i >= begin && i < end; }
  bool operator==(const Range&) const = default;
};

// The i-th of `parts` contiguous, nearly equal pieces of [0, n): sizes differ by at most one.
constexpr Range SplitRange(int64_t n, int parts, int i) {
  return {n * i / parts, n * (i + 1) / parts};
}

// Where one rank stands: world = tensor_parallel x data_parallel, the ranks of one D group are
// consecutive. Heads, MLP widths and the vocabulary are split over the T ranks of a group; routed
// experts over all ranks. Heads and experts must divide; MLP widths and the vocabulary need not.
struct Layout {
  int tensor_parallel = 1;
  int data_parallel = 1;
  int rank = 0;

  int world() const { return tensor_parallel * data_parallel; }
  int tp_rank() const { return rank % tensor_parallel; }
  int dp_rank() const { return rank / tensor_parallel; }
};

}  // namespace hadal
