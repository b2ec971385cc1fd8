// y = gather(x, perm) @ W + bias + add for many rows, with mma.sync: sm_80 and later. W is rounded to x's type.
//
//   one tile: 128 columns x kRows rows; each of 4 warps has 32 columns (two blocks of A = W^T) and all rows (B = x^T)
//
//                k: 64 a stage, four stages on the way
//              +-------+-------+--          B: x in shared memory, rows of 128 bytes whose 16-byte pieces are
//   16 columns |warp 0 |       |               exchanged by piece ^= row % 8, read by ldmatrix
//   16         |warp 1 |       |            A: a lane's words of a tile, decoded, are the operand
//   ...        |  ...  |       |
//   16         |warp 3 |       |            Tiles and parts of tiles are shared out as wide.cuh says.
//              +-------+-------+--
//
#include "cuda/codec/scaled.cuh"
#include "cuda/common/async_copy.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/qmatmul/qmatmul.h"
#include "cuda/qmatmul/wide.cuh"
#include "cuda/qmatmul/wide.h"

namespace nybble::cuda {
namespace {
using namespace wide;

constexpr int kWarps = 4, kThreads = 32 * kWarps, kOwn = 2;  // kOwn: column blocks of a warp
constexpr int kColumnBlocks = kWarps * kOwn, kColumns = kColumnBlocks * kTileColumns;
constexpr int kBlocks = 2;  // k blocks of a stage
constexpr int kStages = 4;
// Blocks of threads to a multiprocessor, what registers allow.
constexpr int resident_of(int rows) { return rows > 64 ? 2 : rows > 32 ? 3 : 4; }

struct Shape {
  int stage_bytes, weight_at, scale_at, zero_at;  // of a stage: x, weights, scales [k block][column], zeros
};

// 16 bytes of which `bytes` are read and the rest is 0.
[[maybe_unused]] __device__ inline void copy_16(void* to, const void* from, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}

// A place in the k blocks: stage `i` of a segment.
template <int kStage>
struct Cursor {
  int segment = 0, i = 0;

