#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/bench/probes.h"
#include "kernels/cuda/products/matmul.h"
#include "kernels/op_params.h"

// Kernels of other libraries behind plain structs: their headers stay within one source file each.
namespace hadal::bench {

// One of their kernels on given operands. Owns what it needs beside them.
struct Peer {
  std::string name;
  std::function<void(cudaStream_t)> run;
};

// y[r] = x[r] w[e]^T for the rows first_row[e] .. first_row[e + 1] - 1 of every expert e.
struct GroupedProduct {
  const CudaPackedWeight* w = nullptr;
  const void* x = nullptr;         // [rows, k] of w's type
  const float* x_scale = nullptr;  // FP8: [rows, k / 128]
  std::vector<int32_t> first_row;  // host, [experts + 1]
  void* y = nullptr;               // [rows, n] bf16
};

// Several tile shapes each, to choose from.
std::vector<Peer> CutlassGroupedBf16(const GroupedProduct& p);
// REQUIRES: scales of 128 x 128, n and k multiples of 128.
std::vector<Peer> CutlassGroupedF8(const GroupedProduct& p);
// REQUIRES: one matrix, bf16 in and out, contiguous rows, n and k multiples of 8.
std::vector<Peer> CutlassDense(const cuda::Product& p);
std::vector<Peer> CutlassStreamK(const cuda::Product& p);  // also divides k; for few rows only

// Decode of rows of one query each, which all see `length` keys. The schedule is made here; a call
// is given the block tables of its rows, `length` / 64 rounded up for each. Writes to `out`.
using DecodePeer = std::function<void(const int32_t* block_tables, cudaStream_t)>;
DecodePeer FlashInferDecode(const MlaDecodeParams& p, int length, void* out);

// Device memory that ends with its last owner.
using SharedDevice = std::shared_ptr<void>;
SharedDevice OwnDevice(void* data);

}  // namespace hadal::bench
