// y = f(x) @ W + bias + add for few rows of x: as fast as the weights can be read. The kernel; what it is launched with
// is chosen in skinny.cu.
//
// A block, or a cluster of `splits` blocks that share out k, has some column blocks for itself and takes them in turn,
// in pieces of some k blocks. Memory is read front to back: all k of a column block lie together.
//
//                     piece                     piece
//      +------+------+-----+------+------+------+-----+------+
//      |  w0  |  w1  | ... |  w7  |  w0  |  w1  | ... |  w7  |   column block
//      +------+------+-----+------+------+------+-----+------+
//      |  w0  |  w1  | ... |                                     the next
//
//   warp 0 ... 7   wait for a piece in shared memory, multiply their part of it (skinny_tiles.cuh), and at the end of a
//                  column block leave their sums
//   warp 8         copies tiles, scales and zeros into a ring of stages, a piece each
//   warp 9         adds up what the warps left, in order, and writes y; or, where there are splits, keeps it until the
//                  blocks of the cluster add up theirs, in order, at the end
//
// Weights are copied before the kernel before this one is over; x is waited for. A row's sums depend on K, N and the
// plan alone, not on the other rows.
#pragma once
#include <type_traits>

#include "cuda/common/barrier.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/qmatmul/cluster.cuh"
#include "cuda/qmatmul/matrix.h"
#include "cuda/qmatmul/skinny_tiles.cuh"

namespace nybble::cuda {

constexpr int kSkinnyWarps = 8;  // that multiply
constexpr int kSkinnyThreads = 32 * (kSkinnyWarps + 2);
constexpr int kShareBuffers = 2;

// How the work is cut up and where things lie in shared memory; all of it uniform over the grid.
struct SkinnyPlan {
  int32_t splits;   // blocks of a cluster
  int32_t columns;  // column blocks of a cluster, and how many clusters have one more
  int32_t columns_more;
  int32_t units;  // runs of 4 k blocks of a block, and how many of the splits have one more
  int32_t units_more;
  int32_t piece;   // tiles of a stage, at most
  int32_t stages;  // of the ring
  // Bytes: of the barriers; of a stage's tiles, of its scales, of it all; of x; of the sums of x.
  int32_t barrier_bytes, weight_bytes, scale_bytes, stage_bytes, x_bytes, sum_bytes;
};

// What is done to x before the product.
enum class Before : int32_t { nothing, norm, silu, gelu_tanh };

struct SkinnyArgs {
  Matrix m;
  SkinnyPlan plan;
  DType dtype;    // f16 or bf16, of all but norm
  const void* x;  // [M, K], with a gate [M, 2 K]
  int64_t x_stride;
  Before before;
  bool vectors;      // x (and norm) may be read 8 numbers at a time
  const void* norm;  // [K] or nullptr
  DType norm_dtype;
  float eps;
  int32_t norm_threads;  // that the op of its own adds up the squares with: the same sums, the same bits
  const void *bias, *add;
  int64_t add_stride;
  void* y;    // [M, N]
  int32_t M;  // up to 8 * kRT
};

template <int kBits, int kRT>  // kBits 0: any
struct SkinnyBlock {
  static constexpr int kWarps = kSkinnyWarps;
  const SkinnyArgs& a;
  const Matrix& m;
  const SkinnyPlan& plan;
  uint8_t* shared;
  int lane, warp, rank;
  int column_first, column_last;  // column blocks of the cluster
  int k_first, k_last;            // k blocks of the block
  int segment_first;              // of k_first

  __device__ SkinnyBlock(const SkinnyArgs& args, uint8_t* memory)
      : a(args), m(args.m), plan(args.plan), shared(memory), lane(threadIdx.x % 32), warp(threadIdx.x / 32) {
    rank = plan.splits > 1 ? cluster_rank() : 0;
    const int cluster = plan.splits > 1 ? blockIdx.x / plan.splits : blockIdx.x;
    column_first = cluster * plan.columns + min(cluster, plan.columns_more);
    column_last = column_first + plan.columns + (cluster < plan.columns_more ? 1 : 0);
    const auto share = [&](int i) { return min(m.KB, 4 * (i * plan.units + min(i, plan.units_more))); };
    k_first = share(rank);
    k_last = share(rank + 1);
    segment_first = 0;
    if constexpr (kBits == 0) {
      while (segment_first + 1 < m.segments && m.segment[segment_first + 1].first <= k_first) ++segment_first;
    }
  }

