// qmatmul for few rows: how the work is cut up for a matrix and a GPU, and the launch. The kernel is in few.cuh.
#include "cuda/qmatmul/few.cuh"
#include "cuda/qmatmul/qmatmul.h"
#include "cuda/qmatmul/wide.h"
#include "ops/gate.h"

namespace nybble::cuda {
namespace {

constexpr int kMostColumns = 128;  // column blocks of a block: a wider matrix takes more blocks than run at a time

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// 2^32 / i, rounded up; of 1 it would be 2^32, and is not asked for.
uint32_t inverse(uint32_t i) { return i <= 1 ? 0 : UINT32_MAX / i + 1; }

// How many clusters run at a time. One lies within a GPC, of 16 or 18 multiprocessors.
int clusters_at_once(int splits, const Gpu& g) {
  return splits <= 2 ? g.processors / splits : g.processors / 18 * (18 / splits);
}

struct Cut {
  int rows;  // of x at a time; 0: none fits
  int splits, clusters, columns, columns_more, units, units_more;
  size_t sums_at, scratch_at, shares_at, shared;
};

// How `clusters` of `splits` blocks share the matrix, and what lies where in shared memory.
Cut cut_into(const Matrix& m, int rows, int splits, int clusters) {
  const int NB = ceil_div(m.N, kTileColumns), units = m.KB / 4;
  Cut c{rows, splits, clusters, NB / clusters, NB % clusters, units / splits, units % splits, 0, 0, 0, 0};
  const int blocks = 4 * ceil_div(units, splits), columns = ceil_div(NB, clusters);
  c.sums_at = static_cast<size_t>(rows) * few_row_bytes(blocks);
  c.scratch_at = c.sums_at + (m.zeros == nullptr ? 0 : (few_sums_bytes(blocks, rows) + 15) / 16 * 16);
  c.shares_at = c.scratch_at + sizeof(float) * kFewScratch * rows;
  c.shared =
      c.shares_at + sizeof(float) * rows *
                        (kFewWarps * few_shares(c.columns) * kFewShareRow + (splits > 1 ? columns * kTileColumns : 0));
  return c;
}

// The plan for so many rows that takes the least time, as far as it follows from bytes: a multiprocessor of an H200
// reads 34 of them in a nanosecond, and a cluster costs a microsecond. Half the rows where x does not fit.
Cut cut(const Matrix& m, int rows, const Gpu& g) {
  const int NB = ceil_div(m.N, kTileColumns), units = m.KB / 4;
  for (; rows > 0; rows /= 2) {
    Cut best{};
    double least = 0;
    for (int splits = 1; splits <= (g.sm >= 90 ? 8 : 1) && splits <= units; splits *= 2) {
      const int at_once = clusters_at_once(splits, g);
      if (at_once == 0) break;
      const int columns = ceil_div(NB, at_once) < kMostColumns ? ceil_div(NB, at_once) : kMostColumns;
      const Cut c = cut_into(m, rows, splits, ceil_div(NB, columns));
      if (c.shared > static_cast<size_t>(g.shared_memory)) continue;
      const double time = m.column_bytes / 34.0 * columns / splits + (splits > 1 ? 1000 : 0);
      if (best.rows == 0 || time < least) best = c, least = time;
    }
    if (best.rows > 0) return best;
  }
  return {};
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// x is read 16 bytes at a time, in order.
bool must_gather(const QMatmulArgs& a) {
  return a.perm != nullptr || !aligned(a.x) || a.x_stride % 8 != 0 || a.K % 8 != 0;
}

// Threads that cuda/norm.cu adds up the squares of a row of K numbers with (common/row.cuh, with_row).
int norm_threads(int64_t K) { return K <= 1024 ? 32 : K <= 4096 ? 256 : K <= 8192 ? 512 : K <= 16384 ? 1024 : 256; }

// The width of a matrix of one width whose groups are of 4, 8, 12 ... k blocks; else 0.
int width_of(const QMatmulArgs& a, Matrix* m) {
  int32_t offset = 0;
  if (cut_segments(a.blocks, static_cast<int32_t>(a.KB), 0, &offset, m) != a.KB || m->segments != 1) return 0;
  const Segment& s = m->segment[0];
  return (s.count | s.per) % 4 == 0 ? s.bits : 0;
}

// With `invariant` there is one plan for any number of rows.
int rows_at_once(const QMatmulArgs& a) { return a.M < kFewRows && !a.invariant ? static_cast<int>(a.M) : kFewRows; }

}  // namespace

bool supports_few(const QMatmulArgs& a) {
  const Gpu g = gpu();
  if (g.sm < 80 || a.x_dtype == DType::f32 || !aligned(a.weight)) return false;
  if (a.M > kFewRows && !a.invariant) return false;  // weights would be read again for each 8 rows
  if (a.KB == 0 || a.KB >= 1 << 16) return false;    // FewMatrix::group_of
  Matrix m = describe(a);
  return width_of(a, &m) != 0 && cut(m, rows_at_once(a), g).rows > 0;
}

bool few_prepares(const QMatmulArgs& a) {
  if (must_gather(a)) return false;
  if (a.norm != nullptr)
    return aligned(a.norm) && a.K > 128 && (a.norm_dtype == DType::f32 || a.norm_dtype == a.x_dtype);
  return a.gate == static_cast<int>(Act::silu) || a.gate == static_cast<int>(Act::gelu_tanh);
}

int64_t qmatmul_few_scratch_bytes(const QMatmulArgs& a) { return must_gather(a) ? a.M * a.KB * kPackRows * 2 : 0; }

Status qmatmul_few(const QMatmulArgs& given, Stream stream) {
  const Gpu g = gpu();
  QMatmulArgs a = given;
  if (must_gather(given)) {
    if (const Status done = gather_x(given, given.scratch, stream); !done.ok()) return done;
    a.x = given.scratch;
    a.x_stride = a.K = given.KB * kPackRows;
    a.perm = nullptr;
  }
  Matrix m = describe(a);
  const int bits = width_of(a, &m);
  const Cut c = cut(m, rows_at_once(a), g);
  FewArgs f{};
  f.m = {m.weight, m.scales, m.zeros, m.column_bytes, m.K, m.N, m.KB, m.G, m.segment[0].per, m.segment[0].inverse};
  f.splits = c.splits;
  f.columns = c.columns;
  f.columns_more = c.columns_more;
  f.inverse[0] = inverse(c.columns);
  f.inverse[1] = inverse(c.columns + 1);
  f.units = c.units;
  f.units_more = c.units_more;
  f.sums_at = static_cast<int32_t>(c.sums_at);
  f.scratch_at = static_cast<int32_t>(c.scratch_at);
  f.shares_at = static_cast<int32_t>(c.shares_at);
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

  const FewKernel kernel = a.x_dtype == DType::f16 ? few_kernel_of<__half>(bits) : few_kernel_of<__nv_bfloat16>(bits);
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
