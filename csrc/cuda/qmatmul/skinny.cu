// qmatmul for few rows: how the work is cut up for a matrix and a GPU, and the launch. The kernel is in skinny.cuh.
#include "cuda/qmatmul/qmatmul.h"
#include "cuda/qmatmul/skinny.cuh"
#include "ops/gate.h"

namespace nybble::cuda {
namespace {

constexpr int kMostRows = 16;

constexpr int kWantedStage = 32 << 10;  // bytes: 16 tiles of 4 bits for each warp, so that a visit is worth its cost

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// How many clusters run at a time. One of 4 or 8 blocks lies within a GPC, of 16 or 18 multiprocessors.
int clusters_at_once(int splits, int blocks_each, const Gpu& g) {
  if (splits <= 2) return g.processors * blocks_each / splits;
  return g.processors / 18 * (18 * blocks_each / splits);
}

struct Cut {
  SkinnyPlan plan;
  int clusters;
  size_t shared;
};

// The order of a row's sums follows from the matrix and the GPU alone: only what x and the sums take of shared memory,
// and so how many stages fit, depends on the number of rows.
Cut cut(const Matrix& m, int rows, const Gpu& g) {
  int bits = 0, per = m.KB;
  for (int i = 0; i < m.segments; ++i) {
    bits = bits > m.segment[i].bits ? bits : m.segment[i].bits;
    per = per < m.segment[i].per ? per : m.segment[i].per;
  }
  Cut c{};
  SkinnyPlan& p = c.plan;
  const int NB = ceil_div(m.N, kTileColumns), row_tiles = ceil_div(rows, 8), units = ceil_div(m.KB, 4);
  // Eight rows of x should leave room for two blocks on a multiprocessor: up to 4096 of k each.
  p.splits = 1;
  if (g.sm >= 90)
    while (p.splits < 8 && m.K > 4096 * p.splits && units >= 2 * p.splits) p.splits *= 2;
  // Two blocks on a multiprocessor hide each other's waits, where there is work for both.
  const int blocks_each = NB * p.splits >= 4 * g.processors ? 2 : 1;
  const int clusters = clusters_at_once(p.splits, blocks_each, g);
  c.clusters = ceil_div(NB, ceil_div(NB, clusters));
  p.columns = NB / c.clusters;
  p.columns_more = NB % c.clusters;
  p.units = units / p.splits;
  p.units_more = units % p.splits;
  const int most = 4 * (p.units + (p.units_more > 0 ? 1 : 0));  // k blocks of a block

  constexpr int kEvenly = 4 * kSkinnyWarps;  // tiles that all warps get the same of
  p.piece = kWantedStage / (64 * bits) / kEvenly * kEvenly;
  p.weight_bytes = p.piece * 64 * bits;
  const int groups = (p.piece - 1) / per + 2;
  p.scale_bytes = 2 * kTileColumns * (groups < p.piece ? groups : p.piece);
  p.stage_bytes = ceil_div(p.weight_bytes + p.scale_bytes * (m.zeros == nullptr ? 1 : 3), 128) * 128;
  p.x_bytes = (most | 1) * rows * 64;
  p.sum_bytes = ceil_div((most + ceil_div(most, 4)) * ((rows + 1) / 2 * 8), 16) * 16;
  const int columns = p.columns + (p.columns_more > 0 ? 1 : 0);
  const int parts = kShareBuffers * kSkinnyWarps + (p.splits > 1 ? columns : 0);
  const auto total = [&](int stages) {
    p.barrier_bytes = ceil_div(8 * (2 * stages + 2 * kShareBuffers), 128) * 128;
    return p.barrier_bytes + static_cast<size_t>(p.x_bytes) + p.sum_bytes + 32 * row_tiles +
           512 * static_cast<size_t>(parts * row_tiles) + static_cast<size_t>(stages) * p.stage_bytes;
  };
  // As many stages as let another block, of this kernel or the next, on the multiprocessor; at least two.
  const size_t half = static_cast<size_t>(g.shared_memory) / 2 - 1024;
  const int pieces = (ceil_div(most, p.piece) + m.segments - 1) * columns;
  p.stages = pieces < 2 ? pieces : 2;
  while (p.stages < pieces && total(p.stages + 1) <= half) ++p.stages;
  if (total(p.stages) > half)
    while (p.stages < pieces && total(p.stages + 1) <= static_cast<size_t>(g.shared_memory)) ++p.stages;
  c.shared = total(p.stages);
  return c;
}

// 16-byte pieces of what the copy engine moves.
bool aligned(const QMatmulArgs& a) {
  const auto bits = reinterpret_cast<uintptr_t>(a.weight) | reinterpret_cast<uintptr_t>(a.scales) |
                    reinterpret_cast<uintptr_t>(a.zeros);
  return bits % 16 == 0;
}

bool whole_pieces(const QMatmulArgs& a) {
  return reinterpret_cast<uintptr_t>(a.x) % 16 == 0 && a.x_stride % 8 == 0 && a.K % 8 == 0 &&
         reinterpret_cast<uintptr_t>(a.norm) % 16 == 0;
}

// Threads that cuda/norm.cu adds up the squares of a row of K numbers with (common/row.cuh, with_row).
int norm_threads(int64_t K) { return K <= 1024 ? 32 : K <= 4096 ? 256 : K <= 8192 ? 512 : K <= 16384 ? 1024 : 256; }

bool segments_of(const QMatmulArgs& a, Matrix* m) {
  int32_t offset = 0;
  return cut_segments(a.blocks, static_cast<int32_t>(a.KB), 0, &offset, m) == a.KB;
}

int rows_at_once(const QMatmulArgs& a) { return a.M < kMostRows ? static_cast<int>(a.M) : kMostRows; }

}  // namespace

bool supports_skinny(const QMatmulArgs& a) {
  const Gpu g = gpu();
  if (g.sm < 80 || a.x_dtype == DType::f32) return false;
  if (a.M > kMostRows && !a.invariant) return false;  // weights would be read again for each 16 rows
  if (a.KB == 0 || a.KB >= 1 << 16) return false;     // Segment::group_of
  if (!aligned(a)) return false;
  Matrix m = describe(a);
  if (!segments_of(a, &m)) return false;
  return cut(m, rows_at_once(a), g).shared <= static_cast<size_t>(g.shared_memory);
}

bool skinny_prepares(const QMatmulArgs& a) {
  if (a.norm != nullptr)
    return whole_pieces(a) && a.K > 128 && (a.norm_dtype == DType::f32 || a.norm_dtype == a.x_dtype);
  return a.gate == static_cast<int>(Act::silu) || a.gate == static_cast<int>(Act::gelu_tanh);
}

Status qmatmul_skinny(const QMatmulArgs& a, Stream stream) {
  const Gpu g = gpu();
  SkinnyArgs s{};
  s.m = describe(a);
  segments_of(a, &s.m);
  const int most = rows_at_once(a);
  const Cut c = cut(s.m, most, g);
  s.plan = c.plan;
  s.dtype = a.x_dtype;
  s.x_stride = a.x_stride;
  s.before = a.norm != nullptr                       ? Before::norm
             : a.gate == static_cast<int>(Act::silu) ? Before::silu
             : a.gate >= 0                           ? Before::gelu_tanh
                                                     : Before::nothing;
  s.vectors = whole_pieces(a);
  s.norm = a.norm;
  s.norm_dtype = a.norm_dtype;
  s.eps = a.eps;
  s.norm_threads = norm_threads(a.K);
  s.bias = a.bias;
  s.add_stride = a.add_stride;

  bool uniform = true;
  for (int i = 1; i < s.m.segments; ++i) uniform = uniform && s.m.segment[i].bits == s.m.segment[0].bits;
  const int bits = uniform && s.m.segments == 1 ? s.m.segment[0].bits : 0;
  const int row_tiles = most <= 8 ? 1 : 2;
  const SkinnyKernel kernel = skinny_kernel_of(bits, row_tiles);
  const cudaError_t raised = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                  cudaFuncAttributeMaxDynamicSharedMemorySize, g.shared_memory);
  if (raised != cudaSuccess) return status(raised);
  for (int64_t row = 0; row < a.M; row += most) {
    s.M = static_cast<int32_t>(a.M - row < most ? a.M - row : most);
    s.x = static_cast<const uint16_t*>(a.x) + row * a.x_stride;
    s.add = a.add == nullptr ? nullptr : static_cast<const uint16_t*>(a.add) + row * a.add_stride;
    s.y = static_cast<uint16_t*>(a.y) + row * a.N;
    const Status done = launch_clusters(kernel, dim3(c.clusters * s.plan.splits), s.plan.splits, dim3(kSkinnyThreads),
                                        c.shared, stream, g.sm >= 90, s);
    if (!done.ok()) return done;
  }
  return {};
}

}  // namespace nybble::cuda
