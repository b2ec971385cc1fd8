// Attention on tensor cores (sm_80 and later), float16 and bfloat16, with a running softmax in float32.
//
// A block has kRows rows of one KV head, a warp kTiles tiles of 16 of them, and walks the keys in tiles of 64:
//
//        rows          keys of a tile, then the next           values of a tile
//   [kRows x D] q      [64 x D]    copied while the values     [64 x D]   copied while the scores
//                                  are multiplied                         are multiplied
//
// The scores of a warp stay in its registers, become weights there, and are the left side of the product with the
// values. A row of a tile is D halves in chunks of 16 bytes, chunk c at c ^ (row % 8): eight rows at once meet no bank
// twice.
#include <cmath>

#include "cuda/attention/softmax.cuh"
#include "cuda/common/async_copy.cuh"
#include "cuda/common/launch.cuh"

namespace nybble::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kKeys = 64;

// Byte offset of a chunk in a tile.
template <int kD>
__device__ int chunk_at(int row, int chunk) {
  return row * kD * 2 + ((chunk ^ (row % 8)) * 16);
}

// Copies kRows rows of D channels, `stride` numbers apart; zeros from row `count` on and past D.
template <int kRows, int kD, typename T>
__device__ void copy_tile(uint32_t to, const T* from, int64_t stride, int count, int D) {
  constexpr int kChunks = kD / 8, kStep = kThreads / kChunks;
  const int chunk = threadIdx.x % kChunks, first = threadIdx.x / kChunks;
  const T* row = from + first * stride + chunk * 8;
  to += chunk_at<kD>(first, chunk);
#pragma unroll
  for (int i = 0; i < kRows; i += kStep, row += kStep * stride)  // i is a multiple of 4, and first < 4 where not of 8
    copy_async<16>((to ^ i % 8 * 16) + i * kD * 2, row, first + i < count && chunk * 8 < D);
}

