// sm_90a: products by a warpgroup, 64 x kN x 32 of bytes, both sides in shared memory as describe_bytes() lays them.
#pragma once
#include "cuda/common/hopper.cuh"

namespace nybble::cuda::int8 {

// Where a tile begins: rows of 128 bytes, swizzled, 8 of them in 1024 bytes. 32 bytes further along K: + 2.
__device__ inline uint64_t descriptor(const void* tile) {
  constexpr uint64_t kEightRows = uint64_t{1024 >> 4} << 32, kSwizzle128 = uint64_t{1} << 62, kUnused = 1 << 16;
  return (shared_address(tile) & 0x3ffff) >> 4 | kUnused | kEightRows | kSwizzle128;
}

// Before the first product of a batch, after it, and until all but the last `kLeft` batches are done.
__device__ inline void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kLeft>
__device__ inline void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

// d (64 x kN) = a b, or d += a b. Warp w of the four, lane 4g + t: d[4j], d[4j + 1] are row 16w + g, columns 8j + 2t
// and 8j + 2t + 1; d[4j + 2], d[4j + 3] are row 16w + g + 8.
template <int kN>
__device__ void multiply_add(int (&d)[kN / 2], uint64_t a, uint64_t b, bool add);

#define NYBBLE_EIGHT(i)                                                                                       \
  "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), "+r"(d[i + 6]), \
      "+r"(d[i + 7])

template <>
__device__ inline void multiply_add<64>(int (&d)[32], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %34, 0;"
      "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
      ", %32, %33, p;}"
      : NYBBLE_EIGHT(0), NYBBLE_EIGHT(8), NYBBLE_EIGHT(16), NYBBLE_EIGHT(24)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

template <>
__device__ inline void multiply_add<128>(int (&d)[64], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %66, 0;"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
      ", %64, %65, p;}"
      : NYBBLE_EIGHT(0), NYBBLE_EIGHT(8), NYBBLE_EIGHT(16), NYBBLE_EIGHT(24), NYBBLE_EIGHT(32), NYBBLE_EIGHT(40),
        NYBBLE_EIGHT(48), NYBBLE_EIGHT(56)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

template <>
__device__ inline void multiply_add<256>(int (&d)[128], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %130, 0;"
      "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}"
      ", %128, %129, p;}"
      : NYBBLE_EIGHT(0), NYBBLE_EIGHT(8), NYBBLE_EIGHT(16), NYBBLE_EIGHT(24), NYBBLE_EIGHT(32), NYBBLE_EIGHT(40),
        NYBBLE_EIGHT(48), NYBBLE_EIGHT(56), NYBBLE_EIGHT(64), NYBBLE_EIGHT(72), NYBBLE_EIGHT(80), NYBBLE_EIGHT(88),
        NYBBLE_EIGHT(96), NYBBLE_EIGHT(104), NYBBLE_EIGHT(112), NYBBLE_EIGHT(120)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

#undef NYBBLE_EIGHT

}  // namespace nybble::cuda::int8
