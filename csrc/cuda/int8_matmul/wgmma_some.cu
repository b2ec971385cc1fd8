// Hopper, fewer tiles than processors. A cluster of blocks has one tile, each block a share
// of K; in the end each adds up its share of the rows of all blocks' sums. Whole numbers: their order is of no matter.
//
//   K      [ block 0 | block 1 | block 2 | block 3 ]     sums of 128 columns by kM rows in each block
//   rows   0 4 8 ...   1 5 9 ...                         then block b writes the rows b, b + 4, ...
//
// Where there are processors left over, the blocks of the next kernel are there, with their first weights, when this
// one ends.
#include "cuda/int8_matmul/wgmma.cuh"

namespace nybble::cuda::int8 {
#ifdef NYBBLE_SM90A
namespace {

constexpr unsigned kMostShares = 8;

template <int kM>
union Memory {
  Ring<kM, (192 << 10) / ((kN + kM) * kStep)> ring;
  int sums[kM][kN + 4];  // when the ring has done its work; the width keeps a warp's stores in different banks
};

// What block `rank` of the cluster has where this one has `mine`.
__device__ int4 read_shared_of(const int4* mine, unsigned rank) {
  int4 v;
  asm volatile(
      "{.reg .b32 there; mapa.shared::cluster.u32 there, %4, %5; ld.shared::cluster.v4.s32 {%0,%1,%2,%3}, [there];}"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "r"(shared_address(mine)), "r"(rank)
      : "memory");
  return v;
}

__device__ void consumers_sync() { asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory"); }

template <int kM>
__global__ void __launch_bounds__(kThreads, 1)
    some_kernel(const __grid_constant__ CUtensorMap x_map,  // x, boxes of kM rows
                const __grid_constant__ CUtensorMap w_map,  // weight, boxes of kN rows
                const Int8MatmulArgs a,                     // as ops/int8_matmul.h says
                unsigned row_tiles,                         // of kM rows
                unsigned shares) {                          // blocks of a cluster
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<Memory<kM>*>(memory);
  constexpr int kStages = decltype(shared.ring)::kStages;
  __shared__ float x_scale[kM];
  const unsigned tile = blockIdx.x / shares, rank = blockIdx.x % shares;
  const int m0 = static_cast<int>(tile % row_tiles * kM), n0 = static_cast<int>(tile / row_tiles * kN);
  const unsigned all_steps = static_cast<unsigned>((a.K + kStep - 1) / kStep);
  const int begin = all_steps * rank / shares, steps = all_steps * (rank + 1) / shares - begin;
  if (threadIdx.x == 0) shared.ring.init();
  __syncthreads();
  Place<kStages> place;
  if (threadIdx.x >= kConsumers) {
    if (threadIdx.x == kConsumers) {
      for (int i = 0; i < min(steps, kStages); ++i)  // no kernel writes weights
        fetch_weight(shared.ring, i, w_map, (begin + i) * kStep, n0);
      wait_for_previous();
      let_next_begin();
      for (int i = 0; i < steps; ++i, place.advance()) {
        if (i >= kStages) {
          shared.ring.empty[place.stage].wait(place.phase ^ 1);
          fetch_weight(shared.ring, place.stage, w_map, (begin + i) * kStep, n0);
        }
        fetch_x(shared.ring, place.stage, x_map, (begin + i) * kStep, m0);
      }
    }
    __syncwarp();
    meet_cluster();
  } else {
    wait_for_previous();
    let_next_begin();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, half = warp / 4;
    if (threadIdx.x < kM) x_scale[threadIdx.x] = m0 + threadIdx.x < a.M ? a.x_scale[m0 + threadIdx.x] : 0.0f;
    const Columns columns(a, n0 + lane * 4);
    int sum[kM / 2];
    consume(shared.ring, place, steps, half, sum);
    consumers_sync();  // the other warpgroup has done with the ring
#pragma unroll
    for (int j = 0; j < kM / 2; ++j) shared.sums[row_of(j)][half * 64 + column_of(j)] = sum[j];
    meet_cluster();
#pragma unroll 2
    for (unsigned r = rank + shares * warp; r < kM && m0 + r < a.M; r += shares * (kConsumers / 32)) {
      int4 part[kMostShares];
#pragma unroll
      for (unsigned s = 0; s < kMostShares; ++s)
        part[s] = s < shares ? read_shared_of(reinterpret_cast<const int4*>(&shared.sums[r][lane * 4]), s) : int4{};
#pragma unroll
      for (unsigned s = 1; s < kMostShares; ++s)
        part[0] = {part[0].x + part[s].x, part[0].y + part[s].y, part[0].z + part[s].z, part[0].w + part[s].w};
      const float4 y = columns.result(a, part[0], x_scale[r]);
      a.N % 4 == 0 ? columns.put(a, m0 + r, y) : columns.put_each(a, m0 + r, y);
    }
  }
  meet_cluster();  // nobody goes while another block may still read its sums
#endif
}

int64_t tiles_of(const Int8MatmulArgs& a, int64_t kM) { return (a.M + kM - 1) / kM * ((a.N + kN - 1) / kN); }

// Blocks that share a tile's K, while each has 8 steps or more and all run at once: clusters of four and eight leave
// some processors of their groups of 16 or 18 unused.
unsigned shares_of(const Int8MatmulArgs& a, int64_t kM) {
  const int64_t tiles = tiles_of(a, kM), steps = a.K / kStep;
  unsigned shares = 1;
  while (shares < kMostShares && steps >= 16 * shares &&
         tiles * shares * 2 <= (shares == 1 ? gpu().processors : gpu().processors * 3 / 4))
    shares *= 2;
  return shares;
}

template <int kM>
Status start_some(const Int8MatmulArgs& a, Stream stream, unsigned shares) {
  return launch_wgmma<kM>(some_kernel<kM>, a, stream, static_cast<unsigned>(tiles_of(a, kM)) * shares, shares,
                          sizeof(Memory<kM>), static_cast<unsigned>((a.M + kM - 1) / kM), shares);
}

// Rows of a tile: smaller ones than x has read weights twice, from the second cache, where processors are idle.
int tile_rows(const Int8MatmulArgs& a) {
  return a.M <= 32 ? 32 : a.M <= 64 || tiles_of(a, 64) * 2 <= gpu().processors ? 64 : 128;
}

}  // namespace

bool supports_wgmma_some(const Int8MatmulArgs& a) { return boxes(a) && shares_of(a, tile_rows(a)) > 1; }

Status wgmma_some(const Int8MatmulArgs& a, Stream stream) {
  const int rows = tile_rows(a);
  const unsigned shares = shares_of(a, rows);
  if (rows == 32) return start_some<32>(a, stream, shares);
  return rows == 64 ? start_some<64>(a, stream, shares) : start_some<128>(a, stream, shares);
}
#else
bool supports_wgmma_some(const Int8MatmulArgs&) { return false; }

Status wgmma_some(const Int8MatmulArgs&, Stream) { return {"int8_matmul: built without sm_90a"}; }
#endif

}  // namespace nybble::cuda::int8
