// Hopper, any number of rows: blocks stay and take one tile after another, the producer ahead of the consumers. A
// tile's sums go through shared memory, 32 rows at a time, so that y is written in whole pieces of a row.
#include "cuda/int8_matmul/wgmma.cuh"

namespace nybble::cuda::int8 {
#ifdef NYBBLE_SM90A
namespace {

constexpr int kPart = 32;  // rows of y on their way out at a time
constexpr int kBand = 8;   // tiles that are done together before the next columns: both sides stay in the second cache

template <int kM>
struct Memory {
  Ring<kM, (192 << 10) / ((kN + kM) * kStep)> ring;
  struct Out {                // of a warpgroup
    int sums[kPart][64 + 4];  // the width keeps a warp's stores in different banks
    float x_scale[kM];
  } out[2];
};

struct Tile {
  int m, n;
};

template <int kM>
__device__ Tile tile_at(unsigned i, unsigned row_tiles, unsigned column_tiles) {
  const unsigned band = i / (kBand * column_tiles), in_band = i - band * kBand * column_tiles;
  const unsigned rows = min(static_cast<unsigned>(kBand), row_tiles - band * kBand);
  return {static_cast<int>((band * kBand + in_band % rows) * kM), static_cast<int>(in_band / rows * kN)};
}

__device__ void warpgroup_sync(int half) { asm volatile("bar.sync %0, 128;" ::"r"(half + 1) : "memory"); }

template <int kM>
__device__ void write_tile(const Int8MatmulArgs& a, typename Memory<kM>::Out& out, const Columns& columns, int m0,
                           int half, const int (&sum)[kM / 2]) {
  const int row = threadIdx.x % 128 / 16, column = threadIdx.x % 16 * 4;
#pragma unroll
  for (int part = 0; part < kM / kPart; ++part) {
    warpgroup_sync(half);  // the scales are there, the rows before these are read
#pragma unroll
    for (int j = 0; j < kPart / 2; ++j) out.sums[row_of(j)][column_of(j)] = sum[part * (kPart / 2) + j];
    warpgroup_sync(half);
    const int64_t m = m0 + part * kPart + row;
    const auto result = [&](int r) {
      return columns.result(a, *reinterpret_cast<const int4*>(&out.sums[r + row][column]),
                            out.x_scale[part * kPart + r + row]);
    };
    if (a.N % 4 == 0) {
#pragma unroll
      for (int r = 0; r < kPart; r += 8)
        if (m + r < a.M) columns.put(a, m + r, result(r));
    } else {
#pragma unroll 1
      for (int r = 0; r < kPart; r += 8)
        if (m + r < a.M) columns.put_each(a, m + r, result(r));
    }
  }
}

template <int kM>
__global__ void __launch_bounds__(kThreads, 1)
    many_kernel(const __grid_constant__ CUtensorMap x_map,  // x, boxes of kM rows
                const __grid_constant__ CUtensorMap w_map,  // weight, boxes of kN rows
                const Int8MatmulArgs a,                     // as ops/int8_matmul.h says
                unsigned row_tiles, unsigned column_tiles) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char memory[];
  Memory<kM>& shared = *reinterpret_cast<Memory<kM>*>(memory);
  if (threadIdx.x == 0) shared.ring.init();
  __syncthreads();
  const unsigned tiles = row_tiles * column_tiles;
  const int steps = static_cast<int>((a.K + kStep - 1) / kStep);
  constexpr int kStages = decltype(shared.ring)::kStages;
  Place<kStages> place;
  if (threadIdx.x >= kConsumers) {
    if (threadIdx.x > kConsumers) return;
    int early = min(steps, kStages);  // steps whose weights come before x may be read: no kernel writes weights
    for (int step = 0; step < early; ++step)
      fetch_weight(shared.ring, step, w_map, step * kStep, tile_at<kM>(blockIdx.x, row_tiles, column_tiles).n);
    wait_for_previous();
    let_next_begin();
    for (unsigned i = blockIdx.x; i < tiles; i += gridDim.x) {
      const Tile tile = tile_at<kM>(i, row_tiles, column_tiles);
      for (int step = 0; step < steps; ++step, place.advance()) {
        if (early > 0) {
          --early;
        } else {
          shared.ring.empty[place.stage].wait(place.phase ^ 1);
          fetch_weight(shared.ring, place.stage, w_map, step * kStep, tile.n);
        }
        fetch_x(shared.ring, place.stage, x_map, step * kStep, tile.m);
      }
    }
    return;
  }
  wait_for_previous();
  let_next_begin();
  const int half = threadIdx.x / 128, thread = threadIdx.x % 128;
  auto& out = shared.out[half];
  for (unsigned i = blockIdx.x; i < tiles; i += gridDim.x) {
    const Tile tile = tile_at<kM>(i, row_tiles, column_tiles);
    warpgroup_sync(half);  // the tile before is written
    for (int r = thread; r < kM; r += 128) out.x_scale[r] = tile.m + r < a.M ? a.x_scale[tile.m + r] : 0.0f;
    const Columns columns(a, tile.n + half * 64 + thread % 16 * 4);
    int sum[kM / 2];
    consume(shared.ring, place, steps, half, sum);
    write_tile<kM>(a, out, columns, tile.m, half, sum);
  }
#endif
}

template <int kM>
Status start_many(const Int8MatmulArgs& a, Stream stream) {
  const auto row_tiles = static_cast<unsigned>((a.M + kM - 1) / kM);
  const auto column_tiles = static_cast<unsigned>((a.N + kN - 1) / kN);
  const unsigned tiles = row_tiles * column_tiles, most = gpu().processors;
  return launch_wgmma<kM>(many_kernel<kM>, a, stream, tiles < most ? tiles : most, 1, sizeof(Memory<kM>), row_tiles,
                          column_tiles);
}

// How long tiles of kM rows take together, in those of 128.
int64_t rounds(const Int8MatmulArgs& a, int64_t kM) {
  const int64_t tiles = (a.M + kM - 1) / kM * ((a.N + kN - 1) / kN);
  return (tiles + gpu().processors - 1) / gpu().processors * (kM / 128);
}

}  // namespace

bool supports_wgmma_many(const Int8MatmulArgs& a) {
  return boxes(a) && (a.M + 31) / 32 * ((a.N + kN - 1) / kN) < 0x7fffffff;
}

Status wgmma_many(const Int8MatmulArgs& a, Stream stream) {
  if (a.M <= 32) return start_many<32>(a, stream);
  if (a.M <= 64) return start_many<64>(a, stream);
  // Larger tiles read less, and take longer to write.
  constexpr int64_t kLong = 8192;
  const int64_t small = rounds(a, 128), large = rounds(a, 256);
  return large < small || (large == small && a.K >= kLong) ? start_many<256>(a, stream) : start_many<128>(a, stream);
}
#else
bool supports_wgmma_many(const Int8MatmulArgs&) { return false; }

Status wgmma_many(const Int8MatmulArgs&, Stream) { return {"int8_matmul: built without sm_90a"}; }
#endif

}  // namespace nybble::cuda::int8
