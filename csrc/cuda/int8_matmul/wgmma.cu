// Hopper: tiles of 128 columns of y (rows of weight) by kM rows (rows of x), 128 bytes of K a step.
//
//   producer  one warp: a step's two tiles by the copy engine into the next of kStages places, once it is empty
//   consumers two warpgroups, 64 of the 128 each: wait until a place is full, multiply, say that it is empty
//   then      64 rows of y at a time: sums through shared memory, so that rows are written whole
//
// Blocks stay and take one tile after another; the producer is then ahead of the consumers. A cluster of blocks does
// one of two things:
//   kPair  two tiles of the same rows: each block fetches half of x's tile, for both
//   split  one tile, each block a share of K: each then adds up its share of the rows of all blocks' sums, which are
//          whole numbers, so that the order is of no matter
#include "cuda/int8_matmul/product.cuh"
#include "cuda/int8_matmul/wgmma.cuh"

namespace nybble::cuda::int8 {
#ifdef NYBBLE_SM90A
namespace {

constexpr int kN = 128, kStep = 128, kPart = 64;
constexpr int kConsumers = 256, kThreads = kConsumers + 32;

struct Plan {
  unsigned row_tiles, column_tiles;  // column_tiles: pairs of them where kPair
  unsigned splits;                   // blocks that share a tile's K
};

template <int kM>
struct Shared {
  static constexpr int kStages = (192 << 10) / ((kN + kM) * kStep);
  int8_t w[kStages][kN * kStep], x[kStages][kM * kStep];  // first: tiles begin at multiples of 1024 bytes
  int sums[kPart][kN + 4];                                // the width keeps a warp's stores in different banks
  uint64_t full[kStages], empty[kStages];
};

struct Tile {
  int m, n;
};

// Tiles of eight times kM rows are done together, column by column: what is read at a time stays in the second cache.
template <int kM, bool kPair>
__device__ Tile tile_at(const Plan& plan, unsigned i, unsigned rank) {
  const unsigned band = i / (8 * plan.column_tiles), in_band = i - band * 8 * plan.column_tiles;
  const unsigned rows = min(8u, plan.row_tiles - band * 8);
  const unsigned row = band * 8 + in_band % rows, column = in_band / rows;
  return {static_cast<int>(row * kM), static_cast<int>((kPair ? column * 2 + rank : column) * kN)};
}

// Which place comes next, and how often all of them have been used.
template <int kStages>
struct Place {
  int stage = 0;
  unsigned phase = 0;
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

__device__ void consumers_sync() { asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory"); }

// Four numbers of a row of y.
__device__ void put_four(const Int8MatmulArgs& a, int64_t m, int64_t n, const float (&y)[4]) {
  if (a.N % 4 != 0) {
    for (int j = 0; j < 4; ++j)
      if (n + j < a.N) put(a, m, n + j, y[j]);
    return;
  }
  if (n >= a.N) return;
  const int64_t at = m * a.N + n;
  if (a.y_dtype == DType::f32) {
    *reinterpret_cast<float4*>(static_cast<float*>(a.y) + at) = {y[0], y[1], y[2], y[3]};
  } else if (a.y_dtype == DType::f16) {
    const __half2 pairs[2] = {__floats2half2_rn(y[0], y[1]), __floats2half2_rn(y[2], y[3])};
    *reinterpret_cast<uint2*>(static_cast<__half*>(a.y) + at) = *reinterpret_cast<const uint2*>(pairs);
  } else {
    const __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(y[0], y[1]), __floats2bfloat162_rn(y[2], y[3])};
    *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(a.y) + at) = *reinterpret_cast<const uint2*>(pairs);
  }
}

template <int kM, bool kPair>
__global__ void __launch_bounds__(kThreads, 1)
    wgmma_kernel(const __grid_constant__ CUtensorMap x_map,  // x, boxes of kM rows (kPair: of half as many)
                 const __grid_constant__ CUtensorMap w_map,  // weight, boxes of kN rows
                 Int8MatmulArgs a,                           // as ops/int8_matmul.h says
                 Plan plan) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Memory = Shared<kM>;
  constexpr int kStages = Memory::kStages;
  extern __shared__ __align__(1024) unsigned char memory[];
  Memory& shared = *reinterpret_cast<Memory*>(memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const unsigned rank = cluster_rank(), cluster = kPair ? 2 : plan.splits;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(&shared.full[s], 1);
      barrier_init(&shared.empty[s], kConsumers / 32 * (kPair ? 2 : 1));
    }
    barrier_init_done();
  }
  cluster_sync();
  const unsigned tiles = plan.row_tiles * plan.column_tiles, clusters = gridDim.x / cluster;
  const int steps = static_cast<int>((a.K + kStep - 1) / kStep);
  const int begin = kPair ? 0 : steps * rank / plan.splits, end = kPair ? steps : steps * (rank + 1) / plan.splits;
  Place<kStages> place;

