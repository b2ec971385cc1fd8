// qmatmul for few rows: how the work is cut up for a matrix and a GPU, and the launch. The kernels: few.cuh says which.
#include <algorithm>
#include <iterator>

#include "cuda/common/row.cuh"
#include "cuda/qmatmul/few_registers.cuh"
#include "cuda/qmatmul/few_ring.cuh"
#include "cuda/qmatmul/gather.h"
#include "cuda/qmatmul/qmatmul.h"
#include "ops/gate.h"

namespace nybble::cuda {
namespace {

constexpr int kMostColumns = 128;  // column blocks of a block: a wider matrix takes more blocks than run at a time

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// How many clusters run at a time. One lies within a GPC, of 16 or 18 multiprocessors.
int clusters_at_once(int splits, const Gpu& g) {
  return splits <= 2 ? g.processors / splits : g.processors / 18 * (18 / splits);
}

bool takes_ring(const FewMatrix& m) { return m.parts > 1 || m.part[0].fine; }

// A warp's ring: how many batches, of how many bytes of tiles (a quad may have more), what the product takes by it, and
// what lies where in a slot.
struct Ring {
  int slots, batch_bytes;
  double time;
  int scales_at, zeros_at, slot_bytes;
};
constexpr Ring kRings[] = {
    {kFewSlots, kFewMostBatch, 1}, {kFewLeastSlots, kFewMostBatch, 1.01},
    {kFewSlots, 2048, 1.05},       {kFewLeastSlots, 2048, 1.1},
    {kFewLeastSlots, 512, 1.2},
};

// log2 of the quads of a batch. A warp copies 32 pieces of its zeros, four of each group.
int batch_of(const FewPart& p, bool zeros, int batch_bytes) {
  const int most = zeros && p.fine ? 2 : 4;
  int log = 0;
  while (2 << log <= most && 512 * p.bits << log <= batch_bytes) ++log;
  return log;
}

Ring ring_of(const FewMatrix& m, Ring r) {
  const bool zeros = m.zeros != nullptr;
  int tiles = 0, units = 0;
  for (int i = 0; i < m.parts; ++i) {
    const FewPart& p = m.part[i];
    const int quads = 1 << batch_of(p, zeros, r.batch_bytes);
    tiles = std::max(tiles, quads * 256 * p.bits);
    units = std::max(units, quads * (p.fine ? 4 : 1));
  }
  r.scales_at = tiles;
  r.zeros_at = tiles + 32 * units;
  r.slot_bytes = r.zeros_at + (zeros ? 64 * units : 0);
  return r;
}

struct Cut {
  int rows;  // of x at a time; 0: none fits
  int splits, clusters, columns, columns_more;
  FewPart part[kFewCuts];
  int16_t part_of[kFewSplits + 1], quads_of[kFewSplits];
  Ring ring;  // of a warp
  size_t sums_at, digits_at, scratch_at, block_sums_at, ring_at, list_at, shares_at, shared;
};

// What is made of x for the product, beside what it is itself.
struct Made {
  bool sums, digits;
};

// The k block at `cost` from the front, moved to where a quad begins.
int k_at(const FewMatrix& m, int64_t cost) {
  int k = 0;
  for (int i = 0; i < m.parts; ++i) {
    const FewPart& p = m.part[i];
    const int64_t all = static_cast<int64_t>(p.quads()) * few_cost(p.bits);
    if (cost < all) return p.first + std::min(p.count, static_cast<int>(cost / few_cost(p.bits)) * 4);
    cost -= all;
    k = p.first + p.count;
  }
  return k;
}

// What lies in k blocks `first` to `last` of a part; count may be 0.
FewPart within(FewPart p, int first, int last) {
  const int from = std::max(first, p.first), to = std::min(last, p.first + p.count);
  p.at = from - p.first;
  p.first = from;
  p.count = std::max(0, to - from);
  p.offset += p.at * p.bits;
  return p;
}

// How `splits` blocks, with so many column blocks each, share the matrix, and what lies where in shared memory.
Cut cut_into(const FewMatrix& m, Made made, int rows, int splits, int columns, const Ring& ring) {
  const int NB = ceil_div(m.N, kTileColumns), clusters = ceil_div(NB, columns);
  Cut c{};
  c.rows = rows;
  c.splits = splits;
  c.clusters = clusters;
  c.columns = NB / clusters;
  c.columns_more = NB % clusters;
  c.ring = ring;
  int64_t cost = 0;
  for (int i = 0; i < m.parts; ++i) cost += static_cast<int64_t>(m.part[i].quads()) * few_cost(m.part[i].bits);
  int quads = 0, parts = 0, cuts = 0;  // of a block, at most; of all blocks
  for (int split = 0; split < splits; ++split) {
    const int first = k_at(m, cost * split / splits), last = k_at(m, cost * (split + 1) / splits);
    int its_quads = 0, its_parts = 0;
    for (int i = 0; i < m.parts; ++i) {
      FewPart p = within(m.part[i], first, last);
      if (p.count == 0) continue;
      p.before = its_quads;
      p.batch = static_cast<int8_t>(batch_of(p, m.zeros != nullptr, ring.batch_bytes));
      p.per_quad = 1.0f / static_cast<float>(p.quads());
      p.per_batch = 1.0f / static_cast<float>(p.batches());
      c.part[cuts++] = p;
      its_quads += p.quads();
      ++its_parts;
    }
    c.part_of[split + 1] = static_cast<int16_t>(cuts);
    c.quads_of[split] = static_cast<int16_t>(its_quads);
    quads = std::max(quads, its_quads);
    parts = std::max(parts, its_parts);
  }
  columns = ceil_div(NB, clusters);
  c.sums_at = static_cast<size_t>(rows) * few_row_bytes(quads);
  c.digits_at = c.sums_at + (made.sums ? (static_cast<size_t>(quads) * few_sums_step(rows) + 15) / 16 * 16 : 0);
  c.scratch_at = c.digits_at + (made.digits ? few_digit_bytes(rows, quads) : 0);
  c.block_sums_at = c.scratch_at + sizeof(float) * kFewScratch * rows;
  c.ring_at = (c.block_sums_at + (splits > 1 ? sizeof(float) * rows * columns * kTileColumns : 0) + 127) / 128 * 128;
  c.list_at = c.shares_at = c.ring_at;
  if (takes_ring(m)) {
    c.list_at += static_cast<size_t>(kFewWarps) * ring.slots * ring.slot_bytes;
    c.shares_at = c.list_at + sizeof(FewBatch) * kFewWarps * kFewList;
  }
  c.shared = c.shares_at + sizeof(float) * (rows * few_slots(parts, columns) * kFewShareRow + parts * (columns + 1));
  return c;
}

// The plan for so many rows that takes the least time, as far as it follows from bytes: a multiprocessor of an H200
// reads 34 of them in a nanosecond, a cluster costs a microsecond, a slot a tenth, and where blocks take turns they
// begin anew, with x. In a cluster a block may have wide quads alone, of which a slot takes few: then two slots are too
// few for memory, where it is that a product waits for.
Cut fastest(const FewMatrix& m, Made made, int rows, const Gpu& g) {
  const int NB = ceil_div(m.N, kTileColumns);
  int quads = 0;
  for (int i = 0; i < m.parts; ++i) quads += m.part[i].quads();
  Cut best{};
  double least = 0;
  for (const Ring& sizes : kRings) {
    const Ring ring = ring_of(m, sizes);
    for (int splits = 1; splits <= (g.sm >= 90 ? kFewSplits : 1) && splits <= quads; splits *= 2) {
      const int at_once = clusters_at_once(splits, g);
      if (at_once == 0) break;
      int columns = std::min(ceil_div(NB, at_once), kMostColumns);
      Cut c = cut_into(m, made, rows, splits, columns, ring);
      while (c.shared > static_cast<size_t>(g.shared_memory) && columns > 1)
        c = cut_into(m, made, rows, splits, columns = ceil_div(columns, 2), ring);
      if (c.shared > static_cast<size_t>(g.shared_memory)) continue;
      const int turns = ceil_div(c.clusters, at_once);
      const double slower = splits > 1 && rows <= 2 && ring.slots == kFewLeastSlots ? 1.1 : 1;
      const double time = slower * ring.time * m.column_bytes / 34.0 * columns * turns / splits + 100 * ring.slots +
                          (splits > 1 ? 1000 : 0) + (turns - 1) * (1500 + c.scratch_at / 40.0);
      if (best.rows == 0 || time < least) best = c, least = time;
    }
    if (!takes_ring(m)) break;
  }
  return best;
}

// Where x does not fit: half the rows.
Cut cut(const FewMatrix& m, Made made, int rows, const Gpu& g) {
  for (; rows > 0; rows /= 2) {
    const Cut c = fastest(m, made, rows, g);
    if (c.rows > 0) return c;
  }
  return {};
}

// Threads that cuda/norm.cu adds up the squares of a row of K halves with; a warp for its half, the others have zeros.
int norm_threads(int64_t K) {
  int threads = 32;
  with_row<__half, kNormNumbers>(K, true, [&](auto form) -> Status {
    threads = std::max(threads, decltype(form)::type::kGroup);
    return {};
  });
  return threads;
}

// False: too many segments.
bool describe_few(const QMatmulArgs& a, FewMatrix* out) {
  Matrix m = describe(a);
  int32_t offset = 0;
  if (cut_segments(a.blocks, m.KB, 0, &offset, &m) != m.KB || m.segments > kFewParts) return false;
  *out = {m.weight, m.scales, m.zeros, m.column_bytes, m.K, m.N, m.G, m.segments, {}};
  for (int i = 0; i < m.segments; ++i) {
    const Segment& s = m.segment[i];
    const bool fine = s.per % 4 != 0 && s.per < s.count;
    const auto inverse = static_cast<uint32_t>(((1ull << 31) + s.per - 1) / s.per);
    out->part[i] = {s.first, s.count, s.offset, 0, s.group, s.bits, inverse, 0, 0, 0, fine, 0};
  }
  return true;
}

template <typename T>
FewKernel kernel_for(const FewMatrix& m, Made made, int slots) {
  const bool zeros = m.zeros != nullptr;
  return takes_ring(m) ? few_ring_kernel_of<T>(zeros, slots) : few_kernel_of<T>(m.part[0].bits, zeros, made.digits);
}

// With `invariant` there is one plan for any number of rows.
int rows_at_once(const QMatmulArgs& a) { return a.M < kFewRows && !a.invariant ? static_cast<int>(a.M) : kFewRows; }

struct Plan {
  Made made;
  Cut cut;
};

// Digits are not for `invariant`: rows beyond the second take another way. To make those of two rows takes as long as
// they save on three column blocks (H200).
Plan plan(const QMatmulArgs& a, const FewMatrix& m, const Gpu& g) {
  const bool broad = ceil_div(ceil_div(m.N, kTileColumns), g.processors) > 3;
  int narrow = 0;  // k blocks that digits are for; all of x is turned to them
  for (int i = 0; i < m.parts; ++i) narrow += m.part[i].bits <= 3 && !m.part[i].fine ? m.part[i].count : 0;
  if (a.M <= (broad ? kFewDigitRows : 1) && !a.invariant && 3 * narrow >= a.KB) {
    const Made made{a.zeros != nullptr && takes_ring(m), true};
    const Cut c = cut(m, made, rows_at_once(a), g);
    if (c.rows >= a.M) return {made, c};
  }
  const Made made{a.zeros != nullptr || (narrow > 0 && a.x_dtype == DType::f16), false};
  return {made, cut(m, made, rows_at_once(a), g)};
}

// The kernels take no notice of perm.
bool must_gather(const QMatmulArgs& a) { return a.perm != nullptr || !in_pieces(a) || a.K % 8 != 0; }

}  // namespace

bool supports_few(const QMatmulArgs& a) {
  const Gpu g = gpu();
  if (g.sm < 80 || a.x_dtype == DType::f32) return false;
  if (!aligned(a.weight) || !aligned(a.scales) || !aligned(a.zeros)) return false;
  if (a.M > 2 * kFewRows && !a.invariant) return false;  // weights are read again for each 8 rows
  if (a.KB == 0 || a.KB >= 1 << 15) return false;        // FewPart::group_of
  FewMatrix m;
  return describe_few(a, &m) && plan(a, m, g).cut.rows > 0;
}

bool few_prepares(const QMatmulArgs& a) {
  if (must_gather(a)) return false;
  if (a.norm != nullptr)
    return aligned(a.norm) && a.K > 128 && (a.norm_dtype == DType::f32 || a.norm_dtype == a.x_dtype);
  return a.gate == static_cast<int>(Act::silu) || a.gate == static_cast<int>(Act::gelu_tanh);
}

int64_t qmatmul_few_scratch_bytes(const QMatmulArgs& a) { return must_gather(a) ? gathered_bytes(a) : 0; }

Status qmatmul_few(const QMatmulArgs& given, Stream stream) {
  const Gpu g = gpu();
  QMatmulArgs a = given;
  if (must_gather(given)) {
    if (const Status done = gather_x(given, given.scratch, stream); !done.ok()) return done;
    a = after_gather(given);
  }
  FewArgs f{};
  describe_few(a, &f.m);
  const auto [made, c] = plan(a, f.m, g);
  f.splits = c.splits;
  f.columns = c.columns;
  f.columns_more = c.columns_more;
  std::copy(std::begin(c.part), std::end(c.part), f.m.part);
  std::copy(std::begin(c.part_of), std::end(c.part_of), f.part_of);
  std::copy(std::begin(c.quads_of), std::end(c.quads_of), f.quads_of);
  f.sums_at = made.sums ? static_cast<int32_t>(c.sums_at) : 0;
  f.digits_at = made.digits ? static_cast<int32_t>(c.digits_at) : 0;
  f.scratch_at = static_cast<int32_t>(c.scratch_at);
  f.block_sums_at = static_cast<int32_t>(c.block_sums_at);
  f.ring_at = static_cast<int32_t>(c.ring_at);
  f.list_at = static_cast<int32_t>(c.list_at);
  f.shares_at = static_cast<int32_t>(c.shares_at);
  f.slot_bytes = c.ring.slot_bytes;
  f.scales_at = c.ring.scales_at;
  f.zeros_at = c.ring.zeros_at;
  f.x.x_stride = a.x_stride;
  f.x.before = a.norm != nullptr                       ? Before::norm
               : a.gate == static_cast<int>(Act::silu) ? Before::silu
               : a.gate >= 0                           ? Before::gelu_tanh
                                                       : Before::nothing;
  f.x.norm = a.norm;
  f.x.norm_dtype = a.norm_dtype;
  f.x.eps = a.eps;
  f.x.norm_threads = norm_threads(a.K);
  f.bias = a.bias;
  f.add_stride = a.add_stride;

  const int slots = c.ring.slots;
  const FewKernel kernel =
      a.x_dtype == DType::f16 ? kernel_for<__half>(f.m, made, slots) : kernel_for<__nv_bfloat16>(f.m, made, slots);
  const cudaError_t raised = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                  cudaFuncAttributeMaxDynamicSharedMemorySize, g.shared_memory);
  if (raised != cudaSuccess) return status(raised);
  for (int64_t row = 0; row < a.M; row += c.rows) {
    f.x.M = static_cast<int32_t>(a.M - row < c.rows ? a.M - row : c.rows);
    f.x.x = static_cast<const uint16_t*>(a.x) + row * a.x_stride;
    f.add = a.add == nullptr ? nullptr : static_cast<const uint16_t*>(a.add) + row * a.add_stride;
    f.y = static_cast<uint16_t*>(a.y) + row * a.N;
    const Status done = launch_clusters(kernel, dim3(c.clusters * c.splits), c.splits, dim3(kFewThreads), c.shared,
                                        stream, g.sm >= 90, f);
    if (!done.ok()) return done;
  }
  return {};
}

}  // namespace nybble::cuda
