#pragma once

// Loops for the probes, one set per instruction set; plain declarations, see gemm_kernel.h.

#include <cstdint>

namespace hadal {

// Each runs `rounds` rounds of independent multiply-adds in registers and returns the FLOPs done.
// *sink keeps the result alive.
using ProbeFlopsFn = double (*)(int64_t rounds, float* sink);
// Reads bytes (a multiple of 512) and returns a value that depends on all of them. As products read
// several panels of a weight at once, so do the vectorised ones: several streams get more of a core's
// bandwidth than one.
inline constexpr int kReadStreams = 4;
inline constexpr int64_t kReadAhead = 1024;  // bytes of prefetch in each
using ProbeReadFn = float (*)(const void* data, int64_t bytes);

double ProbeFlopsPortable(int64_t rounds, float* sink);
double ProbeFlopsAvx2(int64_t rounds, float* sink);
double ProbeFlopsAvx512(int64_t rounds, float* sink);
double ProbeFlopsAvx512Bf16(int64_t rounds, float* sink);
double ProbeFlopsAmx(int64_t rounds, float* sink);
float ProbeReadPortable(const void* data, int64_t bytes);
float ProbeReadAvx2(const void* data, int64_t bytes);
float ProbeReadAvx512(const void* data, int64_t bytes);

}  // namespace hadal
