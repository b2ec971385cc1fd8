// Several numbers in one access: V of them, converted to float, in pieces of 16 bytes where there are that many.
#pragma once
#include "cuda/common/number.cuh"

namespace nybble::cuda {

// V numbers as memory holds them. Copying one is one access of up to 16 bytes for each 16 bytes of it.
template <typename T, int V>
struct alignas(V * sizeof(T) < 16 ? V * sizeof(T) : 16) Pack {
  T v[V];
};

// As many numbers as 16 bytes hold: what a thread takes at a time.
template <typename T>
constexpr int kWide = 16 / sizeof(T);

template <typename T, int V>
__device__ inline void load(const T* p, float (&to)[V]) {
  const auto pack = *reinterpret_cast<const Pack<T, V>*>(p);
#pragma unroll
  for (int j = 0; j < V; ++j) to[j] = to_float(pack.v[j]);
}

// For what is read once: passes by the first cache, which then keeps what is read again.
template <typename T, int V>
__device__ inline Pack<T, V> load_once(const T* p) {
  if constexpr (sizeof(Pack<T, V>) == 16) {
    union {
      uint4 words;
      Pack<T, V> pack;
    } both;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(both.words.x), "=r"(both.words.y), "=r"(both.words.z), "=r"(both.words.w)
                 : "l"(p));
    return both.pack;
  } else {
    return *reinterpret_cast<const Pack<T, V>*>(p);
  }
}

// Asks for the line around p to be brought into the second cache.
__device__ inline void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

template <typename T, int V>
__device__ inline void store(T* p, const float (&from)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int j = 0; j < V; ++j) pack.v[j] = from_float<T>(from[j]);
  *reinterpret_cast<Pack<T, V>*>(p) = pack;
}

// The same where the type is known only at run time. All threads take one branch, which costs a kernel that waits for
// memory nothing and saves a build for each mixture of types.
template <int V>
__device__ inline void load(const void* p, DType type, int64_t at, float (&to)[V]) {
  if (type == DType::f32)
    load(static_cast<const float*>(p) + at, to);
  else if (type == DType::f16)
    load(static_cast<const __half*>(p) + at, to);
  else
    load(static_cast<const __nv_bfloat16*>(p) + at, to);
}

template <int V>
__device__ inline void store(void* p, DType type, int64_t at, const float (&from)[V]) {
  if (type == DType::f32)
    store(static_cast<float*>(p) + at, from);
  else if (type == DType::f16)
    store(static_cast<__half*>(p) + at, from);
  else
    store(static_cast<__nv_bfloat16*>(p) + at, from);
}

inline int64_t size_of(DType type) { return type == DType::f32 ? 4 : 2; }

// Whether rows `stride` elements apart from p on may be read V numbers at a time.
inline bool wide(const void* p, DType type, int64_t stride, int V) {
  const int64_t bytes = V * size_of(type), unit = bytes < 16 ? bytes : 16;
  return reinterpret_cast<uintptr_t>(p) % unit == 0 && stride * size_of(type) % unit == 0;
}

}  // namespace nybble::cuda
