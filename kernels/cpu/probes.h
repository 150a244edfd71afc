#pragma once

#include "kernels/cpu/cpu_backend.h"

namespace hadal {

// What this machine can do, measured now (some 100 ms each): the ceilings that benches divide by.
// Work is done on `threads` threads at once.

// GB/s (1e9 bytes) of reading memory that no cache holds.
double ReadBandwidthGBs(int threads);
// GFLOP/s of multiply-adds (2 FLOP each) from registers: the instruction that a matmul of `isa`
// runs on, bf16 pairs with AMX and AVX512_BF16, else float.
double MatMulCeilingGflops(int threads, CpuIsa isa);
// GFLOP/s of float multiply-adds, whatever `isa` has for bf16.
double F32CeilingGflops(int threads, CpuIsa isa);

}  // namespace hadal
