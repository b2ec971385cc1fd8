// Several numbers in one access: V of them, converted to float, in pieces of 16 bytes where there are that many.
#pragma once
#include "cuda/common/number.cuh"
#include "cuda/common/older.cuh"

namespace nybble::cuda {

// V numbers as memory holds them.
template <typename T, int V>
struct alignas(V * sizeof(T) < 16 ? V * sizeof(T) : 16) Pack {
  T v[V];
};

// The integer of so many bytes, up to 16, that one access moves.
template <int kBytes>
struct WordOf {
  using type = uint4;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<4> {
  using type = unsigned;
};
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<1> {
  using type = unsigned char;
};

// To global memory. In assembly: a plain store of a word put together from numbers becomes a store for each of them now
// and then. The compiler takes it for no access to memory and may move loads across it: a kernel doesn't read what it
// has put.
__device__ inline void put(uint4* p, uint4 v) {
#ifdef __HIP__
  *p = v;
#else
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w));
#endif
}
__device__ inline void put(uint2* p, uint2 v) {
#ifdef __HIP__
  *p = v;
#else
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(v.x), "r"(v.y));
#endif
}
template <typename Word>
__device__ inline void put(Word* p, Word v) {
  *p = v;
}

// A pack as the words that memory accesses move.
template <typename P>
union Words {
  using Word = typename WordOf<(sizeof(P) < 16 ? sizeof(P) : 16)>::type;
  static constexpr int kCount = sizeof(P) / sizeof(Word);
  P pack;
  Word word[kCount];
  __device__ Words() {}
  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) word[i] = {};
  }
};

template <typename T, int V>
__device__ inline Pack<T, V> read(const T* p) {
  Words<Pack<T, V>> all;
#pragma unroll
  for (int i = 0; i < all.kCount; ++i) all.word[i] = reinterpret_cast<const typename decltype(all)::Word*>(p)[i];
  return all.pack;
}

template <typename T, int V>
__device__ inline void write(T* p, const Pack<T, V>& pack) {
  Words<Pack<T, V>> all;
  all.pack = pack;
#pragma unroll
  for (int i = 0; i < all.kCount; ++i) put(reinterpret_cast<typename decltype(all)::Word*>(p) + i, all.word[i]);
}

// As many numbers as 16 bytes hold: what a thread takes at a time.
template <typename T>
constexpr int kWide = 16 / sizeof(T);

template <typename T, int V>
__device__ inline void load(const T* p, float (&to)[V]) {
  const Pack<T, V> pack = read<T, V>(p);
#pragma unroll
  for (int j = 0; j < V; ++j) to[j] = to_float(pack.v[j]);
}

// For what is read once: passes by the first cache, which then keeps what is read again.
template <typename T, int V>
__device__ inline Pack<T, V> load_once(const T* p) {
#ifdef __HIP__
  return read<T, V>(p);
#else
  if constexpr (sizeof(Pack<T, V>) == 16) {
    Words<Pack<T, V>> all;
    uint4& w = all.word[0];
    asm volatile("ld.global" NYBBLE_NO_ALLOCATE ".v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
                 : "l"(p));
    return all.pack;
  } else {
    return read<T, V>(p);
  }
#endif
}

// Asks for the line around p to be brought into the second cache.
__device__ inline void prefetch(const void* p) {
#ifdef __HIP__
  __builtin_prefetch(p);
#else
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#endif
}

template <typename T, int V>
__device__ inline void store(T* p, const float (&from)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int j = 0; j < V; ++j) pack.v[j] = from_float<T>(from[j]);
  write(p, pack);
}

// Calls body(TypeTag<T>{}) on the device. All threads take one branch, which costs a kernel that waits for memory
// nothing and saves a build for each mixture of types.
template <typename Body>
__device__ inline void on_type(DType type, Body body) {
  if (type == DType::f32)
    body(TypeTag<float>{});
  else if (type == DType::f16)
    body(TypeTag<__half>{});
  else
    body(TypeTag<__nv_bfloat16>{});
}

template <int V>
__device__ inline void load(const void* p, DType type, int64_t at, float (&to)[V]) {
  on_type(type, [&](auto tag) { load(static_cast<const typename decltype(tag)::type*>(p) + at, to); });
}

template <int V>
__device__ inline void store(void* p, DType type, int64_t at, const float (&from)[V]) {
  on_type(type, [&](auto tag) { store(static_cast<typename decltype(tag)::type*>(p) + at, from); });
}

inline int64_t size_of(DType type) { return type == DType::f32 ? 4 : 2; }

// Whether rows `stride` elements apart from p on may be read V numbers at a time.
inline bool wide(const void* p, DType type, int64_t stride, int V) {
  const int64_t bytes = V * size_of(type), unit = bytes < 16 ? bytes : 16;
  return reinterpret_cast<uintptr_t>(p) % unit == 0 && stride * size_of(type) % unit == 0;
}

}  // namespace nybble::cuda
