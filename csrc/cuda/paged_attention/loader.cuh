// Keys and values on their way to shared memory: the sizes of a ring of stages, and who copies what into it.
#pragma once
#include "cuda/common/async_copy.cuh"
#include "cuda/common/wide.cuh"
#include "cuda/paged_attention/plan.cuh"
#include "cuda/paged_attention/storage.cuh"

namespace nybble::cuda::paged {

// Sizes of one kernel, known to the host too.
template <typename KeyStorage, typename ValueStorage, int kD>
struct Shape {
  static constexpr int D = kD;
  static constexpr int kTokens = D / KeyStorage::kUnit > 8 || D > 128 ? 16 : 32;  // 16 where rows or sums are long
  // Warps that copy together. On an H200, 64 x 4096 tokens, D = 128: 8-bit codes 146 us together, 150 alone; 4-bit
  // codes, which have more to compute, 109 and 97; numbers and float8 the same.
  static constexpr int kTeam = KeyStorage::kTeam;
  static constexpr bool kWindow = !KeyStorage::kScaled && !ValueStorage::kScaled;  // 32 pages known ahead, or a tile's
  using Keys = Tile<KeyStorage, D, kTokens>;
  using Values = Tile<ValueStorage, D, kTokens>;
  static constexpr int kStage = Keys::kBytes + Values::kBytes;
  static constexpr int kQuery = kRows * D * 2;
  static constexpr int kWanted = (231424 / 8 - kQuery) / kStage;
  static constexpr int kStages = kWanted < 3 ? 3 : kWanted > 5 ? 5 : kWanted;
  // The next tile's scores are found beside this one's values: 4-bit codes 89 us against 93, 8-bit ones 140.5 and
  // 139.5.
  static constexpr bool kAhead = KeyStorage::kUnit == 32 && D <= 128;
  static constexpr int kRing = kStages * kStage;
  static constexpr int kWarpBytes = kRing + kQuery;
};

// 32 neighbouring entries of a sequence's row of the block table, one a lane. Read past L1: they may be guesses, read
// again later.
struct PageWindow {
  int64_t b = -1;
  int first = 0, page = 0;

  __device__ int read(const PagedAttentionArgs& a) const {
    const int i = first + static_cast<int>(threadIdx.x % 32);
    if (b < 0 || i >= a.n) return -1;
    return *static_cast<const volatile int32_t*>(a.block_table + b * a.block_table_stride + i);
  }
  __device__ void load(const PagedAttentionArgs& a, int64_t sequence, int from) {
    b = sequence;
    first = from;
    page = read(a);
  }
};

// Where a lane finds its pieces of keys or of values, and where they go in a stage. The rows of a team's kTeam heads
// are dealt out in units to the lanes of its warps in turn: neighbours read neighbours.
template <typename S, typename Tile, int kTeam>
class Source {
 public:
  __device__ Source(const KvPages& kv, const Reach& reach, int first_head, int member) : member_(member) {
    const int lane = threadIdx.x % 32;
    const uint64_t head = first_head + head_of(0), scales_head = first_head + lane % kTeam;
    data_ = static_cast<const char*>(kv.data) + (head * reach.head + kSteady * (lane % kUnits)) * 16;
    scales_ = static_cast<const char*>(kv.scales) + scales_head * reach.scales_head * Tile::kScaleBytes;
  }

  // A token's row on its way to L2, for a warp on its own.
  __device__ void ask(const Reach& reach, int page, int slot) const {
    static_assert(kTeam == 1 && kSteady);
    const unsigned at = page * reach.page + slot * reach.slot;
#pragma unroll
    for (int i = 0; i < kUnits * 16; i += 128)
      prefetch(data_ + (static_cast<int64_t>(at) - threadIdx.x % kUnits) * 16 + i);
  }
  // `page`, `slot`: of the token that this lane stands for; not `there`: zeros.
  __device__ void copy(const Reach& reach, int page, int slot, bool there, unsigned to) const {
    constexpr unsigned kAbsent = ~0u;
    constexpr int kPieces = S::kTokens * kUnits / 32;  // of a lane
    static_assert(S::kTokens * kUnits % 32 == 0, "every lane copies alike");
    const int lane = threadIdx.x % 32;
    const unsigned mine = there ? page * reach.page + slot * reach.slot : kAbsent;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int row = row_of(i), token = row / kTeam, unit = (i * 32 + lane) % kUnits;
      const unsigned from = __shfl_sync(0xffffffffu, mine, token);
      copy_async<16>(to + row % kTeam * S::kRing + Tile::place(token, unit),
                     data_ + (from + (kSteady ? 0ull : unit)) * 16ull, from != kAbsent);
    }
    if constexpr (Tile::kScaleBytes > 0) {
      const unsigned scale = there ? page * reach.scales_page + slot * reach.scales_slot : kAbsent;
      const int row = member_ * 32 + lane, token = row / kTeam;
      const unsigned from = kTeam == 1 ? scale : __shfl_sync(0xffffffffu, scale, token);
      if (token < S::kTokens)
        copy_async<Tile::kScaleBytes>(to + row % kTeam * S::kRing + Tile::scales() + token * Tile::kScaleBytes,
                                      scales_ + static_cast<uint64_t>(from) * Tile::kScaleBytes, from != kAbsent);
    }
  }