template <typename T, int kD, int kTiles>
__global__ void __launch_bounds__(kThreads, kTiles == 1 && kD <= 128 ? 3 : 2)
    mma_kernel(const AttentionArgs a,  // the op's arguments
               const Parts parts,      // what blocks that share keys leave
               int problems,           // B Hk
               int blocks,             // pieces of a problem's rows
               float factor) {         // scale times log2(e)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  constexpr int kRows = kWarps * kTiles * 16;
  extern __shared__ __align__(512) unsigned char shared[];
  const uint32_t q_tile = shared_address(shared), k_tile = q_tile + kRows * kD * 2, v_tile = k_tile + kKeys * kD * 2;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  wait_for_previous();
  let_next_begin();
  const AttentionRows rows(a, blockIdx.x % problems);
  // Under a causal mask the last rows have most to do: they begin first.
  const int piece = blockIdx.x / problems, part = piece % parts.count;
  const int row0 = (blocks - 1 - piece / parts.count) * kRows, row_end = min(rows.count, row0 + kRows);
  const int D = static_cast<int>(a.D);
  int from, to;
  rows.keys_of(a, row0, row_end, kKeys, part, parts.count, from, to);
  const int all_from = rows.first(a, row_end - 1), all_to = rows.last(a, row0);  // the keys that every row sees
  const T *keys = rows.keys<T>(a), *values = rows.values<T>(a);
  const auto copy_keys = [&](int s) {
    copy_tile<kKeys, kD>(k_tile, keys + s * a.k_stride_s, a.k_stride_s, to - s, D);
    commit_copies();
  };
  const auto copy_values = [&](int s) {
    copy_tile<kKeys, kD>(v_tile, values + s * a.v_stride_s, a.v_stride_s, to - s, D);
    commit_copies();
  };

  constexpr int kChunks = kD / 8;
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const bool there = row0 + row < row_end && chunk * 8 < D;
    copy_async<16>(q_tile + chunk_at<kD>(row, chunk), rows.query<T>(a, there ? row0 + row : 0) + chunk * 8, there);
  }
  commit_copies();  // by itself: with no key to copy, what is not committed is not waited for
  if (from < to) copy_keys(from);

  const int warp_row = warp * kTiles * 16;  // the warp's first row in the tile
  const bool busy = row0 + warp_row < row_end;
  // Where a lane's rows of fragments lie. Two chunks on is 32 bytes on, but for the order of the chunks: so ^, not +.
  constexpr int kSixteenRows = 16 * kD * 2;
  uint32_t q_at = q_tile + chunk_at<kD>(warp_row + lane % 16, lane / 16);
  uint32_t k_at = k_tile + chunk_at<kD>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  uint32_t v_at = v_tile + chunk_at<kD>(lane % 16, lane / 16);
  Softmax softmax[kTiles];
  float out[kTiles][kD / 8][4] = {};

  for (int s = from; s < to; s += kKeys) {
    wait_for_copies<0>();
    __syncthreads();  // the keys are there, and every warp is done with the values before
    copy_values(s);
    // As if they had changed: else the compiler holds what follows from them in registers that it then lacks.
    asm volatile("" : "+r"(q_at), "+r"(k_at), "+r"(v_at));
    float scores[kTiles][kKeys / 8][4] = {};
#pragma unroll
    for (int d = 0; busy && d < kD / 16; ++d) {
      uint32_t q[kTiles][4];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) load_matrices<false>(q[m], (q_at ^ 32 * d) + m * kSixteenRows);
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t k[4];
        load_matrices<false>(k, (k_at ^ 32 * d) + n * kSixteenRows);
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          multiply_add<T>(scores[m][2 * n], q[m], k[0], k[1]);
          multiply_add<T>(scores[m][2 * n + 1], q[m], k[2], k[3]);
        }
      }
    }
    wait_for_copies<0>();
    __syncthreads();  // the values are there, and every warp is done with the keys
    if (s + kKeys < to) copy_keys(s + kKeys);

    if (!busy) continue;
    uint32_t weights[kTiles][kKeys / 16][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      if (s < all_from || s + kKeys > all_to)
        hide(a, rows, row0 + warp_row + m * 16 + lane / 4, s + lane % 4 * 2, scores[m]);
      float fade[2];
      softmax[m].step(scores[m], factor, fade);
      scale_rows(out[m], fade);
      pack_weights<T>(scores[m], weights[m]);
    }
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n)
#pragma unroll
      for (int d = 0; d < kD / 16; ++d) {
        uint32_t v[4];
        load_matrices<true>(v, (v_at ^ 32 * d) + n * kSixteenRows);
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          multiply_add<T>(out[m][2 * d], weights[m][n], v[0], v[1]);
          multiply_add<T>(out[m][2 * d + 1], weights[m][n], v[2], v[3]);
        }
      }
  }
  wait_for_copies<0>();
  __syncthreads();  // q of a row tile that saw no key may still be on its way

  if (parts.count > 1) {
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = row0 + warp_row + m * 16 + 8 * r + lane / 4;
        store_part(parts, part, row < row_end ? rows.place(a, row) : -1, softmax[m], r, a.scale, out[m], D);
      }
    return;
  }
  // Through the warp's own rows of q's tile, so that whole rows are written.
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float f = softmax[m].finish(r);
#pragma unroll
      for (int d = 0; d < kD / 8; ++d)
        *reinterpret_cast<uint32_t*>(shared + chunk_at<kD>(warp_row + m * 16 + 8 * r + lane / 4, d) + lane % 4 * 4) =
            pack<T>(out[m][d][2 * r] * f, out[m][d][2 * r + 1] * f);
    }
  __syncwarp();
#pragma unroll 4
  for (int i = lane; i < kTiles * 16 * kChunks; i += 32) {
    const int row = warp_row + i / kChunks, chunk = i % kChunks;
    if (row0 + row < row_end && chunk * 8 < D)
      *reinterpret_cast<uint4*>(static_cast<T*>(a.o) + rows.place(a, row0 + row) * D + chunk * 8) =
          *reinterpret_cast<const uint4*>(shared + chunk_at<kD>(row, chunk));
  }
