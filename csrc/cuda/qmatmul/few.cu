// qmatmul for few rows: how the work is cut up for a matrix and a GPU, and the launch. The kernel is in few.cuh.
#include "cuda/qmatmul/few.cuh"
#include "cuda/qmatmul/qmatmul.h"
#include "ops/gate.h"

namespace nybble::cuda {
namespace {

constexpr int kMostRows = 16;           // measured on an H200: from there on the wide kernel is faster
constexpr int kMostRowsInvariant = 16;  // one plan for any number of rows: x of so many must fit

int ceil_div(int a, int b) { return (a + b - 1) / b; }

struct Cut {
  int splits, clusters, columns, batch;
  size_t shared;
};

size_t shared_bytes(const Matrix& m, int rows, int splits, int batch) {
  const int most = ceil_div(ceil_div(m.KB, 4), splits) * 4 + kFewPadding;  // k blocks of a block
  const size_t x = static_cast<size_t>(most) * rows * 64;
  const size_t sums = m.zeros == nullptr ? 0 : static_cast<size_t>(most) * ((rows + 1) / 2 * 8);
  const size_t parts = static_cast<size_t>(batch) * rows * kTileColumns * sizeof(float);
  return x + (sums + 15) / 16 * 16 + parts * (kFewWarps + (splits > 1 ? 1 : 0));
}

// Splits K where the column blocks are too few for the multiprocessors, or x too large for one of them.
Cut cut(const Matrix& m, int rows, const Gpu& g) {
  const int NB = ceil_div(m.N, kTileColumns), room = g.shared_memory;
  Cut c{};
  for (c.splits = 1;; c.splits *= 2) {
    // A cluster of 4 or 8 blocks lies within a GPC, of 16 or 18 multiprocessors.
    const int at_once = c.splits <= 2 ? g.processors / c.splits : g.processors / 18 * (18 / c.splits);
    c.columns = ceil_div(NB, at_once > 0 ? at_once : 1);
    c.clusters = ceil_div(NB, c.columns);
    c.batch = c.columns;
    while (c.batch > 1 && shared_bytes(m, rows, c.splits, c.batch) > static_cast<size_t>(room)) --c.batch;
    c.batch = ceil_div(c.columns, ceil_div(c.columns, c.batch));  // batches of one size
    c.shared = shared_bytes(m, rows, c.splits, c.batch);
    const bool fits = c.shared <= static_cast<size_t>(room) && (c.batch == c.columns || c.batch >= 4);
    const bool fills = 2 * NB * c.splits > g.processors;
    if ((fits && fills) || c.splits == 8 || g.sm < 90 || m.KB < 8 * c.splits) return c;
  }
}

template <typename T>
FewKernel kernel_of(int bits, int rows) {
  return rows <= 8 ? few_kernel_of<T, 1>(bits) : rows <= 16 ? few_kernel_of<T, 2>(bits) : few_kernel_of<T, 4>(bits);
}

// 16-byte pieces of what is read.
bool whole_pieces(const QMatmulArgs& a) {
  return reinterpret_cast<uintptr_t>(a.x) % 16 == 0 && a.x_stride % 8 == 0 && a.K % 8 == 0;
}

// Threads that cuda/norm.cu adds up the squares of a row of K numbers with (common/row.cuh, with_row).
int norm_threads(int64_t K) { return K <= 1024 ? 32 : K <= 4096 ? 256 : K <= 8192 ? 512 : K <= 16384 ? 1024 : 256; }

bool segments_of(const QMatmulArgs& a, Matrix* m) {
  int32_t offset = 0;
  return cut_segments(a.blocks, static_cast<int32_t>(a.KB), 0, &offset, m) == a.KB;
}

int rows_at_once(const QMatmulArgs& a) {
  const int most = a.invariant ? kMostRowsInvariant : kMostRows;
  return a.invariant || a.M > most ? most : static_cast<int>(a.M);
}

}  // namespace

bool supports_few(const QMatmulArgs& a) {
  const Gpu g = gpu();
  if (g.sm < 80 || a.x_dtype == DType::f32) return false;
  if (a.M > kMostRows && !a.invariant) return false;
  if (a.KB == 0 || a.KB >= 1 << 16) return false;  // Segment::group_of
  Matrix m = describe(a);
  return segments_of(a, &m) && cut(m, rows_at_once(a), g).shared <= static_cast<size_t>(g.shared_memory);
}

bool few_prepares(const QMatmulArgs& a) {
  if (a.norm != nullptr) return whole_pieces(a) && a.K > 128;
  return a.gate == static_cast<int>(Act::silu) || a.gate == static_cast<int>(Act::gelu_tanh);
}

Status qmatmul_few(const QMatmulArgs& a, Stream stream) {
  const Gpu g = gpu();
  FewArgs s{};
  s.m = describe(a);
  segments_of(a, &s.m);
  const int most = rows_at_once(a);
  const Cut c = cut(s.m, most, g);
  s.splits = c.splits;
  s.columns = c.columns;
  s.batch = c.batch;
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
  const Segment& one = s.m.segment[0];
  const int bits = s.m.segments == 1 && one.per % 4 == 0 && a.KB % 4 == 0 ? one.bits : 0;
  for (int64_t row = 0; row < a.M; row += most) {
    s.M = static_cast<int32_t>(a.M - row < most ? a.M - row : most);
    s.x = static_cast<const uint16_t*>(a.x) + row * a.x_stride;
    s.add = a.add == nullptr ? nullptr : static_cast<const uint16_t*>(a.add) + row * a.add_stride;
    s.y = static_cast<uint16_t*>(a.y) + row * a.N;
    const FewKernel kernel =
        a.x_dtype == DType::f16 ? kernel_of<__half>(bits, s.M) : kernel_of<__nv_bfloat16>(bits, s.M);
    const Status raised =
        status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, g.shared_memory));
    if (!raised.ok()) return raised;
    const Status done = launch_clusters(kernel, dim3(c.clusters * c.splits), c.splits, dim3(kFewThreads), c.shared,
                                        stream, g.sm >= 90, s);
    if (!done.ok()) return done;
  }
  return {};
}

}  // namespace nybble::cuda