 private:
  static constexpr int kUnits = Tile::kUnits;
  static constexpr bool kSteady = 32 % kUnits == 0;  // a lane's pieces are the same unit of different tokens
  static_assert(kSteady || kTeam == 1, "and of the same head");

  // Row, of kTokens * kTeam, that piece i belongs to: first all heads of a token.
  __device__ int row_of(int i) const {
    return ((i * kTeam + member_) * 32 + static_cast<int>(threadIdx.x % 32)) / kUnits;
  }
  __device__ int head_of(int i) const { return row_of(i) % kTeam; }

  const char *data_, *scales_;
  const int member_;
};

// Fills stages with tiles, one after the other, across sequences. A team's warps fill them together, each its share of
// every head's stage: a tile may be used when `full` says that all have arrived, a stage filled again when `empty` says
// that all have done with it. A warp on its own needs no barriers.
template <typename S, int kTeam, bool kOne>
class Loader {
 public:
  // `ring`: this warp's stages; `barriers`: of the team.
  __device__ Loader(const PagedAttentionArgs& a, const Plan& plan, int head, unsigned ring, unsigned barriers)
      : a_(a),
        plan_(plan),
        member_(threadIdx.x / 32 % kTeam),
        keys_(a.keys, plan.keys, head - member_, member_),
        values_(a.values, plan.values, head - member_, member_),
        ring_(ring - member_ * S::kRing),
        barriers_(barriers) {}

  // Before the first tile. `pages`: some, perhaps guesses.
  __device__ void begin(const Work& work, const PageWindow& pages) {
    b_ = work.b;
    left_ = work.count;
    stage_ = turn_ = tile_ = end_ = 0;
    window_ = pages;
    bit_ = 1u << 31;
    missing_ = 0;
    if (left_ > 0) {
      next_length_ = a_.lengths[b_];
      enter(work.tile);
      find_tile<true>();
    }
  }
  // What this lane knows of the block table, and what it would know now.
  __device__ int page() const { return S::kWindow ? window_.page : page_; }
  __device__ int read_page() const {
    if (tile_ == end_ || a_.block_table == nullptr) return page();
    if constexpr (S::kWindow) return window_.read(a_);
    return there_ ? page_at<true>(page_of(a_, plan_, tile_ * S::kTokens + static_cast<int>(threadIdx.x % 32))) : page_;
  }

  // The first tile's keys on their way to L2. They need not be written yet: what writes them writes them there. Values
  // too: even.
  __device__ void ask() const {
    if (tile_ == end_) return;
    const int page = next_page();
    if (!there_ || !exists(page)) return;
    keys_.ask(plan_.keys, page, slot_);
  }

  // Starts the next tile's copies, or nothing when there is none.
  __device__ void next() {
    if (tile_ < end_) {
      if (kTeam > 1 && turn_ > 0) wait_for_phase(empty(stage_), (turn_ - 1) & 1);
      const int page = next_page();
      const bool there = there_ && exists(page);
      if (there != there_) missing_ |= bit_;
      const unsigned to = ring_ + stage_ * S::kStage;
      keys_.copy(plan_.keys, page, slot_, there, to);
      values_.copy(plan_.values, page, slot_, there, to + S::Keys::kBytes);
      if (kTeam > 1) arrive_after_copies(full(stage_));
      if (++stage_ == S::kStages) stage_ = 0, ++turn_;
      ++tile_;
      find_tile<false>();
    }
    if (kTeam == 1) commit_copies();
  }