#endif
}

// Two tiles of rows a warp share each fragment of keys and values; with few rows, smaller blocks leave room for more of
// them, and so for more copies under way.
int64_t rows_of(const AttentionArgs& a) { return a.T * (a.H / a.Hk); }
int64_t rows_of_block(const AttentionArgs& a) { return a.D <= 128 && rows_of(a) > 64 ? 128 : 64; }
int64_t pieces_of(const AttentionArgs& a) {
  return a.B * a.Hk * ((rows_of(a) + rows_of_block(a) - 1) / rows_of_block(a));
}
int64_t parts_of(const AttentionArgs& a) {
  const int64_t blocks_of_processor = a.D <= 128 && rows_of_block(a) == 64 ? 3 : 2;
  return attention_parts(a, pieces_of(a), blocks_of_processor * gpu().processors, kKeys);
}

template <typename T, int kD, int kTiles>
Status start(const AttentionArgs& a, Stream stream) {
  constexpr int kShared = (kWarps * kTiles * 16 + 2 * kKeys) * kD * 2;
  const int64_t pieces = pieces_of(a), problems = a.B * a.Hk, parts = parts_of(a);
  if (pieces > 0x7fffffff / parts) return {"attention: more than 2^31 - 1 blocks"};
  const auto kernel = mma_kernel<T, kD, kTiles>;
  const Status room = status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared));
  if (!room.ok()) return room;
  return launch(kernel, static_cast<unsigned>(pieces * parts), kThreads, kShared, stream, gpu().sm >= 90, a,
                parts_at(a.scratch, a.B * a.T * a.H, parts, a.D), problems, pieces / problems,
                a.scale * 1.4426950408889634f);
}

template <typename T>
Status start(const AttentionArgs& a, Stream stream) {
  const bool few = rows_of_block(a) == 64;
  if (a.D <= 64) return few ? start<T, 64, 1>(a, stream) : start<T, 64, 2>(a, stream);
  if (a.D <= 128) return few ? start<T, 128, 1>(a, stream) : start<T, 128, 2>(a, stream);
  return start<T, 256, 1>(a, stream);
}

bool supports(const AttentionArgs& a) { return gpu().sm >= 80 && supports_tensor_cores(a); }

int64_t scratch_bytes(const AttentionArgs& a) { return parts_bytes(a.B * a.T * a.H, parts_of(a), a.D); }

Status run(const AttentionArgs& a, Stream stream) {
  const Status started = a.dtype == DType::f16 ? start<__half>(a, stream) : start<__nv_bfloat16>(a, stream);
  const int64_t rows = a.B * a.T * a.H, parts = parts_of(a);
  if (!started.ok() || parts == 1) return started;
  return join_parts(parts_at(a.scratch, rows, parts, a.D), a.o, a.dtype, rows, a.D, stream);
}

}  // namespace

bool supports_tensor_cores(const AttentionArgs& a) {
  const auto whole = [](const void* p, int64_t b, int64_t s, int64_t h) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && b % 8 == 0 && s % 8 == 0 && h % 8 == 0;
  };
  if (a.dtype == DType::f32) return false;
  if (a.D % 8 != 0 || a.D > 256) return false;              // rows of 16-byte chunks; registers for the sums
  if (!(a.scale > 0) || std::isinf(a.scale)) return false;  // the largest score is looked for before the scale
  return whole(a.q, a.q_stride_b, a.q_stride_t, a.q_stride_h) && whole(a.k, a.k_stride_b, a.k_stride_s, a.k_stride_h) &&
         whole(a.v, a.v_stride_b, a.v_stride_s, a.v_stride_h);
}

const AttentionKernel attention_mma{supports, scratch_bytes, run};

}  // namespace nybble::cuda