  // Shared memory: barriers, the ring, x, its sums, the warps' sums, the splits' sums.
  __device__ Barrier* full(int stage) const { return reinterpret_cast<Barrier*>(shared) + stage; }
  __device__ Barrier* empty(int stage) const { return full(stage + plan.stages); }
  __device__ Barrier* share_full(int i) const { return full(2 * plan.stages + i); }
  __device__ Barrier* share_empty(int i) const { return share_full(i) + kShareBuffers; }
  __device__ int stage_at(int stage) const { return plan.barrier_bytes + stage * plan.stage_bytes; }
  __device__ int x_at() const { return stage_at(plan.stages); }
  __device__ int sums_at() const { return x_at() + plan.x_bytes; }
  // What a row's sums are multiplied by at the end: an even number of rows.
  __device__ float* power_at(int row) const {
    return reinterpret_cast<float*>(shared + sums_at() + plan.sum_bytes) + row;
  }
  __device__ float4* share(int buffer, int w, int r) const {
    return reinterpret_cast<float4*>(power_at(8 * kRT)) + ((buffer * kWarps + w) * kRT + r) * 32 + lane;
  }
  __device__ float4* part(int i) const { return share(kShareBuffers, 0, 0) + i * 32; }

  __device__ static void sync_multipliers() { asm volatile("bar.sync 1, %0;" ::"n"(32 * kWarps) : "memory"); }

  // Calls body(column block, k block, tiles, segment, stage, the parity of its round) for each piece in turn.
  template <typename Body>
  __device__ void each_piece(Body body) const {
    int stage = 0, parity = 0;
#pragma unroll 1
    for (int cb = column_first; cb < column_last; ++cb) {
      int at = segment_first;
#pragma unroll 1
      for (int kb = k_first; kb < k_last;) {
        const Segment& s = m.segment[kBits == 0 ? at : 0];
        const int tiles = min(min(s.first + s.count, k_last) - kb, plan.piece);
        body(cb, kb, tiles, s, stage, parity);
        kb += tiles;
        if (kBits == 0 && kb == s.first + s.count) ++at;
        if (++stage == plan.stages) stage = 0, parity ^= 1;
      }
    }
  }

  // ---- the warp that copies

  __device__ static constexpr bool has_copy_engine() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    return true;
#else
    return false;
#endif
  }

  __device__ void make_barriers() {
    for (int i = lane; i < plan.stages; i += 32) {
      full(i)->init(has_copy_engine() ? 1 : 32);
      empty(i)->init(kWarps);
    }
    if (lane < kShareBuffers) {
      share_full(lane)->init(kWarps);
      share_empty(lane)->init(1);
    }
    fence_barrier_init();
    __syncwarp();
  }

  __device__ void copy(int to, const void* from, int bytes, Barrier* there) {
    const unsigned start = shared_address(shared) + to;
    if constexpr (has_copy_engine()) {
      copy_bytes_once(start, from, bytes, there);
    } else {
      for (int at = 16 * lane; at < bytes; at += 16 * 32)
        copy_async<16>(start + at, static_cast<const uint8_t*>(from) + at, true);
    }
  }

