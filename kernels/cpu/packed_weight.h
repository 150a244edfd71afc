#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/large_pages.h"
#include "kernels/cpu/thread_pool.h"

namespace hadal {

// Outputs per panel: the unit of every matmul kernel.
inline constexpr int kPanel = 16;

// One matrix cut into panels of 16 outputs, each contiguous along k, zero-padded:
//   kBF16    [panels][steps][16][2] bf16, a step being a pair of inputs
//   kF8E4M3  [panels][steps][16][2] bytes, and scales [panels][blocks][16] float
//   kF32     [panels][steps][16] float, a step being one input
// A scale block never shares a step with its neighbour: when the first block holds an odd number of
// inputs (`lead`), a zero is inserted behind it, in the weights as in the activations.
struct CpuPackedWeight : PackedWeight {
  int64_t panels = 0;
  int64_t steps = 0;         // stored per panel
  int64_t panel_bytes = 0;
  int64_t lead = 0;          // inputs in front of an inserted zero; 0: there is none
  // kF8E4M3: block 0 covers steps [0, first_steps), each further one block_steps.
  int64_t first_steps = 0;
  int64_t block_steps = 0;
  int64_t blocks = 0;
  const float* scale = nullptr;  // [panels][blocks][16], behind the panels
  const char* data = nullptr;    // [panels]

  const char* panel(int64_t i) const { return data + i * panel_bytes; }
};

// What Backend::Pack() returns: matrices of one shape, one behind the other.
struct CpuWeightBatch : PackedWeight {
  Memory memory;
  std::vector<CpuPackedWeight> owned;            // [count]
  std::vector<const CpuPackedWeight*> matrices;  // [count] the same
};

// The matrices of an op's weight. REQUIRES: it came from this backend.
inline const std::vector<const CpuPackedWeight*>& CpuMatrices(const PackedWeight* weight) {
  return static_cast<const CpuWeightBatch*>(weight)->matrices;
}

// Contract of Backend::Pack(). `scale_block` must be even.
std::unique_ptr<PackedWeight> PackCpuWeight(const std::vector<StackedSource>& matrices,
                                            ThreadPool& pool);
int64_t CpuPackedBytes(int64_t n, int64_t k, DType dtype, int64_t scale_block = 128);

// True when any of n e4m3 codes is a NaN (0x7f or 0xff). Pack() accepts them; a checkpoint loader
// should not.
bool HasF8Nan(const uint8_t* codes, int64_t n);

}  // namespace hadal
