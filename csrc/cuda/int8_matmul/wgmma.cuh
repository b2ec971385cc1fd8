// sm_90a: products by warpgroups, both sides in shared memory, and what the two kernels that use them share.
//
//   producer   one warp: a step's two tiles by the copy engine into the next place of a ring, once it is empty
//   consumers  two warpgroups, 64 of the 128 columns each: wait until a place is full, multiply, say that it is empty
#pragma once
#include "cuda/common/hopper.cuh"
#include "cuda/common/tensor_map.h"
#include "cuda/int8_matmul/product.cuh"

namespace nybble::cuda::int8 {

// Where a tile begins: rows of 128 bytes, swizzled, 8 of them in 1024 bytes. 32 bytes further along K: + 2.
__device__ inline uint64_t descriptor(const void* tile) {
  constexpr uint64_t kEightRows = uint64_t{1024 >> 4} << 32, kSwizzle128 = uint64_t{1} << 62, kUnused = 1 << 16;
  return (shared_address(tile) & 0x3ffff) >> 4 | kUnused | kEightRows | kSwizzle128;
}

// d (64 x kN) = a b, or d += a b. Warp w of the four, lane 4g + t: d[4j], d[4j + 1] are row 16w + g, columns 8j + 2t
// and 8j + 2t + 1; d[4j + 2], d[4j + 3] are row 16w + g + 8.
template <int kN>
__device__ void multiply_add(int (&d)[kN / 2], uint64_t a, uint64_t b, bool add);

#define NYBBLE_EIGHT(i)                                                                                       \
  "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), "+r"(d[i + 6]), \
      "+r"(d[i + 7])

template <>
__device__ inline void multiply_add<32>(int (&d)[16], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %18, 0;"
      "wgmma.mma_async.sync.aligned.m64n32k32.s32.s8.s8 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"
      ", %16, %17, p;}"
      : NYBBLE_EIGHT(0), NYBBLE_EIGHT(8)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

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

// A tile of y: 128 columns (rows of weight) by kM rows (rows of x), 128 bytes of K a step.
constexpr int kN = 128, kStep = 128;
constexpr int kConsumers = 256, kThreads = kConsumers + 32;

// Steps on their way: the producer fills places, the consumers empty them.
template <int kM, int kStages_>
struct Ring {
  static constexpr int kStages = kStages_;
  int8_t w[kStages][kN * kStep], x[kStages][kM * kStep];  // first: tiles begin at multiples of 1024 bytes
  Barrier full[kStages], empty[kStages];

  __device__ void init() {
    for (int s = 0; s < kStages; ++s) {
      full[s].init(1);
      empty[s].init(kConsumers / 32);
    }
    fence_barrier_init();
  }
};

// Which place comes next, and whether all of them have been used an even number of times.
template <int kStages>
struct Place {
  int stage = 0;
  unsigned phase = 0;
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// One thread of the producer: the two halves of a step.
template <typename Ring>
__device__ void fetch_weight(Ring& ring, int stage, const CUtensorMap& map, int k, int n) {
  ring.full[stage].arrive_expecting(sizeof(ring.w[0]) + sizeof(ring.x[0]));
  copy_box(ring.w[stage], &map, k, n, &ring.full[stage]);
}
template <typename Ring>
__device__ void fetch_x(Ring& ring, int stage, const CUtensorMap& map, int k, int m) {
  copy_box(ring.x[stage], &map, k, m, &ring.full[stage]);
}

// A consumer's 64 x kM of a tile, from `steps` steps: warpgroup `half` has the columns from 64 * half on.
template <int kM, int kStages>
__device__ void consume(Ring<kM, kStages>& ring, Place<kStages>& place, int steps, int half, int (&sum)[kM / 2]) {
  const auto release = [&](int stage) {
    if (threadIdx.x % 32 == 0) ring.empty[stage].arrive();
  };
  int before = 0;
  for (int step = 0; step < steps; ++step) {
    ring.full[place.stage].wait(place.phase);
    const uint64_t left = descriptor(ring.w[place.stage] + half * 64 * kStep);
    const uint64_t right = descriptor(ring.x[place.stage]);
    product_fence();
#pragma unroll
    for (int k = 0; k < kStep / 32; ++k) multiply_add<kM>(sum, left + 2 * k, right + 2 * k, step > 0 || k > 0);
    product_commit();
    product_wait<1>();
    if (step > 0) release(before);
    before = place.stage;
    place.advance();
  }
  product_wait<0>();
  release(before);
}

// Where this thread keeps sum[j]: row and column of the 64 columns by kM rows.
__device__ inline int row_of(int j) { return j / 4 * 8 + threadIdx.x % 4 * 2 + j % 2; }
__device__ inline int column_of(int j) { return threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4 + j % 4 / 2 * 8; }

// What a thread needs to make four columns of y from their sums.
struct Columns {
  int64_t n;  // the first
  float w_scale[4], bias[4];

  __device__ Columns(const Int8MatmulArgs& a, int64_t n_) : n(n_) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      w_scale[j] = n + j < a.N ? a.w_scale[n + j] : 0.0f;
      bias[j] = a.bias && n + j < a.N ? a.bias[n + j] : 0.0f;
    }
  }

  __device__ float4 result(const Int8MatmulArgs& a, int4 sums, float x_scale) const {
    const float y[4] = {scaled(sums.x, x_scale, 0), scaled(sums.y, x_scale, 1), scaled(sums.z, x_scale, 2),
                        scaled(sums.w, x_scale, 3)};
    if (!a.bias) return {y[0], y[1], y[2], y[3]};
    return {__fadd_rn(y[0], bias[0]), __fadd_rn(y[1], bias[1]), __fadd_rn(y[2], bias[2]), __fadd_rn(y[3], bias[3])};
  }

  // Row m of y, where N is a multiple of four.
  __device__ void put(const Int8MatmulArgs& a, int64_t m, float4 y) const {
    if (n >= a.N) return;
    const int64_t at = m * a.N + n;
    if (a.y_dtype == DType::f32) {
      *reinterpret_cast<float4*>(static_cast<float*>(a.y) + at) = y;
    } else if (a.y_dtype == DType::f16) {
      const __half2 pairs[2] = {__floats2half2_rn(y.x, y.y), __floats2half2_rn(y.z, y.w)};
      *reinterpret_cast<uint2*>(static_cast<__half*>(a.y) + at) = *reinterpret_cast<const uint2*>(pairs);
    } else {
      const __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(y.x, y.y), __floats2bfloat162_rn(y.z, y.w)};
      *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(a.y) + at) = *reinterpret_cast<const uint2*>(pairs);
    }
  }

  // The same for any N.
  __device__ void put_each(const Int8MatmulArgs& a, int64_t m, float4 y) const {
    if (n < a.N) int8::put(a, m, n, y.x);
    if (n + 1 < a.N) int8::put(a, m, n + 1, y.y);
    if (n + 2 < a.N) int8::put(a, m, n + 2, y.z);
    if (n + 3 < a.N) int8::put(a, m, n + 3, y.w);
  }

 private:
  __device__ float scaled(int sum, float x_scale, int j) const {
    return __fmul_rn(static_cast<float>(sum), __fmul_rn(x_scale, w_scale[j]));
  }
};

// Starts `kernel`(x's map, weight's map, a, more...) with clusters of `cluster` blocks.
template <int kM, typename Kernel, typename... More>
Status launch_wgmma(Kernel kernel, const Int8MatmulArgs& a, Stream stream, unsigned grid, unsigned cluster, int bytes,
                    More... more) {
  CUtensorMap x_map, w_map;
  const auto describe = [](CUtensorMap& map, const void* from, int64_t rows, int64_t K, int64_t stride, int box_rows) {
    return describe_tensor<2>(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, from, {K, rows}, {stride}, {kStep, box_rows});
  };
  Status made = describe(x_map, a.x, a.M, a.K, a.x_stride, kM);
  if (made.ok()) made = describe(w_map, a.weight, a.N, a.K, a.K, kN);
  if (made.ok()) made = status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  if (!made.ok()) return made;
  return launch_clusters(kernel, dim3(grid), static_cast<int>(cluster), dim3(kThreads), bytes, stream, true, x_map,
                         w_map, a, more...);
}

}  // namespace nybble::cuda::int8
