// out[m, p] = x[m, perm[p]], 0 where perm[p] is none of x's columns: x in the order of packed rows, each row at a
// multiple of 64 bytes, so that the copies of the product's kernels can take it. Numbers of 2 bytes, whatever they
// mean.
//
//   many rows: a block takes two, staged in shared memory as pairs, so that one read serves both
//   some rows: a block takes 2048 places of one row and reads x where it lies
//   few rows:  the same with 256 places
//
// The product of few rows is soon done: so these blocks are small enough to stand beside those of the product before,
// know their places when that is over, and let the product begin to read weights meanwhile.
#include "cuda/common/launch.cuh"
#include "cuda/qmatmul/gather.h"

namespace nybble::cuda {
namespace {

constexpr int kThreads = 256, kFewThreads = 32, kFewRows = 8;
constexpr int kRun = 8;  // a thread writes 16 bytes at once

struct Gather {
  const uint16_t* x;    // [M, K], rows x_stride elements apart
  int64_t x_stride;     //
  const int32_t* perm;  // [places]; nullptr: identity
  uint16_t* out;        // [M, places]
  int64_t M;            //
  int32_t K, places;    // places is a multiple of 32
};

__device__ inline void load_perm(const Gather& g, int place, int32_t (&k)[kRun]) {
#pragma unroll
  for (int i = 0; i < kRun; i += 4) {
    const int4 four = g.perm == nullptr ? make_int4(place + i, place + i + 1, place + i + 2, place + i + 3)
                                        : *reinterpret_cast<const int4*>(g.perm + place + i);
    k[i] = four.x, k[i + 1] = four.y, k[i + 2] = four.z, k[i + 3] = four.w;
  }
}

__device__ inline bool inside(const Gather& g, int32_t k) { return k >= 0 && k < g.K; }

__device__ __host__ inline int chunks_of(int places, int threads) { return (places / kRun + threads - 1) / threads; }

__global__ void __launch_bounds__(kThreads) gather_few(const Gather g) {
  const int chunks = chunks_of(g.places, blockDim.x);
  const int64_t row = blockIdx.x / chunks;
  const int place = (blockIdx.x % chunks * blockDim.x + threadIdx.x) * kRun;
  let_next_begin();  // before the wait: the product is as early as if it had not to wait for this, but does wait
  int32_t k[kRun];
  if (place < g.places) load_perm(g, place, k);  // which no kernel writes
  wait_for_previous();
  if (place >= g.places) return;
  alignas(16) uint16_t values[kRun];
#pragma unroll
  for (int i = 0; i < kRun; ++i) values[i] = inside(g, k[i]) ? g.x[row * g.x_stride + k[i]] : uint16_t{0};
  *reinterpret_cast<uint4*>(g.out + row * g.places + place) = *reinterpret_cast<const uint4*>(values);
}

__global__ void __launch_bounds__(kThreads) gather_many(const Gather g) {
  extern __shared__ uint32_t pairs[];  // [K]: both rows' number
  const int64_t row = 2ll * blockIdx.x;
  const bool two = row + 1 < g.M;
  const uint16_t *first = g.x + row * g.x_stride, *second = two ? first + g.x_stride : first;
  wait_for_previous();
  let_next_begin();
  for (int k = threadIdx.x; k < g.K; k += kThreads) pairs[k] = first[k] | static_cast<uint32_t>(second[k]) << 16;
  __syncthreads();
  for (int place = threadIdx.x * kRun; place < g.places; place += kThreads * kRun) {
    int32_t k[kRun];
    load_perm(g, place, k);
    alignas(16) uint16_t values[2][kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const uint32_t both = inside(g, k[i]) ? pairs[k[i]] : 0;
      values[0][i] = static_cast<uint16_t>(both), values[1][i] = static_cast<uint16_t>(both >> 16);
    }
    uint16_t* to = g.out + row * g.places + place;
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(values[0]);
    if (two) *reinterpret_cast<uint4*>(to + g.places) = *reinterpret_cast<const uint4*>(values[1]);
  }
}

}  // namespace

Status gather_x(const QMatmulArgs& a, void* out, Stream stream) {
  const Gather g{static_cast<const uint16_t*>(a.x),     a.x_stride, a.perm,
                 static_cast<uint16_t*>(out),           a.M,        static_cast<int32_t>(a.K),
                 static_cast<int32_t>(a.KB) * kPackRows};
  const bool early = gpu().sm >= 90;
  const int64_t staged = 4 * a.K;
  if (a.M >= 512 && staged <= gpu().shared_memory) {
    const auto size = static_cast<int>(staged);
    if (const Status set = status(cudaFuncSetAttribute(gather_many, cudaFuncAttributeMaxDynamicSharedMemorySize, size));
        !set.ok())
      return set;
    return launch(gather_many, dim3(static_cast<unsigned>((a.M + 1) / 2)), dim3(kThreads), size, stream, early, g);
  }
  const int threads = a.M <= kFewRows ? kFewThreads : kThreads;
  const int64_t blocks = a.M * chunks_of(g.places, threads);
  return launch(gather_few, dim3(static_cast<unsigned>(blocks)), dim3(threads), 0, stream, early, g);
}

}  // namespace nybble::cuda
