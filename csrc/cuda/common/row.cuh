// A row of D numbers shared out over a group of threads:
//
//   D numbers  [ t0 | t1 | ... | t(G-1) | t0 | t1 | ... ]   each thread kWidth numbers at a time, G threads a row
//
// G is known when the kernel is compiled where several rows share a block; else it is the block, as large as D asks
// for. HeldRow reads the row once and keeps it in registers. StreamedRow reads it again at each use: rows too long to
// keep, and rows that no wide access fits.
#pragma once
#include <type_traits>

#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/wide.cuh"

namespace nybble::cuda {

constexpr int kLongestHeld = 16384;

// Threads of a row, and which of them this one is.
template <typename Row>
__device__ inline int group_of() {
  return Row::kGroup > 0 ? Row::kGroup : static_cast<int>(blockDim.x);
}
template <typename Row>
__device__ inline int thread_of_row() {
  return static_cast<int>(threadIdx.x) % group_of<Row>();
}

// What both have in common: `each(body)` calls body(c, i, v) for this thread's numbers v = row[i .. i + kWidth), c
// counting them. kGroup 0: the block is the group.
template <typename T, int kGroup_, int kChunks_>
class HeldRow {
 public:
  using Number = T;
  static constexpr int kWidth = kWide<T>, kChunks = kChunks_, kNumbers = kWidth * kChunks;  // of a thread
  static constexpr int kGroup = kGroup_;                                                    // threads a row
  static constexpr int kThreads = kGroup > 0 ? 128 : kLongestHeld / kNumbers;               // threads a block, at most
  static constexpr bool kHeld = true;

  static int threads(int64_t D) {
    int n = kGroup > 0 ? kThreads : 64;
    while (kGroup == 0 && n * kNumbers < D) n *= 2;
    return n;
  }

  __device__ HeldRow(const T* row, int64_t D) : D_(static_cast<int>(D)) {
    places(D, [&](int c, int64_t i) { held_[c] = read<T, kWidth>(row + i); });
  }

  template <typename Body>
  __device__ static void places(int64_t D, Body body) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int i = (c * group_of<HeldRow>() + thread_of_row<HeldRow>()) * kWidth;
      if (i < static_cast<int>(D)) body(c, i);
    }
  }

  template <typename Body>
  __device__ void each(Body body) const {
    places(D_, [&](int c, int64_t i) {
      float v[kWidth];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) v[j] = to_float(held_[c].v[j]);
      body(c, i, v);
    });
  }

 private:
  int D_;
  Pack<T, kWidth> held_[kChunks];
};

template <typename T, int kWidth_>
class StreamedRow {
 public:
  using Number = T;
  static constexpr int kGroup = 0, kThreads = 256, kWidth = kWidth_, kChunks = 1;
  static constexpr bool kHeld = false;

  static int threads(int64_t) { return kThreads; }

  __device__ StreamedRow(const T* row, int64_t D) : row_(row), D_(D) {}

  template <typename Body>
  __device__ void each(Body body) const {
    for (int64_t i = threadIdx.x * kWidth; i < D_; i += kThreads * kWidth) {
      float v[kWidth];
      load(row_ + i, v);
      body(0, i, v);
    }
  }

 private:
  const T* row_;
  int64_t D_;
};

// This thread's row, of the grid that launch_rows makes.
template <typename Row>
__device__ inline int64_t row_of_thread() {
  if constexpr (Row::kGroup == 0) return blockIdx.x;
  return static_cast<int64_t>(blockIdx.x) * (Row::kThreads / Row::kGroup) + threadIdx.x / Row::kGroup;
}

// Over the threads of a row, all of which must call it.
template <typename Op, int kGroup>
__device__ inline float group_reduce(float v) {
  if constexpr (kGroup == 0) {
    return block_reduce<Op>(v);
  } else {
    const unsigned lanes = (0xffffffffu >> (32 - kGroup)) << (threadIdx.x % 32 / kGroup * kGroup);
#pragma unroll
    for (int offset = kGroup / 2; offset > 0; offset /= 2) v = Op::join(v, __shfl_xor_sync(lanes, v, offset));
    return v;
  }
}

// A group of threads for each of R rows of D numbers, launched early.
template <typename Row, typename Kernel, typename Arguments>
Status launch_rows(Kernel kernel, int64_t R, int64_t D, Stream stream, const Arguments& arguments) {
  constexpr int kRows = Row::kGroup == 0 ? 1 : Row::kThreads / Row::kGroup;
  const int64_t blocks = (R + kRows - 1) / kRows;
  if (blocks > 0x7fffffff) return {"more rows than a grid has blocks"};
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(Row::threads(D)), 0, stream, gpu().sm >= 90,
                arguments);
}

template <typename Row>
struct RowTag {
  using type = Row;
};

// Calls body(RowTag<Row>{}) with the form that suits D; `wide`: every access may take kWide<T> numbers. kNumbers: of a
// thread, in rows of more than 1024. One form for one row and for many, so that a row's sums do not depend on its
// batch.
template <typename T, int kNumbers, typename Body>
Status with_row(int64_t D, bool wide, Body body) {
  if (!wide) return body(RowTag<StreamedRow<T, 1>>{});
  if (D <= 16 * kWide<T>) return body(RowTag<HeldRow<T, 16, 1>>{});  // a head: two rows a warp
  if (D <= 32 * 4 * kWide<T>) return body(RowTag<HeldRow<T, 32, 4>>{});
  if (D <= kLongestHeld) return body(RowTag<HeldRow<T, 0, kNumbers / kWide<T>>>{});
  return body(RowTag<StreamedRow<T, kWide<T>>>{});
}

}  // namespace nybble::cuda