  __device__ static int stages(const Segment& s) { return (s.count + kStage - 1) / kStage; }
  __device__ void advance(const Matrix& m, int by) {
    i += by;
    while (segment < m.segments && i >= stages(m.segment[segment])) i -= stages(m.segment[segment++]);
  }
};

template <typename T, int kRows>
__global__ void __launch_bounds__(kThreads, resident_of(kRows))
    wide_kernel(const __grid_constant__ Matrix m,                //
                const __grid_constant__ Shape shape,             //
                const T* x,                                      // [M, K], 16-byte aligned rows
                int64_t x_stride,                                //
                const Plan plan,                                 //
                const Output<T> o,                               //
                float4* pieces) {                                // sums of pieces of tiles, see add_pieces_kernel
#if __CUDA_ARCH__ >= 800 && !defined(__CUDA_ARCH_FEAT_SM90_ALL)  // what is made for Hopper has its own
  extern __shared__ __align__(128) uint8_t memory[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int NB = (m.N + kTileColumns - 1) / kTileColumns;
  Works works(plan, blockIdx.x);
  for (Work work; works.next(&work);) {
    const auto [row_tile, column_tile] = place_of(work.tile, plan.row_tiles, plan.column_tiles);
    const int64_t row = static_cast<int64_t>(row_tile) * kRows;
    const int rows = static_cast<int>(min(static_cast<int64_t>(kRows), o.M - row));
    const int first_block = column_tile * kColumnBlocks, count = work.end - work.begin;
    Cursor<kBlocks> loading;
    loading.advance(m, work.begin);
    Cursor<kBlocks> here = loading;
    const int piece = threadIdx.x % 8, own_row = threadIdx.x / 8;  // of x, that this thread copies
    const T* own_x = x + (row + own_row) * x_stride + piece * 8;
    const uint8_t* own_weight[kOwn];  // of its warp's column blocks, from which the thread copies every 32nd 16 bytes
    int64_t own_group[kOwn];
#pragma unroll
    for (int b = 0; b < kOwn; ++b) {
      const int64_t nb = min(first_block + warp + kWarps * b, NB - 1);  // beyond the last it loads that one again
      own_weight[b] = m.weight + nb * m.column_bytes + 16 * lane;
      own_group[b] = nb * m.G;
    }

    const auto load_stage = [&](int slot) {
      const Segment& s = m.segment[loading.segment];
      const int kb = loading.i * kBlocks, blocks = min(kBlocks, s.count - kb), k = (s.first + kb) * kTileRows;
      uint8_t* stage = memory + slot * shape.stage_bytes;
      const int bytes = max(0, min(16, 2 * (m.K - k - piece * 8)));
#pragma unroll
      for (int r = 0; r < kRows; r += kThreads / 8) {
        const bool inside = own_row + r < rows && bytes > 0;
        copy_16(stage + (own_row + r) * 128 + (piece ^ own_row % 8) * 16, inside ? own_x + r * x_stride + k : x,
                inside ? bytes : 0);
      }
      const int64_t at = 64ll * (s.offset + kb * s.bits);
      const int half = lane / kBlocks, i = lane % kBlocks;  // half: of a scale or quarter of a zero
      const int group = s.group + s.group_of(kb + i);
#pragma unroll
      for (int b = 0; b < kOwn; ++b) {
        const int block = warp + kWarps * b;
        uint8_t* to = stage + shape.weight_at + block * kBlocks * 64 * s.bits + 16 * lane;
#pragma unroll
        for (int c = 0; c < kBlocks * 4 * 8; c += 32)
          if (c + lane < blocks * 4 * s.bits) copy_16(to + 16 * c, own_weight[b] + at + 16 * c);
        if (i < blocks && half < (m.zeros != nullptr ? 4 : 2)) {
          const int64_t from = (own_group[b] + group) * kTileColumns;
          const int number = (i * kColumnBlocks + block) * kTileColumns;
          if (half < 2) copy_16(stage + shape.scale_at + 2 * number + 16 * half, m.scales + from + 8 * half);
          if (m.zeros != nullptr) copy_16(stage + shape.zero_at + 4 * number + 16 * half, m.zeros + from + 4 * half);
        }
      }
      loading.advance(m, 1);
    };

    float sums[kOwn][kRows / 2] = {};
    for (int i = 0; i < kStages - 1; ++i) {
      if (i < count) load_stage(i);
      commit_copies();
    }
    for (int i = 0; i < count; ++i) {
      wait_for_copies<kStages - 2>();
      __syncthreads();
      if (i + kStages - 1 < count) load_stage((i + kStages - 1) % kStages);
      commit_copies();
      const Segment s = m.segment[here.segment];
      const int blocks = min(kBlocks, s.count - here.i * kBlocks);
      const uint8_t* stage = memory + i % kStages * shape.stage_bytes;
#pragma unroll
      for (int kb = 0; kb < kBlocks; ++kb) {
        if (kb >= blocks) break;
        uint32_t a[kOwn][8];
        with_bits(s.bits, [&](auto bits) {
          constexpr int kBits = decltype(bits)::value;
#pragma unroll
          for (int b = 0; b < kOwn; ++b) {
            const int block = warp + kWarps * b, at = (kb * kColumnBlocks + block) * kTileColumns;
            TileLane<kBits> words;
            words.load(stage + shape.weight_at + (block * kBlocks + kb) * 64 * kBits, lane);
            const auto* scales = reinterpret_cast<const __half*>(stage + shape.scale_at) + at;
            const auto* zeros = reinterpret_cast<const float*>(stage + shape.zero_at) + at;
            Numbers numbers;
            if (m.zeros != nullptr) {
              numbers.load<true>(scales, zeros);
              decode_scaled<T, kBits, true>(words, numbers, a[b]);
            } else {
              numbers.load<false>(scales, zeros);
              decode_scaled<T, kBits, false>(words, numbers, a[b]);
            }
          }
        });
#pragma unroll
        for (int j = 0; j < kRows / 8; ++j) {  // matrix q of ldmatrix: 8 rows of x, k 8 q ... 8 q + 7
          const int r = 8 * j + lane % 8, q = 4 * kb + lane / 8;
          uint32_t b[4];
          load_matrices<false>(b, shared_address(stage + r * 128 + (q ^ r % 8) * 16));
#pragma unroll
          for (int step = 0; step < 2; ++step)
#pragma unroll
            for (int c = 0; c < kOwn; ++c)
              multiply_add<T>(reinterpret_cast<float (&)[4]>(sums[c][4 * j]),
                              reinterpret_cast<const uint32_t (&)[4]>(a[c][4 * step]), b[2 * step], b[2 * step + 1]);
        }
      }
      here.advance(m, 1);
    }
    wait_for_copies<0>();
    __syncthreads();  // the stages are free for the next work

    const int64_t n = static_cast<int64_t>(column_tile) * kColumns + warp * kTileColumns;
    float4* to = pieces + static_cast<int64_t>(work.slot) * kOwn * (kRows / 8) * kThreads + threadIdx.x;
    store_sums<T, kOwn, kRows>(o, row, n, work.slot < 0, to, sums);
  }
#endif
}

// Rows of a tile: as few as hold M, at most 128, for which a thread has registers.
int rows_of(const QMatmulArgs& a) { return a.M <= 16 ? 16 : a.M <= 32 ? 32 : a.M <= 64 ? 64 : 128; }

Plan plan_of(const QMatmulArgs& a, const Matrix& m) {
  const int rows = rows_of(a);
  return make_plan((a.M + rows - 1) / rows, (a.N + kColumns - 1) / kColumns, stages_of(m, kBlocks), kBlocks * kTileRows,
                   gpu().processors * resident_of(rows), {512, 0});
}

template <typename T, int kRows>
Status launch_wide(const QMatmulArgs& a, const Matrix& m, Stream stream) {
  Shape shape{};
  shape.weight_at = kRows * 128;
  shape.scale_at = shape.weight_at + kColumnBlocks * kBlocks * 64 * widest_of(m);
  shape.zero_at = shape.scale_at + kColumnBlocks * kBlocks * 32;
  shape.stage_bytes = shape.zero_at + (m.zeros != nullptr ? kColumnBlocks * kBlocks * 64 : 0);
  const int shared = kStages * shape.stage_bytes;
  const auto kernel = wide_kernel<T, kRows>;
  if (const Status set = status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
      !set.ok())
    return set;
  const Plan plan = plan_of(a, m);
  const Output<T> output = output_of<T>(a);
  auto* pieces = static_cast<float4*>(a.scratch);
  const Status done = launch(kernel, dim3(plan.ctas), dim3(kThreads), shared, stream, false, m, shape,
                             static_cast<const T*>(a.x), a.x_stride, plan, output, pieces);
  return done.ok() ? add_pieces<T, kOwn, kRows>(plan, output, pieces, stream) : done;
}

template <typename T>
Status launch_for_rows(const QMatmulArgs& a, const Matrix& m, Stream stream) {
  switch (rows_of(a)) {
    case 16:
      return launch_wide<T, 16>(a, m, stream);
    case 32:
      return launch_wide<T, 32>(a, m, stream);
    case 64:
      return launch_wide<T, 64>(a, m, stream);
  }
  return launch_wide<T, 128>(a, m, stream);
}

}  // namespace

Status wide_sm80(const QMatmulArgs& a, const Matrix& m, Stream stream) {
  return a.x_dtype == DType::f16 ? launch_for_rows<__half>(a, m, stream) : launch_for_rows<__nv_bfloat16>(a, m, stream);
}

int64_t wide_sm80_scratch_bytes(const QMatmulArgs& a, const Matrix& m) {
  return piece_bytes(plan_of(a, m), static_cast<int64_t>(rows_of(a)) * kColumns);
}

}  // namespace nybble::cuda
