#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "kernels/cuda/bench/peers/peers.h"

namespace hadal::bench {

// What a kernel has written: float or bf16.
struct Output {
  const void* data = nullptr;
  DType dtype = DType::kBF16;
};

// bf16 there, or another type; keeps it alive.
std::function<Output()> OutputAt(SharedDevice data, DType dtype = DType::kBF16);
// NaN until a kernel has written it.
SharedDevice Unwritten(int64_t bytes, CudaContext& context);

// One kernel on operands of its own choice for every call, as in MedianMicros().
struct Contender {
  std::string name;
  std::function<void(int)> run;
  std::function<Output()> output;  // of call 0; may run kernels
};

// Kernels that compute the same `count` values in call 0. The first of `ours` is the reference.
struct Comparison {
  std::string what;
  int64_t count = 0;
  int calls = 20;
  std::vector<Contender> ours;
  std::vector<Contender> theirs;
};

// Prints one line: the fastest of each side and their ratio. Whoever disagrees with the reference
// by more than rounding is named and not timed.
void PrintComparisonHeader();
void Compare(const Comparison& c, CudaContext& context);

}  // namespace hadal::bench
