// A row of D numbers shared out over a group of threads:
//
//   D numbers  [ t0 | t1 | ... | t(G-1) | t0 | t1 | ... ]   each thread kWidth numbers at a time, G threads a row
//
// HeldRow reads the row once and keeps it in registers. StreamedRow reads it again at each use: rows too long to keep,
// and rows that no wide access fits.
#pragma once
#include <type_traits>

#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/wide.cuh"

namespace nybble::cuda {

// What both have in common: `each(body)` calls body(c, i, v) for this thread's numbers v = row[i .. i + kWidth), c
// counting them.
template <typename T, int kGroup_, int kChunks_>
class HeldRow {
 public:
  using Number = T;
  static constexpr int kGroup = kGroup_;                       // threads a row
  static constexpr int kThreads = kGroup > 32 ? kGroup : 128;  // threads a block
  static constexpr int kWidth = kWide<T>, kChunks = kChunks_;
  static constexpr int kHolds = kGroup * kWidth * kChunks;
  static constexpr bool kHeld = true;

  __device__ HeldRow(const T* row, int64_t D) : D_(static_cast<int>(D)) {
    places(D, [&](int c, int64_t i) { held_[c] = read<T, kWidth>(row + i); });
  }

  template <typename Body>
  __device__ static void places(int64_t D, Body body) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int i = (c * kGroup + static_cast<int>(threadIdx.x) % kGroup) * kWidth;
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
  static constexpr int kGroup = 256, kThreads = 256, kWidth = kWidth_, kChunks = 1;
  static constexpr bool kHeld = false;

  __device__ StreamedRow(const T* row, int64_t D) : row_(row), D_(D) {}

  template <typename Body>
  __device__ void each(Body body) const {
    for (int64_t i = threadIdx.x * kWidth; i < D_; i += kGroup * kWidth) {
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
  return static_cast<int64_t>(blockIdx.x) * (Row::kThreads / Row::kGroup) + threadIdx.x / Row::kGroup;
}

// Over the kGroup threads of a row, all of which must call it.
template <typename Op, int kGroup>
__device__ inline float group_reduce(float v) {
  if constexpr (kGroup > 32) {
    return block_reduce<Op, kGroup>(v);
  } else {
    const unsigned lanes = (0xffffffffu >> (32 - kGroup)) << (threadIdx.x % 32 / kGroup * kGroup);
#pragma unroll
    for (int offset = kGroup / 2; offset > 0; offset /= 2) v = Op::join(v, __shfl_xor_sync(lanes, v, offset));
    return v;
  }
}

// A group of threads for each of R rows, launched early.
template <typename Row, typename... Parameters, typename... Arguments>
Status launch_rows(void (*kernel)(Parameters...), int64_t R, Stream stream, Arguments... arguments) {
  constexpr int kRows = Row::kThreads / Row::kGroup;
  const int64_t blocks = (R + kRows - 1) / kRows;
  if (blocks > 0x7fffffff) return {"more rows than a grid has blocks"};
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(Row::kThreads), 0, stream, gpu().sm >= 90,
                arguments...);
}

template <typename Row>
struct RowTag {
  using type = Row;
};

constexpr int kNormNumbers = 16;  // of a thread of a norm, for with_row(): qmatmul/few.cu adds up squares the same way

// Calls body(RowTag<Row>{}) with the form that suits D; `wide`: every access may take kWide<T> numbers. kNumbers: of a
// thread, in rows of more than 1024. One form for one row and for many, so that a row's sums do not depend on its
// batch.
template <typename T, int kNumbers, typename Body>
Status with_row(int64_t D, bool wide, Body body) {
  constexpr int kChunks = kNumbers / kWide<T>;
  if (!wide) return body(RowTag<StreamedRow<T, 1>>{});
  if (D <= HeldRow<T, 16, 1>::kHolds) return body(RowTag<HeldRow<T, 16, 1>>{});  // a head: two rows a warp
  if (D <= HeldRow<T, 32, 4>::kHolds) return body(RowTag<HeldRow<T, 32, 4>>{});
  if (D <= 2048) return body(RowTag<HeldRow<T, 2048 / kNumbers, kChunks>>{});
  if (D <= 4096) return body(RowTag<HeldRow<T, 4096 / kNumbers, kChunks>>{});
  if (D <= 8192) return body(RowTag<HeldRow<T, 8192 / kNumbers, kChunks>>{});
  if constexpr (sizeof(T) == 2)
    if (D <= 16384) return body(RowTag<HeldRow<T, 256, 8>>{});
  return body(RowTag<StreamedRow<T, kWide<T>>>{});
}

}  // namespace nybble::cuda
