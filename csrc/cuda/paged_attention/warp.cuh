// Attention of a few queries over paged keys and values, for tensor cores. A warp has its own range of tiles
// (plan.cuh), its own ring of stages in shared memory, its own running maximum. Copying may be shared (loader.cuh), and
// a range, whose parts are then added up here (join.cuh).
//
//   stage ring   tile j is computed    j + 1 ... have arrived or are on their way    the stage of j - 1 is filled anew
//   scores       S [tokens, rows] = K q^T        rows of queries are the 8 columns of each product
//   weights      P = exp2(S - largest); the turned registers of S are the second operand of
//   sums         O [channels, rows] += V^T P
#pragma once
#include "cuda/paged_attention/join.cuh"
#include "cuda/paged_attention/products.cuh"

namespace nybble::cuda::paged {

// Of `count` lengths those of a lane; of one, every lane has it.
template <typename Length, int kLengths>
__device__ inline void read_every_32nd(int64_t (&to)[kLengths], Length* lengths, int64_t count) {
#pragma unroll
  for (int i = 0; i < kLengths; ++i) {
    const int b = kLengths == 1 ? 0 : static_cast<int>(threadIdx.x % 32) + 32 * i;
    to[i] = b < count ? lengths[b] : 0;
  }
}

template <typename S, typename KeyStorage, typename ValueStorage, int kTeam, bool kJoins, bool kOne, bool kBent>
__global__ void __launch_bounds__(256, 1)
    paged_attention_kernel(const __grid_constant__ PagedAttentionArgs a, const __grid_constant__ Plan plan) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  extern __shared__ __align__(128) char shared[];
  constexpr int D = S::D, kHalves = S::kTokens / 16;
  constexpr bool kAhead = S::kAhead && !kJoins;
  constexpr bool kHolds = (S::kWindow || kTeam > 1) && D <= 128;  // there are registers for the next sequence's queries
  constexpr bool kEarly = S::kWindow || D <= 128;                 // and for the first one's while a guess is tried
  using T = typename KeyStorage::T;
  // Weights times scales stay in the range of halves: of 8-bit codes a scale is up to 512, of 4-bit ones up to 8192.
  constexpr float kLift = ValueStorage::kScaled ? 3.0f : 0.0f;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  // Of one sequence: on their way before anything is worked out from them.
  int64_t early = 0;
  PageWindow pages;
  if constexpr (kOne) {
    asm volatile("ld.global.b64 %0, [%1];" : "=l"(early) : "l"(a.lengths) : "memory");
    if (S::kWindow && a.block_table != nullptr && a.n <= 32) pages.load(a, 0, 0);
  }
  int range, virtual_head;
  if constexpr (kOne) {
    range = static_cast<int>(blockIdx.x / plan.heads), virtual_head = static_cast<int>(blockIdx.x % plan.heads);
  } else {
    const int64_t worker = kJoins ? blockIdx.x : static_cast<int64_t>(blockIdx.x) * plan.warps + warp;
    range = static_cast<int>(worker / plan.heads), virtual_head = static_cast<int>(worker % plan.heads);
    if (range >= (a.invariant ? plan.ranges * a.B : plan.ranges)) {
      wait_for_previous();
      let_next_begin();
      return;
    }
  }
  const int head = virtual_head / plan.blocks_of_head, first_row = virtual_head % plan.blocks_of_head * kRows;