  // The tile in a stage, filled for the turn-th time, is there.
  __device__ void wait(int stage, int turn) const {
    if (kTeam > 1)
      wait_for_phase(full(stage), turn & 1);
    else
      wait_for_copies<S::kStages - 2>();
    __syncwarp();
  }
  // Whether a page does not exist of the tokens this lane has seen of a sequence, whose tiles have all been started.
  // Each sequence of this warp has the bit after the last one's, from 1 on.
  __device__ bool missing(unsigned bit) {
    const bool is = missing_ & bit;
    missing_ &= ~bit;
    return is;
  }
  // This warp has done with it.
  __device__ void release(int stage) const {
    __syncwarp();
    if (kTeam > 1 && threadIdx.x % 32 == 0) arrive(empty(stage));
  }

 private:
  __device__ unsigned full(int stage) const { return barriers_ + stage * 8; }
  __device__ unsigned empty(int stage) const { return barriers_ + (S::kStages + stage) * 8; }

  // Of the next tile's token that this lane stands for.
  __device__ int next_page() const {
    if constexpr (S::kWindow)
      if (a_.block_table != nullptr) return __shfl_sync(0xffffffffu, window_.page, page_ - window_.first);
    return page_;
  }
  __device__ bool exists(int page) const { return static_cast<unsigned>(page) < static_cast<unsigned>(a_.P); }

  // At the next sequence, all but so many of its tiles.
  __device__ void enter(int skip) {
    length_ = clamped(plan_, next_length_);
    if (!kOne && b_ + 1 < a_.B) next_length_ = a_.lengths[b_ + 1];  // long before it is needed
    seen_ = first_seen(a_, length_);
    const Tiles tiles = tiles_of(a_, plan_, length_);
    const int first = tiles.first + skip, last = max(first, min(tiles.last, first + left_));
    left_ -= last - first;
    const Tiles share = share_of(plan_, {first, last});
    tile_ = share.first;
    end_ = share.last;
    if (tile_ < end_) bit_ = __funnelshift_l(bit_, bit_, 1);
    pages_ = a_.block_table + b_ * a_.block_table_stride;
  }

  template <bool kPastL1>
  __device__ void find_tile() {
    while (!kOne && tile_ == end_ && left_ > 0 && b_ + 1 < a_.B) {
      ++b_;
      enter(0);
    }
    if (tile_ < end_) find_page<kPastL1>();
  }

  // What may be a guess is not left in L1, where what is read again would find it.
  template <bool kPastL1>
  __device__ int page_at(int i) const {
    const int32_t* page = pages_ + i;
    if constexpr (kPastL1) return *static_cast<const volatile int32_t*>(page);
    return *page;
  }

  // Where the next tile's tokens are, one a lane. Pages are asked for a tile before they are needed.
  template <bool kPastL1>
  __device__ void find_page() {
    const int lane = threadIdx.x % 32, token = tile_ * S::kTokens + lane;
    there_ = lane < S::kTokens && token < length_ && token >= seen_;
    page_ = static_cast<int>(b_);
    slot_ = token;
    if (a_.block_table == nullptr) return;
    const int i = page_of(a_, plan_, token);
    if constexpr (S::kWindow) {
      const int first = page_of(a_, plan_, tile_ * S::kTokens);
      const int last = page_of(a_, plan_, tile_ * S::kTokens + S::kTokens - 1);
      if (window_.b != b_ || first < window_.first || last > window_.first + 31) window_.load(a_, b_, first);
      page_ = i;  // its place in the row, for now
    } else if (there_) {
      page_ = page_at<kPastL1>(i);
    }
    slot_ = token - i * static_cast<int>(a_.page);
  }

  const PagedAttentionArgs& a_;
  const Plan& plan_;
  const int member_;
  const Source<S, typename S::Keys, kTeam> keys_;
  const Source<S, typename S::Values, kTeam> values_;
  const unsigned ring_, barriers_;  // the first member's ring
  PageWindow window_;
  const int32_t* pages_ = nullptr;
  int64_t b_ = 0, next_length_ = 0;
  unsigned bit_ = 0, missing_ = 0;
  int left_ = 0, stage_ = 0, turn_ = 0, length_ = 0, seen_ = 0, tile_ = 0, end_ = 0, page_ = 0, slot_ = 0;
  bool there_ = false;
};

}  // namespace nybble::cuda::paged
