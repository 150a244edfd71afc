#pragma once

// Hopper's matrix products of four warps (a warpgroup) and its copies of tiles. Tiles lie in shared
// memory as the copy engine leaves them with a 128-byte swizzle: boxes of 64 columns, rows of 128
// bytes, at multiples of 1024 bytes.

namespace hadal::cuda {

// A tile whose rows are k and whose columns are n, boxes `box_bytes` apart. The next 16 rows are
// 2048 bytes further on.
__device__ __forceinline__ uint64_t ColumnsDescriptor(uint32_t address, uint32_t box_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kEightRows | uint64_t{box_bytes >> 4} << 16 | (address >> 4 & 0x3fff);
}

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HADAL_SM90A 1

#define HADAL_ROW(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define HADAL_ROWS4(d, i) \
  HADAL_ROW(d, i), HADAL_ROW(d, i + 1), HADAL_ROW(d, i + 2), HADAL_ROW(d, i + 3)
#define HADAL_ROWS16(d) HADAL_ROWS4(d, 0), HADAL_ROWS4(d, 4), HADAL_ROWS4(d, 8), HADAL_ROWS4(d, 12)
#define HADAL_NAMES32                                                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
  "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define HADAL_NAMES64                                                                  \
  HADAL_NAMES32                                                                        \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d [64, 128] = a [64, 16] b [16, 128] (+ d); both in shared memory, k contiguous.
__device__ __forceinline__ void WgmmaRows128(float (&d)[16][4], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" HADAL_NAMES64
      "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
      : HADAL_ROWS16(d)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}
// The same with n = 64.
__device__ __forceinline__ void WgmmaRows64(float (&d)[8][4], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" HADAL_NAMES32
      "}, %32, %33, p, 1, 1, 0, 0;\n}\n"
      : HADAL_ROWS4(d, 0), HADAL_ROWS4(d, 4)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}
// d [64, 128] += a [64, 16] b [16, 128]; a in registers, b in shared memory, n contiguous.
__device__ __forceinline__ void WgmmaColumns128(float (&d)[16][4], const uint32_t (&a)[4],
                                                uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" HADAL_NAMES64
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n"
      : HADAL_ROWS16(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// d [64, 128] += a [64, 16] b [16, 128]; both in shared memory, a with k, b with n contiguous.
__device__ __forceinline__ void WgmmaRowsColumns128(float (&d)[16][4], uint64_t a, uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" HADAL_NAMES64
      "}, %64, %65, p, 1, 1, 0, 1;\n}\n"
      : HADAL_ROWS16(d)
      : "l"(a), "l"(b));
}

#endif

}  // namespace hadal::cuda