  __device__ void copy_weights() {
    make_barriers();
    bool told = false;
    each_piece([&](int cb, int kb, int tiles, const Segment& s, int stage, int parity) {
      if (stage == 0 && parity == 1 && !told) {  // all that fits at once is on its way, and the barriers may be used
        __syncwarp();
        __syncthreads();
        told = true;
      }
      if (has_copy_engine() && lane != 0) return;
      empty(stage)->wait(parity ^ 1);
      const int bits = kBits == 0 ? s.bits : kBits, at = kb - s.first;
      const int first = s.group_of(at), groups = s.group_of(at + tiles - 1) - first + 1;
      const int64_t group = (static_cast<int64_t>(cb) * m.G + s.group + first) * kTileColumns;
      const int to = stage_at(stage), tile_bytes = tiles * bits * 64, scale_bytes = groups * 2 * kTileColumns;
      Barrier* there = full(stage);
      if constexpr (has_copy_engine()) there->arrive_expecting(tile_bytes + (m.zeros == nullptr ? 1 : 3) * scale_bytes);
      copy(to, m.weight + cb * m.column_bytes + 64ll * (s.offset + at * bits), tile_bytes, there);
      copy(to + plan.weight_bytes, m.scales + group, scale_bytes, there);
      if (m.zeros != nullptr) copy(to + plan.weight_bytes + plan.scale_bytes, m.zeros + group, 2 * scale_bytes, there);
      if constexpr (!has_copy_engine()) there->arrive_after_copies();
    });
    __syncwarp();
    if (!told) __syncthreads();
  }

  // ---- the warps that multiply

  template <typename T>
  __device__ const T* x_row(int row) const {
    return static_cast<const T*>(a.x) + row * a.x_stride;
  }

  // Numbers to share while x is staged, where the warps' sums will be: 33 of each row, the last its norm's factor.
  __device__ float* scratch(int row) const { return reinterpret_cast<float*>(share(0, 0, 0) - lane) + 33 * row; }

  // 1 / sqrt(mean(x^2) + eps) of every row, summed up as cuda/norm.cu does: the normed x has the same bits.
  template <typename T>
  __device__ void find_factors() {
    const int virtual_warps = a.norm_threads / 32;
    for (int i = warp; i < a.M * virtual_warps; i += kWarps) {
      const int row = i / virtual_warps, w = i % virtual_warps;
      float squares = 0;
      for (int k = (32 * w + lane) * 8; k < m.K; k += 8 * a.norm_threads) {
        const uint4 piece = *reinterpret_cast<const uint4*>(x_row<T>(row) + k);
        const T* v = reinterpret_cast<const T*>(&piece);
#pragma unroll
        for (int j = 0; j < 8; ++j) squares += to_float(v[j]) * to_float(v[j]);
      }
      squares = warp_reduce<Add>(squares);
      if (lane == 0) scratch(row)[w] = squares;
    }
    sync_multipliers();
    if (threadIdx.x < a.M) {
      float all = 0;
      for (int w = 0; w < virtual_warps; ++w) all += scratch(threadIdx.x)[w];
      scratch(threadIdx.x)[32] = rsqrtf(all / static_cast<float>(m.K) + a.eps);
    }
    sync_multipliers();
  }

  // Where 8 numbers of a row lie, and the 32 of a k block.
  __device__ uint4* x_piece(int row, int i) const {
    return reinterpret_cast<uint4*>(shared + x_at() + row * row_bytes()) + i;
  }

  // Which column of x a packed row is; negative or K and more: none.
  __device__ int column_of(int packed) const { return m.perm == nullptr ? packed : m.perm[packed]; }