  char* ring = shared + warp * S::kRing;
  char* room = shared + plan.warps * S::kRing + warp * S::kQuery;
  __shared__ uint64_t barriers[2 * S::kStages];  // full, then empty
  if constexpr (kTeam > 1) {
    if (threadIdx.x < 2 * S::kStages)
      init_barrier(shared_address(barriers + threadIdx.x), threadIdx.x < S::kStages ? 32 * kTeam : kTeam);
    __syncthreads();
  }
  Loader<S, kTeam, kOne> loader(a, plan, head, shared_address(ring), shared_address(barriers));
  __shared__ float2 states[kShare][kRows];
  static_assert(S::kQuery >= Join<ValueStorage, D, kOne>::kBytes, "what warps add up takes the room of queries");
  Join<ValueStorage, D, kOne> join(a, plan, virtual_head, shared + plan.warps * S::kRing, states);
  RawQueries<D> raw;
  // Tiles asked for before what was guessed is known to be so; a team's barriers would not take it back.
  constexpr int kFirst = kTeam == 1 ? 1 : 0;
  int more = S::kStages - 1 - kFirst;
  Work work{};
  int64_t known = 0;  // the next sequence's length
  // Lengths and pages are guessed to be what they are before the last kernel has ended, and read again after.
  const int64_t sequences = kOne ? 1 : a.B;
  constexpr int kLengths = kOne ? 1 : 4;  // of a lane, every 32nd
  bool sure = sequences > 32 * kLengths;
  if (sure) {
    wait_for_previous();
    let_next_begin();
    // The block table on its way while the lengths are.
    if (a.block_table != nullptr && a.B * a.block_table_stride <= 1024 && lane * 32 < a.B * a.block_table_stride)
      prefetch(a.block_table + lane * 32);
  }
  while (true) {
    int64_t lengths[kLengths] = {}, lengths_now[kLengths] = {};
    // Through L1, as all that follows from them: what another warp left there is not newer than this.
    if (kOne)
      lengths[0] = early;
    else if (!sure)
      read_every_32nd(lengths, a.lengths, sequences);
    work = work_of(a, plan, range, kOne);
    loader.begin(work, sure ? PageWindow{} : pages);
    const int page = loader.page();
    int page_now = page;
    if constexpr (kOne)
      if (!sure) loader.ask();
    QueryRows rows(a, plan, work.b, head, first_row);
    if constexpr (kOne) rows.keep();
    if (!sure) {
      wait_for_previous();
      if (!kOne) let_next_begin();
      read_every_32nd(lengths_now, static_cast<const volatile int64_t*>(a.lengths), sequences);
      page_now = loader.read_page();
    }
    // Asked for before keys and values, behind which they would wait.
    known = kOne && !sure ? lengths_now[0] : a.lengths[work.b];
    if constexpr (kEarly) raw.load(rows, plan, first_row);
    if constexpr (kJoins) join.ask(work.b);
#pragma unroll 1
    for (int i = 0; i < kFirst; ++i) loader.next();
    bool same = page_now == page;
#pragma unroll
    for (int i = 0; i < kLengths; ++i) same = same && lengths_now[i] == lengths[i];
    if (sure || __all_sync(0xffffffffu, same)) break;
    wait_for_copies<0>();
    __threadfence();
    sure = true;
  }
  // What lays queries out is long where they are rotated.
  if constexpr (KeyStorage::kScaled && !kJoins)
    for (; more > 0; --more) loader.next();