  if (warp == kConsumers / 32) {
    const auto fetch_w = [&](const Tile& tile, int step) {
      barrier_expect(&shared.full[place.stage], (kN + kM) * kStep);
      copy_tile(shared.w[place.stage], w_map, step * kStep, tile.n, &shared.full[place.stage]);
    };
    const auto fetch_x = [&](const Tile& tile, int step) {
      if constexpr (kPair)
        copy_tile(shared.x[place.stage] + rank * (kM / 2 * kStep), x_map, step * kStep, tile.m + rank * (kM / 2),
                  &shared.full[place.stage], 3);
      else
        copy_tile(shared.x[place.stage], x_map, step * kStep, tile.m, &shared.full[place.stage]);
    };
    // No kernel writes weights: the first of them may come while the kernel before this one ends.
    const int early = min(end - begin, kStages);
    if (lane == 0) {
      const Tile tile = tile_at<kM, kPair>(plan, blockIdx.x / cluster, rank);
      for (int i = 0; i < early; ++i) {
        fetch_w(tile, begin + i);
        place.advance();
      }
      place = {};
    }
    wait_for_previous();
    let_next_begin();
    bool first = true;
    for (unsigned i = blockIdx.x / cluster; i < tiles; i += clusters, first = false) {
      if (lane == 0) {
        const Tile tile = tile_at<kM, kPair>(plan, i, rank);
        for (int step = begin; step < end; ++step, place.advance()) {
          if (!first || step - begin >= early) {
            barrier_wait(&shared.empty[place.stage], place.phase ^ 1);
            fetch_w(tile, step);
          }
          fetch_x(tile, step);
        }
      }
      __syncwarp();
      if (!kPair && plan.splits > 1)
        for (int part = 0; part < kM / kPart; ++part) {
          cluster_sync();
          cluster_sync();
        }
    }
  } else {
    wait_for_previous();
    let_next_begin();
    const int half = warp / 4;
    for (unsigned i = blockIdx.x / cluster; i < tiles; i += clusters) {
      const Tile tile = tile_at<kM, kPair>(plan, i, rank);
      int sum[kM / 2];
      const auto release = [&](int stage) {
        if (kPair ? lane < 2 : lane == 0) {
          if constexpr (kPair)
            barrier_arrive_at(&shared.empty[stage], lane);
          else
            barrier_arrive(&shared.empty[stage]);
        }
      };
      int before = 0;
      for (int step = begin; step < end; ++step) {
        barrier_wait(&shared.full[place.stage], place.phase);
        const uint64_t left = descriptor(shared.w[place.stage] + half * 64 * kStep);
        const uint64_t right = descriptor(shared.x[place.stage]);
        products_begin();
#pragma unroll
        for (int k = 0; k < kStep / 32; ++k) multiply_add<kM>(sum, left + 2 * k, right + 2 * k, step > begin || k > 0);
        products_end();
        products_wait<1>();
        if (step > begin) release(before);
        before = place.stage;
        place.advance();
      }
      products_wait<0>();
      release(before);

      const int64_t n = tile.n + lane * 4;
      float w_scale[4], bias[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        w_scale[j] = n + j < a.N ? a.w_scale[n + j] : 0.0f;
        bias[j] = a.bias && n + j < a.N ? a.bias[n + j] : 0.0f;
      }
#pragma unroll
      for (int part = 0; part < kM / kPart; ++part) {
        const int column = half * 64 + warp % 4 * 16 + lane / 4, row = lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < 32; ++j) shared.sums[j / 4 * 8 + row + j % 2][column + j % 4 / 2 * 8] = sum[part * 32 + j];
        const bool alone = kPair || plan.splits == 1;
        alone ? consumers_sync() : cluster_sync();
        for (int r = kPair ? warp : warp * plan.splits + rank; r < kPart; r += kPair ? 8 : 8 * plan.splits) {
          const int64_t m = tile.m + part * kPart + r;
          if (m >= a.M) break;
          int4 all = *reinterpret_cast<const int4*>(&shared.sums[r][lane * 4]);
          for (unsigned other = 1; !kPair && other < plan.splits; ++other) {
            const int4 more = load_from(&shared.sums[r][lane * 4],
                                        rank + other < plan.splits ? rank + other : rank + other - plan.splits);
            all = {all.x + more.x, all.y + more.y, all.z + more.z, all.w + more.w};
          }
          const float x_scale = a.x_scale[m];
          const int sums[4] = {all.x, all.y, all.z, all.w};
          float y[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            y[j] = __fmul_rn(static_cast<float>(sums[j]), __fmul_rn(x_scale, w_scale[j]));
            if (a.bias) y[j] = __fadd_rn(y[j], bias[j]);
          }
          put_four(a, m, n, y);
        }
        alone ? consumers_sync() : cluster_sync();
      }
    }
  }
  cluster_sync();  // nobody goes while another block may still reach into its memory