  // Brings 8 numbers to their k block, still in their order and dtype.
  template <typename T>
  __device__ void fetch_piece(int row, int i) {
    const T* from = x_row<T>(row);
    const int k = (k_first * 4 + i) * 8;
    if (m.perm == nullptr && a.vectors && k + 8 <= m.K) {
      copy_async<16>(shared_address(x_piece(row, i)), from + k, true);
      return;
    }
    alignas(16) T v[8] = {};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int at = column_of(k + j);
      if (at >= 0 && at < m.K) v[j] = from[at];
    }
    *x_piece(row, i) = *reinterpret_cast<const uint4*>(v);
  }

  // Every number v of the row's k blocks, column k of x, becomes body(v, k).
  template <typename T, typename Body>
  __device__ void change_row(int row, int thread, int threads, Body body) {
#pragma unroll 1
    for (int i = thread; i < 4 * (k_last - k_first); i += threads) {
      uint4 piece = *x_piece(row, i);
      T* v = reinterpret_cast<T*>(&piece);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int k = column_of(k_first * kTileRows + 8 * i + j);
        if (k >= 0 && k < m.K) v[j] = body(to_float(v[j]), k);
      }
      *x_piece(row, i) = piece;
    }
  }

  // What the op of its own would have written, rounded to T.
  template <typename T>
  __device__ void prepare_row(int row, int thread, int threads) {
    if (a.before == Before::norm) {
      const float factor = scratch(row)[32];
      if (a.norm_dtype == DType::f32)
        change_row<T>(row, thread, threads,
                      [&](float v, int k) { return from_float<T>(v * factor * static_cast<const float*>(a.norm)[k]); });
      else
        change_row<T>(row, thread, threads, [&](float v, int k) {
          return from_float<T>(v * factor * to_float(static_cast<const T*>(a.norm)[k]));
        });
    } else {
      const T* up = x_row<T>(row) + m.K;
      const bool silu = a.before == Before::silu;
      change_row<T>(row, thread, threads, [&](float v, int k) {
        const float u = silu ? v : 2.0f * (0.7978845608028654f * (v + 0.044715f * v * v * v));
        return from_float<T>(v / (1.0f + expf(-u)) * to_float(up[k]));
      });
    }
  }

  // The numbers of a k block as they are multiplied: times `power`, as half, in the order of the operand B. Also their
  // sum.
  template <typename T>
  __device__ float turn_block(int row, int kb, float power) {
    uint4* place = x_piece(row, 4 * kb);
    uint4 in[4], out[4];
#pragma unroll
    for (int u = 0; u < 4; ++u) in[u] = place[u];
    const T* v = reinterpret_cast<const T*>(in);
    auto* turned = reinterpret_cast<__half2*>(out);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kTileRows; j += 2) {
      const __half2 both = __floats2half2_rn(to_float(v[j]) * power, to_float(v[j + 1]) * power);
      sum += __low2float(both) + __high2float(both);
      turned[j / 2 % 4 * 4 + j / 8] = both;
    }
