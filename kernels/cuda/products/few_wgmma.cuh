#pragma once

#include <cstdint>

namespace hadal::cuda {

// d [64, N] += a [64, 16] b [16, N] by the 4 warps of a warpgroup, N = 8, 16, 32 or 64 the size of
// d; b is [N, 16] in shared memory, k contiguous. d[j] are columns 8j .. 8j + 7 as in MmaBf16().
#define HADAL_D1(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define HADAL_D2(d, i) HADAL_D1(d, i), HADAL_D1(d, i + 1)
#define HADAL_D4(d, i) HADAL_D2(d, i), HADAL_D2(d, i + 2)
#define HADAL_D8(d, i) HADAL_D4(d, i), HADAL_D4(d, i + 4)
#define HADAL_N4 "%0, %1, %2, %3"
#define HADAL_N8 HADAL_N4 ", %4, %5, %6, %7"
#define HADAL_N16 HADAL_N8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define HADAL_N32                                                            \
  HADAL_N16                                                                  \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, " \
  "%30, %31"

// FewProduct(d, a, b): a in shared memory too (a descriptor), or in registers as in MmaBf16().
#define HADAL_FEW_PRODUCT(n, tiles, names, d_all, shared, registers)                               \
  __device__ __forceinline__ void FewProduct(float(&d)[tiles][4], uint64_t a, uint64_t b) {        \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" names "}, " shared    \
                 ", 1, 1, 1, 0, 0;\n"                                                              \
                 : d_all(d, 0)                                                                     \
                 : "l"(a), "l"(b));                                                                \
  }                                                                                                \
  __device__ __forceinline__ void FewProduct(float(&d)[tiles][4], const uint32_t(&a)[4],           \
                                             uint64_t b) {                                         \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" names "}, " registers \
                 ", 1, 1, 1, 0;\n"                                                                 \
                 : d_all(d, 0)                                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                            \
  }

HADAL_FEW_PRODUCT("8", 1, HADAL_N4, HADAL_D1, "%4, %5", "{%4, %5, %6, %7}, %8")
HADAL_FEW_PRODUCT("16", 2, HADAL_N8, HADAL_D2, "%8, %9", "{%8, %9, %10, %11}, %12")
HADAL_FEW_PRODUCT("32", 4, HADAL_N16, HADAL_D4, "%16, %17", "{%16, %17, %18, %19}, %20")
HADAL_FEW_PRODUCT("64", 8, HADAL_N32, HADAL_D8, "%32, %33", "{%32, %33, %34, %35}, %36")

// d [64, N] = a [64, 32] b [N, 32]^T, plus d when `add`: e4m3, both in shared memory, k contiguous.
// N = 16, 32 or 64. Sums within such a product keep about 14 bits.
#define HADAL_FEW_PRODUCT_F8(n, tiles, names, d_all, operands, adds)                              \
  __device__ __forceinline__ void FewProductF8(float(&d)[tiles][4], uint64_t a, uint64_t b,       \
                                               int add) {                                         \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " adds                                         \
                 ", 0;\n"                                                                         \
                 "wgmma.mma_async.sync.aligned.m64n" n "k32.f32.e4m3.e4m3 {" names "}, " operands \
                 ", p, 1, 1;\n}\n"                                                                \
                 : d_all(d, 0)                                                                    \
                 : "l"(a), "l"(b), "r"(add));                                                     \
  }

HADAL_FEW_PRODUCT_F8("16", 2, HADAL_N8, HADAL_D2, "%8, %9", "%10")
HADAL_FEW_PRODUCT_F8("32", 4, HADAL_N16, HADAL_D4, "%16, %17", "%18")
HADAL_FEW_PRODUCT_F8("64", 8, HADAL_N32, HADAL_D8, "%32, %33", "%34")

}  // namespace hadal::cuda