#endif
}

template <int kM, bool kPair>
Status start(const Int8MatmulArgs& a, Stream stream, unsigned splits) {
  CUtensorMap x_map, w_map;
  Status made = describe_bytes(x_map, a.x, a.M, a.K, a.x_stride, kPair ? kM / 2 : kM);
  if (made.ok()) made = describe_bytes(w_map, a.weight, a.N, a.K, a.K, kN);
  constexpr int kBytes = sizeof(Shared<kM>);
  if (made.ok())
    made = status(cudaFuncSetAttribute(wgmma_kernel<kM, kPair>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  if (!made.ok()) return made;
  const unsigned width = kPair ? 2 * kN : kN, cluster = kPair ? 2 : splits;
  const Plan plan{static_cast<unsigned>((a.M + kM - 1) / kM), static_cast<unsigned>((a.N + width - 1) / width), splits};
  const unsigned most = gpu().processors / cluster, tiles = plan.row_tiles * plan.column_tiles;

  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3((tiles < most ? tiles : most) * cluster);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kBytes;
  config.stream = native(stream);
  config.attrs = attributes;
  config.numAttrs = 2;
  return status(cudaLaunchKernelEx(&config, wgmma_kernel<kM, kPair>, x_map, w_map, a, plan));
}

// Blocks that share a tile's K, so that few tiles keep the whole chip busy; each has 4 steps at least.
unsigned splits_for(int64_t tiles, int64_t K) {
  unsigned splits = 1;
  while (splits < 8 && tiles * splits * 2 <= gpu().processors && K / kStep / (splits * 2) >= 4) splits *= 2;
  return splits;
}

}  // namespace

bool supports_wgmma(const Int8MatmulArgs& a) {
  return gpu().sm == 90 && wide(a) && a.K > 0 && a.M < int64_t{1} << 30 && a.N < int64_t{1} << 30;
}

Status wgmma(const Int8MatmulArgs& a, Stream stream) {
  const int64_t columns = (a.N + kN - 1) / kN;
  if (a.M <= 64) return start<64, false>(a, stream, splits_for(columns, a.K));
  if (a.M <= 128) return start<128, false>(a, stream, splits_for(columns, a.K));
  return start<256, true>(a, stream, 1);
}
#else
bool supports_wgmma(const Int8MatmulArgs&) { return false; }

Status wgmma(const Int8MatmulArgs&, Stream) { return {"int8_matmul: built without sm_90a"}; }
#endif

}  // namespace nybble::cuda::int8