  const Places<S> places;
  static_assert(S::Keys::kBytes % S::Values::kAligned == 0 && S::kStage % S::Keys::kAligned == 0 &&
                    S::kStage % S::Values::kAligned == 0,
                "tiles begin where places of units may be exchanged");
  int stage = 0, turn = 0;
  bool asked = kEarly;
  unsigned bit = 1;
  int before = work.cuts.begin(range) - work.tile;  // tiles of the sequences before work.b
  for (int left = work.count; left > 0; ++work.b, work.tile = 0) {
    const int length = clamped(plan, known);
    const int64_t next = min(work.b + 1, sequences - 1);  // what is needed of it is asked for long before
    if (!kOne && next > work.b) known = a.lengths[next];
    const Tiles tiles = tiles_of(a, plan, length);
    const int first = tiles.first + work.tile, last = min(tiles.last, first + left), these = before;
    before += tiles.last - tiles.first;
    const bool none = first >= last;
    if (!asked) {
      raw.load(a, plan, work.b, head, first_row);
      if constexpr (kJoins) join.ask(work.b);
    }
    asked = kHolds;
    Queries<KeyStorage, D> q;
    Part part{work.b, 0, 0, range};
    if (!none) {
      left -= last - first;
      q.load(raw, a, plan, head, first_row, length, room);
      if constexpr (kJoins) {
        if constexpr (kOne) {
          part.count = work.cuts.size > 0 ? plan.ranges : work.cuts.larger;
        } else {
          part.first = work.cuts.range_of(these);
          part.count = work.cuts.range_of(before - 1) - part.first + 1;
        }
        join.begin(part);
      }
    }
    if (kHolds && !kOne && left > 0) {
      raw.load(a, plan, next, head, first_row);
      if constexpr (kJoins) join.ask(next);
    }
    if (none) continue;
    const Tiles share = kJoins ? share_of(plan, {first, last}) : Tiles{first, last};
    const int begin = share.first, end = share.last;
    for (; more > 0; --more) loader.next();
    Sums<ValueStorage, D> sums;
    // `base`: what comes off a score before it is an exponent.
    float largest[2] = {-INFINITY, -INFINITY}, base[2] = {}, weight[2] = {};
    // Tokens that all queries see.
    const int seen_from = a.window > 0 && a.window < length ? length - static_cast<int>(a.window) : 0;
    const int seen_to = length - static_cast<int>(a.T);

    float scores[kHalves][4];
    const auto find = [&](int of_stage) {
      const char* at = ring + of_stage * S::kStage;
      const unsigned keys = shared_address(at) + places.keys;
#pragma unroll
      for (int i = 0; i < kHalves; ++i) find_scores<S, KeyStorage>(scores[i], keys, at + places.key_scales, 16 * i, q);
    };
    if constexpr (kAhead) {
      loader.wait(stage, turn);
      find(stage);
    }
    for (int tile = begin; tile < end; ++tile) {
      if constexpr (!kAhead) {
        loader.wait(stage, turn);
        if (kOne && tile + 1 == end) let_next_begin();
        find(stage);
      }
      loader.next();  // into the stage of the tile before, which every lane has left; meanwhile the products are made

      const int token = tile * S::kTokens + g;  // of scores[0][0], [0][1]; [.][2] and [.][3] are 8 further, [1] 16
      if (kBent && a.softcap > 0) {
#pragma unroll
        for (int i = 0; i < kHalves; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) scores[i][j] = tanhf(scores[i][j] * q.cap[j % 2]) * (a.softcap * kLog2);
      } else {
#pragma unroll
        for (int i = 0; i < kHalves; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) scores[i][j] *= q.factor[j % 2];
      }
      if (kBent && a.slopes != nullptr) {
#pragma unroll
        for (int i = 0; i < kHalves; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j)
            scores[i][j] += q.slope[j % 2] * static_cast<float>(token + 16 * i + j / 2 * 8 - q.place[j % 2]);
      }
      if (tile * S::kTokens < seen_from || tile * S::kTokens + S::kTokens - 1 > seen_to) {
#pragma unroll
        for (int i = 0; i < kHalves; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const unsigned back = q.place[j % 2] - (token + 16 * i + j / 2 * 8);  // of later ones far beyond any window
            if (back >= plan.window) scores[i][j] = -INFINITY;
          }
      }

      float top[2] = {largest[0], largest[1]};
#pragma unroll
      for (int i = 0; i < kHalves; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) top[j % 2] = fmaxf(top[j % 2], scores[i][j]);
      if (__any_sync(0xffffffffu, top[0] > largest[0] || top[1] > largest[1])) {  // rare after the first tiles
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          for (int offset = 4; offset < 32; offset *= 2)
            top[c] = fmaxf(top[c], __shfl_xor_sync(0xffffffffu, top[c], offset));
          const float fade = largest[c] == top[c] ? 1.0f : exp2f(largest[c] - top[c]);
          largest[c] = top[c];
          base[c] = top[c] == -INFINITY ? 0.0f : top[c] - kLift;
          weight[c] *= fade;
          sums.fade(c, fade);
        }
      }
      const bool wraps = stage + 1 == S::kStages;
      const int next_stage = wraps ? 0 : stage + 1, next_turn = turn + (wraps ? 1 : 0);
      if (kAhead && (tile + 1 < end || left > 0)) loader.wait(next_stage, next_turn);
      unsigned weights[kHalves][2];
#pragma unroll
      for (int i = 0; i < kHalves; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          scores[i][j] = exp2_approximate(scores[i][j] - base[j % 2]);
          weight[j % 2] += scores[i][j];
        }
        weights[i][0] = transposed(pack<T>(scores[i][0], scores[i][1]));
        weights[i][1] = transposed(pack<T>(scores[i][2], scores[i][3]));
      }
      // The next tile's scores (of no meaning where there is none) have nothing to do with what follows: each of the
      // two is done while the other waits.
      if constexpr (kAhead) find(next_stage);
      const char* at = ring + stage * S::kStage + S::Keys::kBytes;
#pragma unroll
      for (int i = 0; i < kHalves; ++i)
        add_values<S, ValueStorage>(sums, shared_address(at) + places.values, at + places.value_scales, 16 * i,
                                    weights[i]);
      loader.release(stage);
      stage = next_stage, turn = next_turn;
    }

    float spoilt = 0.0f;
    if (begin < end) {
      if (__any_sync(0xffffffffu, loader.missing(bit))) spoilt = NAN;
      bit = __funnelshift_l(bit, bit, 1);
    }