#pragma unroll
    for (int t = 0; t < 4; ++t) place[t] = out[t];
    return sum;
  }

  template <typename T>
  __device__ void stage_x() {
    // Some warps a row, so that all of x is on its way at once.
    const int each = a.M == 1 ? kWarps : a.M == 2 ? kWarps / 2 : a.M <= 4 ? kWarps / 4 : kWarps / 8;
    const int row_first = warp / each, rows = kWarps / each, thread = warp % each * 32 + lane, threads = 32 * each;
    const int blocks = k_last - k_first;
#pragma unroll 1
    for (int row = row_first; row < a.M; row += rows) {
#pragma unroll 1
      for (int i = thread; i < 4 * blocks; i += threads) fetch_piece<T>(row, i);
    }
    commit_copies();
    if (a.before == Before::norm) find_factors<T>();
    wait_for_copies<0>();
    sync_multipliers();
    if (a.before != Before::nothing) {
#pragma unroll 1
      for (int row = row_first; row < a.M; row += rows) prepare_row<T>(row, thread, threads);
      sync_multipliers();
    }

    const Operand<kRT> to = operand();
#pragma unroll 1
    for (int at = row_first; at - row_first < a.M; at += rows) {
      const int row = min(at, a.M - 1);  // warps without a row go with the last as far as a barrier is met
      const float power = power_of<T>(row, thread, threads);
      if (at >= a.M) break;
      if (thread == 0) *power_at(row) = (1 << 24) / power;
#pragma unroll 1
      for (int kb = thread; kb < (blocks + 31) / 32 * 32; kb += threads) {
        float sum = kb < blocks ? turn_block<T>(row, kb, power) * (1.0f / (1 << 24)) : 0;
        if (kb < blocks) *reinterpret_cast<float*>(shared + to.sums + kb * to.sums_step + row * 4) = sum;
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (kb < blocks && kb % 4 == 0)
          *reinterpret_cast<float*>(shared + to.quads + kb / 4 * to.sums_step + row * 4) = sum;
      }
    }
  }

  // Half has more digits than bfloat16 and less range: a row is multiplied by the power of two that brings its largest
  // number to 2^14. What half then cuts off is 2^-39 of the largest.
  template <typename T>
  __device__ float power_of(int row, int thread, int threads) {
    if constexpr (std::is_same_v<T, __half>) return 1;
    float largest = 0;
#pragma unroll 1
    for (int i = thread; i < 4 * (k_last - k_first); i += threads) {
      const uint4 piece = *x_piece(row, i);
      const T* v = reinterpret_cast<const T*>(&piece);
#pragma unroll
      for (int j = 0; j < 8; ++j) largest = fmaxf(largest, fabsf(to_float(v[j])));
    }
    largest = warp_reduce<Max>(largest);
    if (threads > 32) {  // several warps: all have this row, and none another
      if (lane == 0) scratch(row)[thread / 32] = largest;
      sync_multipliers();
      for (int w = 0; w < threads / 32; ++w) largest = fmaxf(largest, scratch(row)[w]);
    }
    __syncwarp();
    const int exponent = __float_as_int(largest) >> 23;  // 255: not finite, and so will be y
    return exponent == 255 ? 1.0f : __int_as_float(min(254, 127 + 14 + 127 - exponent) << 23);
  }

  // An odd number of runs of 64: two rows do not meet in a bank.
  __device__ int row_bytes() const { return ((k_last - k_first) | 1) * 64; }

  __device__ Operand<kRT> operand() const {
    const int step = (a.M + 1) / 2 * 8;
    Operand<kRT> x{{}, {}, sums_at(), sums_at() + (k_last - k_first) * step, step, {}};
#pragma unroll
    for (int r = 0; r < kRT; ++r) {
      const int row = 8 * r + lane / 4;
      x.x[r] = x_at() + row * row_bytes() + lane % 4 * 16;
      x.row[r] = row < a.M;
      x.sum_row[r] = min(32 * r + lane % 4 * 8, x.sums_step - 8);
    }
    return x;
  }

  __device__ void multiply() {
    const Operand<kRT> x = operand();
    float total[kRT][4] = {};
    int buffer = 0, share_parity = 1;
    each_piece([&](int, int kb, int tiles, const Segment& s, int stage, int parity) {
      const int units = (tiles + 3) / 4, lo = units * warp / kWarps * 4,
                hi = min(units * (warp + 1) / kWarps * 4, tiles);
      full(stage)->wait(parity);
      if (lo < hi) {
        const int at = kb - s.first, group = s.group_of(at + lo), left = s.per - (at + lo - group * s.per);
        const int weights = stage_at(stage), scales = weights + plan.weight_bytes;
        const Tiles part{weights + lo * (kBits == 0 ? s.bits : kBits) * 64,
                         scales + (group - s.group_of(at)) * 2 * kTileColumns,
                         m.zeros == nullptr ? 0 : plan.scale_bytes - scales,
                         kb - k_first + lo,
                         hi - lo,
                         left,
                         s.per};
        multiply_part(s.bits, part, x, total);
      }
      __syncwarp();
      if (lane == 0) empty(stage)->arrive();
      if (kb + tiles < k_last) return;
      share_empty(buffer)->wait(share_parity);
#pragma unroll
      for (int r = 0; r < kRT; ++r) {
        *share(buffer, warp, r) = make_float4(total[r][0], total[r][1], total[r][2], total[r][3]);
#pragma unroll
        for (int c = 0; c < 4; ++c) total[r][c] = 0;
      }
      __syncwarp();
      if (lane == 0) share_full(buffer)->arrive();
      if (++buffer == kShareBuffers) buffer = 0, share_parity ^= 1;
    });
  }

  __device__ void multiply_part(int bits, const Tiles& part, const Operand<kRT>& x, float (&total)[kRT][4]) {
    if constexpr (kBits != 0) {
      multiply_tiles<kBits, kRT>(shared, part, x, total);
    } else {
      switch (bits) {
        case 2:
          return multiply_tiles<2, kRT>(shared, part, x, total);
        case 3:
          return multiply_tiles<3, kRT>(shared, part, x, total);
        case 4:
          return multiply_tiles<4, kRT>(shared, part, x, total);
        case 5:
          return multiply_tiles<5, kRT>(shared, part, x, total);
        case 6:
          return multiply_tiles<6, kRT>(shared, part, x, total);
        case 8:
          return multiply_tiles<8, kRT>(shared, part, x, total);
      }
    }
  }

  // ---- the warp that sums up

  static __device__ void add_to(float4& sum, const float4& v) {
    sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
  }

  __device__ void sum_up() {
    int buffer = 0, parity = 0;
#pragma unroll 1
    for (int cb = column_first; cb < column_last; ++cb) {
      share_full(buffer)->wait(parity);
#pragma unroll
      for (int r = 0; r < kRT; ++r) {
        float4 sum = *share(buffer, 0, r);
#pragma unroll
        for (int w = 1; w < kWarps; ++w) add_to(sum, *share(buffer, w, r));
        const int row = min(8 * r + lane % 4 * 2, (a.M - 1) / 2 * 2);
        const float2 power = *reinterpret_cast<const float2*>(power_at(row));
        sum.x *= power.x, sum.y *= power.y, sum.z *= power.x, sum.w *= power.y;
        if (plan.splits > 1)
          *part((cb - column_first) * kRT + r) = sum;
        else
          write(sum, cb, r);
      }
      __syncwarp();
      if (lane == 0) share_empty(buffer)->arrive();
      if (++buffer == kShareBuffers) buffer = 0, parity ^= 1;
    }
  }

  // A lane's numbers of 16 columns and 8 rows: columns g and g + 8 of rows 2 t and 2 t + 1.
  __device__ void write(const float4& sum, int cb, int r) const {
    const float value[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int row = 8 * r + lane % 4 * 2 + c % 2;
      const int64_t n = static_cast<int64_t>(cb) * kTileColumns + lane / 4 + c / 2 * 8;
      if (row >= a.M || n >= m.N) continue;
      if (a.dtype == DType::f16)
        write_one<__half>(value[c], row, n);
      else
        write_one<__nv_bfloat16>(value[c], row, n);
    }
  }
  template <typename T>
  __device__ void write_one(float v, int row, int64_t n) const {
    if (a.bias != nullptr) v += to_float(static_cast<const T*>(a.bias)[n]);
    if (a.add != nullptr) v += to_float(static_cast<const T*>(a.add)[row * a.add_stride + n]);
    static_cast<T*>(a.y)[static_cast<int64_t>(row) * m.N + n] = from_float<T>(v);
  }

  __device__ void join_splits() {
    cluster_sync();
    const int parts = (column_last - column_first) * kRT;
#pragma unroll 1
    for (int i = rank * (kWarps + 2) + warp; i < parts; i += plan.splits * (kWarps + 2)) {
      float4 sum = read_shared_of(part(i), 0);
      for (int s = 1; s < plan.splits; ++s) add_to(sum, read_shared_of(part(i), s));
      write(sum, column_first + i / kRT, i % kRT);
    }
    cluster_sync();  // nobody leaves while its memory is read
  }
};

template <int kBits, int kRT>
__global__ void __launch_bounds__(kSkinnyThreads, kRT == 1 ? 2 : 1)
    skinny_kernel(const __grid_constant__ SkinnyArgs a) {
  extern __shared__ __align__(128) uint8_t shared[];
  SkinnyBlock<kBits, kRT> block(a, shared);
  if (block.warp == kSkinnyWarps) {
    block.copy_weights();
  } else {
    wait_for_previous();
    let_next_begin();
    if (block.warp < kSkinnyWarps) {
      if (a.dtype == DType::f16)
        block.template stage_x<__half>();
      else
        block.template stage_x<__nv_bfloat16>();
    }
    __syncthreads();
    if (block.warp < kSkinnyWarps)
      block.multiply();
    else
      block.sum_up();
  }
  if (a.plan.splits > 1) block.join_splits();
}

// The kernel for a width (0: any) and so many tiles of 8 rows (1, 2 or 4).
using SkinnyKernel = void (*)(SkinnyArgs);
SkinnyKernel skinny_kernel_of(int bits, int row_tiles);

}  // namespace nybble::cuda
