// Attention on Hopper's warpgroup products (sm_90a), float16 and bfloat16, with a running softmax in float32.
//
// A block stays and takes one piece of work after another: up to 128 rows of one KV head. One thread of its first
// warpgroup has tiles copied, the other two warpgroups multiply, 64 rows each:
//
//   copy      q | k0 v0 k1 v1 k2 ... | q | k0 ...        two tiles of kKeys keys and two of values in shared memory
//   multiply      q k0 | q k1, w0 v0 | q k2, w1 v1 | ... | w v, out
//                   softmax of 0 | softmax of 1 beside w0 v0 ...
//
// Scores lie in registers, become weights w there, and are the left side of the product with the values.
#include <algorithm>

#include "cuda/attention/softmax.cuh"
#include "cuda/attention/wgmma.cuh"
#include "cuda/common/async_copy.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/tensor_map.h"

namespace nybble::cuda {
namespace {

constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kThreads = 3 * kGroup;
constexpr int kRows = 128;
constexpr int kStages = 2;

// Tiles in shared memory, in bytes: for each 64 channels, rows of 128 bytes.
template <int kD>
struct Layout {
  static constexpr int kKeys = kD == 256 ? 64 : 128;
  static constexpr int kQ = kRows * kD * 2, kTile = kKeys * kD * 2;
  static constexpr int kBarriers = kQ + 2 * kStages * kTile, kAll = kBarriers + 1024;
};

struct Grid {
  int problems;  // B Hk
  int blocks;    // of a problem's rows
  int rows;      // of a block: whole tokens, so that a box of q is one
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Which of the kStages tiles comes next, and the parity of its turn.
struct Turn {
  int stage = 0, phase = 0;
  __device__ void next() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

struct Barriers {
  uint32_t base;
  __device__ uint32_t q_full() const { return base; }
  __device__ uint32_t q_empty() const { return base + 8; }
  __device__ uint32_t full(bool values, int stage) const { return base + 16 + (values * kStages + stage) * 16; }
  __device__ uint32_t empty(bool values, int stage) const { return full(values, stage) + 8; }
};

// The two warpgroups give their products to the matrix units in turn, so that one's softmax runs beside the other's
// products.
__device__ void wait_turn(int group) { asm volatile("bar.sync %0, 256;" ::"r"(group) : "memory"); }
__device__ void let_pass(int group) { asm volatile("bar.arrive %0, 256;" ::"r"(group) : "memory"); }

// Some rows of a problem and the keys [from, to) that they see or, where blocks share keys, a part of those.
struct Piece {
  AttentionRows rows;
  int row0, row_end, part, from, to;
};

// Calls body(piece) for each of this block's pieces. The last rows, which see most under a causal mask, come first; a
// block that had a large piece in one round has a small one in the next.
template <typename Body>
__device__ void each_piece(const AttentionArgs& a, const Grid& grid, int parts, int keys_of_tile, Body body) {
  const int count = grid.problems * grid.blocks * parts;
  for (int first = 0, round = 0; first < count; first += gridDim.x, ++round) {
    const int index = first + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    if (index >= count) continue;
    Piece p{AttentionRows(a, index % grid.problems)};
    const int block = index / grid.problems;
    p.part = block % parts;
    p.row0 = (grid.blocks - 1 - block / parts) * grid.rows;
    p.row_end = min(p.rows.count, p.row0 + grid.rows);
    p.rows.keys_of(a, p.row0, p.row_end, keys_of_tile, p.part, parts, p.from, p.to);
    body(p);
  }
}
#endif

template <typename T, int kD>
__global__ void __launch_bounds__(kThreads, 1)
    wgmma_kernel(const __grid_constant__ CUtensorMap q_map,  // [B, Hk, T, G, D]
                 const __grid_constant__ CUtensorMap k_map,  // [B, Hk, S, D]
                 const __grid_constant__ CUtensorMap v_map,
                 const AttentionArgs a,  // the op's arguments
                 const Parts parts,      // what blocks that share keys leave
                 const Grid grid,        // all pieces of work
                 float factor) {         // scale times log2(e)
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using L = Layout<kD>;
  constexpr int kKeys = L::kKeys;
  extern __shared__ unsigned char shared[];
  const uint32_t base = (shared_address(shared) + 1023) / 1024 * 1024;
  const uint32_t q_tile = base, k_tiles = q_tile + L::kQ, v_tiles = k_tiles + kStages * L::kTile;
  const Barriers barriers{base + L::kBarriers};
  const int group = threadIdx.x / kGroup, D = static_cast<int>(a.D);

  if (threadIdx.x == 0) {
    init_barrier(barriers.q_full(), 1);
    init_barrier(barriers.q_empty(), 2 * kGroup / 32);
    for (int i = 0; i < kStages; ++i)
      for (const bool values : {false, true}) {
        init_barrier(barriers.full(values, i), 1);
        init_barrier(barriers.empty(values, i), 2 * kGroup / 32);
      }
    publish();
  }
  wait_for_previous();
  let_next_begin();
  __syncthreads();

  if (group == 0) {  // ---- copies ----
    give_registers<24>();
    if (threadIdx.x != 0) return;
    Turn k_turn, v_turn;
    int q_phase = 1;
    k_turn.phase = v_turn.phase = 1;  // all tiles are free at first
    const auto copy = [&](const CUtensorMap& map, bool values, uint32_t tiles, Turn& turn, const Piece& p, int s) {
      wait_for_phase(barriers.empty(values, turn.stage), turn.phase);
      const uint32_t full = barriers.full(values, turn.stage), tile = tiles + turn.stage * L::kTile;
      arrive_expecting(full, L::kTile);
      for (int d = 0; d < kD; d += 64) copy_box(tile + d * (kKeys * 2), map, full, d, s, p.rows.kv, p.rows.b);
      turn.next();
    };
    each_piece(a, grid, parts.count, kKeys, [&](const Piece& p) {
      if (p.from >= p.to) return;
      wait_for_phase(barriers.q_empty(), q_phase);
      q_phase ^= 1;
      arrive_expecting(barriers.q_full(), grid.rows * kD * 2);
      for (int d = 0; d < kD; d += 64)
        copy_box(q_tile + d * (kRows * 2), q_map, barriers.q_full(), d, 0, p.row0 / p.rows.G, p.rows.kv, p.rows.b);
      for (int s = p.from; s < p.to; s += kKeys) {
        copy(k_map, false, k_tiles, k_turn, p, s);
        copy(v_map, true, v_tiles, v_turn, p, s);
      }
    });
  } else {  // ---- products ----
    take_registers<240>();
    const int lane = threadIdx.x % 32, my_row = (group - 1) * 64 + threadIdx.x % kGroup / 32 * 16 + lane / 4;
    const uint32_t my_q = q_tile + (group - 1) * 64 * 128;
    Turn k_turn, v_turn;
    if (group == 2) let_pass(1);
    int q_phase = 0;
    each_piece(a, grid, parts.count, kKeys, [&](const Piece& p) {
      Softmax softmax;
      float out[kD / 8][4] = {}, scores[kKeys / 8][4], fade[2];
      uint32_t weights[kKeys / 16][4];
      // The keys that every row sees.
      const int all_from = p.rows.first(a, p.row_end - 1), all_to = p.rows.last(a, p.row0);
      const auto release = [&](uint32_t barrier) {
        if (lane == 0) arrive_at_barrier(barrier);
      };
      const auto begin_scores = [&] {
        const uint32_t k = k_tiles + k_turn.stage * L::kTile;
        product_fence();
#pragma unroll
        for (int d = 0; d < kD / 16; ++d)
          multiply_rows<T>(describe(my_q + d / 4 * (kRows * 128) + d % 4 * 32, 16),
                           describe(k + d / 4 * (kKeys * 128) + d % 4 * 32, 16), d > 0, scores);
        product_commit();
      };
      const auto end_scores = [&](int s) {
        products_done(scores);
        release(barriers.empty(false, k_turn.stage));
        if (s + kKeys >= p.to) release(barriers.q_empty());
        k_turn.next();
        if (s < all_from || s + kKeys > all_to) hide(a, p.rows, p.row0 + my_row, s + lane % 4 * 2, scores);
        softmax.step(scores, factor, fade);
      };
      const auto begin_values = [&] {
        const uint32_t v = v_tiles + v_turn.stage * L::kTile;
        constexpr int kWide = kD < 128 ? kD : 128;  // channels of one product
        product_fence();
#pragma unroll
        for (int n = 0; n < kKeys / 16; ++n)
#pragma unroll
          for (int d = 0; d < kD / kWide; ++d)
            multiply_columns<T, kWide / 8>(weights[n], describe(v + d * 2 * (kKeys * 128) + n * 2048, kKeys * 128),
                                           out + d * (kWide / 8));
        product_commit();
      };
      const auto end_values = [&](bool any) {
        product_wait<0>();
        products_done(out);
        if (!any) return;
        release(barriers.empty(true, v_turn.stage));
        v_turn.next();
      };
      // What lies beyond the length may be anything; a weight of 0 does not make it 0. Both warpgroups write the same.
      const auto clear_values = [&](int s) {
        if (s + kKeys <= p.rows.length || p.rows.length >= a.S) return;
        const int thread = threadIdx.x % kGroup;
        for (int row = p.rows.length - s; row < kKeys; ++row)
          for (int chunk = thread; chunk < kD / 8; chunk += kGroup)
            *reinterpret_cast<uint4*>(shared + (v_tiles - shared_address(shared)) + v_turn.stage * L::kTile +
                                      chunk / 8 * (kKeys * 128) + row * 128 + chunk % 8 * 16) = uint4{};
        publish();
        asm volatile("bar.sync %0, 128;" ::"r"(2 + group) : "memory");
      };
      const auto wait_keys = [&] { wait_for_phase(barriers.full(false, k_turn.stage), k_turn.phase); };
      const auto wait_values = [&] { wait_for_phase(barriers.full(true, v_turn.stage), v_turn.phase); };

      if (p.from < p.to) {
        wait_for_phase(barriers.q_full(), q_phase);
        q_phase ^= 1;
        wait_keys();
        begin_scores();
        product_wait<0>();
        end_scores(p.from);
        for (int s = p.from + kKeys; s < p.to; s += kKeys) {
          // Waited for already, but the branch keeps the softmax above it, beside the products under way.
          wait_values();
          end_values(s > p.from + kKeys);
          scale_rows(out, fade);
          pack_weights<T>(scores, weights);
          wait_keys();
          wait_turn(group);
          begin_scores();
          wait_values();
          begin_values();
          let_pass(3 - group);
          product_wait<1>();
          end_scores(s);
        }
        wait_values();
        end_values(p.to > p.from + kKeys);
        scale_rows(out, fade);
        pack_weights<T>(scores, weights);
        wait_values();
        clear_values((p.to - 1) / kKeys * kKeys);
        begin_values();
        end_values(true);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = p.row0 + my_row + 8 * r;
        const int64_t place = row < p.row_end ? p.rows.place(a, row) : -1;
        if (parts.count > 1) {
          store_part(parts, p.part, place, softmax, r, a.scale, out, D);
          continue;
        }
        const float f = softmax.finish(r);
        if (place < 0) continue;
        T* o = static_cast<T*>(a.o) + place * D + lane % 4 * 2;
#pragma unroll
        for (int d = 0; d < kD / 8; ++d)
          if (8 * d < D) *reinterpret_cast<uint32_t*>(o + 8 * d) = pack<T>(out[d][2 * r] * f, out[d][2 * r + 1] * f);
      }
    });
  }
#endif
}

int64_t group_of(const AttentionArgs& a) { return a.H / a.Hk; }
Grid grid_of(const AttentionArgs& a) {
  const int64_t tokens = kRows / group_of(a);
  return {static_cast<int>(a.B * a.Hk), static_cast<int>((a.T + tokens - 1) / tokens),
          static_cast<int>(tokens * group_of(a))};
}
int64_t parts_of(const AttentionArgs& a) {
  const Grid grid = grid_of(a);
  return attention_parts(a, int64_t{grid.problems} * grid.blocks, gpu().processors, a.D <= 128 ? 128 : 64);
}

// Numbers of 2 bytes, in boxes 64 of them wide.
template <int kRank>
Status describe_halves(CUtensorMap& map, const void* from, const int64_t (&sizes)[kRank],
                       const int64_t (&strides)[kRank - 1], const int64_t (&box)[kRank]) {
  return describe_tensor<kRank>(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, from, sizes, strides, box);
}

template <typename T, int kD>
Status start(const AttentionArgs& a, Stream stream) {
  constexpr int kShared = Layout<kD>::kAll + 1024;
  const Grid grid = grid_of(a);
  const int64_t parts = parts_of(a), pieces = grid.problems * grid.blocks * parts;
  if (a.B * a.Hk > 0x7ffff000 / (grid.blocks * parts)) return {"attention: more than 2^31 - 4097 pieces of work"};
  const int64_t G = group_of(a);
  CUtensorMap q_map, k_map, v_map;
  const Status q_done =
      describe_halves<5>(q_map, a.q, {a.D, G, a.T, a.Hk, a.B},
                         {a.q_stride_h, a.q_stride_t, a.q_stride_h * G, a.q_stride_b}, {64, G, grid.rows / G, 1, 1});
  const Status k_done = describe_halves<4>(k_map, a.k, {a.D, a.S, a.Hk, a.B},
                                           {a.k_stride_s, a.k_stride_h, a.k_stride_b}, {64, Layout<kD>::kKeys, 1, 1});
  const Status v_done = describe_halves<4>(v_map, a.v, {a.D, a.S, a.Hk, a.B},
                                           {a.v_stride_s, a.v_stride_h, a.v_stride_b}, {64, Layout<kD>::kKeys, 1, 1});
  for (const Status& done : {q_done, k_done, v_done})
    if (!done.ok()) return done;
  const auto kernel = wgmma_kernel<T, kD>;
  const Status room = status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared));
  if (!room.ok()) return room;
  return launch(kernel, static_cast<unsigned>(std::min<int64_t>(pieces, gpu().processors)), kThreads, kShared, stream,
                true, q_map, k_map, v_map, a, parts_at(a.scratch, a.B * a.T * a.H, parts, a.D), grid,
                a.scale * 1.4426950408889634f);
}

template <typename T>
Status start(const AttentionArgs& a, Stream stream) {
  if (a.D <= 64) return start<T, 64>(a, stream);
  if (a.D <= 128) return start<T, 128>(a, stream);
  return start<T, 256>(a, stream);
}

bool supports(const AttentionArgs& a) {
#ifdef NYBBLE_SM90A
  // Up to 64 rows one of the two warpgroups would have nothing to do.
  if (!gpu().is_sm90 || !supports_tensor_cores(a) || a.T * group_of(a) <= 64) return false;
  if (group_of(a) > kRows || a.S == 0) return false;  // a box has whole tokens, and it has some
  for (const int64_t stride : {a.q_stride_b, a.q_stride_t, a.q_stride_h, a.k_stride_b, a.k_stride_s, a.k_stride_h,
                               a.v_stride_b, a.v_stride_s, a.v_stride_h})
    if (stride <= 0 || stride >= int64_t{1} << 38) return false;  // the copy engine's limits
  return true;
#else
  return false;
#endif
}

int64_t scratch_bytes(const AttentionArgs& a) { return parts_bytes(a.B * a.T * a.H, parts_of(a), a.D); }

Status run(const AttentionArgs& a, Stream stream) {
  const Status started = a.dtype == DType::f16 ? start<__half>(a, stream) : start<__nv_bfloat16>(a, stream);
  const int64_t rows = a.B * a.T * a.H, parts = parts_of(a);
  if (!started.ok() || parts == 1) return started;
  return join_parts(parts_at(a.scratch, rows, parts, a.D), a.o, a.dtype, rows, a.D, stream);
}

}  // namespace

const AttentionKernel attention_wgmma{supports, scratch_bytes, run};

}  // namespace nybble::cuda