#pragma unroll
    for (int c = 0; c < 2; ++c)
      for (int offset = 4; offset < 32; offset *= 2) weight[c] += __shfl_xor_sync(0xffffffffu, weight[c], offset);
    const float2 state[2] = {{largest[0] - kLift, weight[0] + spoilt}, {largest[1] - kLift, weight[1] + spoilt}};
    if constexpr (kJoins) {
      join.end(part, state, [&](int c, int k, int high) { return sums.get(k, c, high); });
    } else {
      const int64_t slot = slot_of(a, range, work.b), row0 = static_cast<int64_t>(head) * plan.rows + first_row;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int r = 2 * t + c;
        const bool real = first_row + r < plan.rows;
        float* out = partial_values(a, slot, row0 + r);
#pragma unroll
        for (int k = 0; k < D / 16; ++k)
#pragma unroll
          for (int high = 0; high < 2; ++high) {
            const float value = sums.get(k, c, high);
            if (real) out[ValueStorage::channel_of_value(k, g, high)] = value;
          }
        if (real && g == 0) *partial_state(a, plan, slot, row0 + r) = state[c];
      }
    }
    if constexpr (kOne) break;
  }
  if constexpr (kJoins)
    if (range == 0 && (sequences > 1 || work.count == 0)) join.write_empty();
#endif
}

template <typename KeyStorage, typename ValueStorage, int D>
Status launch_warps(const PagedAttentionArgs& a, const Plan& plan, Stream stream) {
  using S = Shape<KeyStorage, ValueStorage, D>;
  // What is left out where it can be: `bent` scores of a loop that with them does not fit where instructions are
  // nearest, and other sequences of short work, which fetches every instruction to use it once. Not of heads seldom
  // met.
  constexpr bool kUsual = D == 64 || D == 128;
  const bool bent = a.softcap > 0 || a.slopes != nullptr || !kUsual;
  auto kernel = bent ? paged_attention_kernel<S, KeyStorage, ValueStorage, 1, false, false, true>
                     : paged_attention_kernel<S, KeyStorage, ValueStorage, 1, false, false, !kUsual>;
  if constexpr (D <= 128)
    if (plan.blocks > 0)
      kernel = a.B > 1 || bent ? paged_attention_kernel<S, KeyStorage, ValueStorage, 1, true, false, true>
                               : paged_attention_kernel<S, KeyStorage, ValueStorage, 1, true, kUsual, !kUsual>;
  if constexpr (S::kTeam > 1)
    if (plan.team && (!bent || !kUsual))
      kernel = paged_attention_kernel<S, KeyStorage, ValueStorage, S::kTeam, false, false, !kUsual>;
  const int bytes = plan.warps * S::kWarpBytes;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return status(error);
  const int64_t blocks = plan.blocks > 0 ? static_cast<int64_t>(plan.blocks) * plan.heads
                                         : (workers_of(a, plan) + plan.warps - 1) / plan.warps;
  if (blocks > 0x7fffffff) return {"paged_attention: too many sequences and heads"};
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(32 * plan.warps), bytes, stream, gpu().sm >= 90, a,
                plan);
}

template <typename KeyStorage, typename ValueStorage, int D>
constexpr Kernel warp_kernel() {
  using S = Shape<KeyStorage, ValueStorage, D>;
  return {launch_warps<KeyStorage, ValueStorage, D>, S::kTokens == 16 ? 4 : 5, S::kWarpBytes};
}

}  // namespace nybble::cuda::paged
