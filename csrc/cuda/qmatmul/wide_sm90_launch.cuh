// The host's side of wide_sm90.cuh: which tile, where the copy engine finds things, the launch.
#pragma once
#include <algorithm>

#include "cuda/qmatmul/wide.h"
#include "cuda/qmatmul/wide_sm90.cuh"

namespace nybble::cuda::wide {

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

inline EncodeTiled encoder() {
  static const auto known = reinterpret_cast<EncodeTiled>(driver_function("cuTensorMapEncodeTiled"));
  return known;
}

// A matrix of `rows` rows of `columns` numbers, `stride` numbers apart, in boxes.
inline bool describe_box(CUtensorMap* map, CUtensorMapDataType type, int bytes, const void* base, int64_t columns,
                         int64_t rows, int64_t stride, int box_columns, int box_rows, bool swizzle) {
  const EncodeTiled encode = encoder();
  if (encode == nullptr) return false;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride * bytes)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t every[2] = {1, 1};
  return encode(map, type, 2, const_cast<void*>(base), sizes, strides, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// Whether every stage is full, of 4 bits and in one group (or in two, one for each half): what most matrices are, and
// what has kernels of its own.
inline bool is_plain(const Matrix& m, int blocks, int halves) {
  for (int i = 0; i < m.segments; ++i) {
    const Segment& s = m.segment[i];
    if (s.bits != 4 || s.count % blocks != 0 || (s.per % blocks != 0 && s.per * halves != blocks)) return false;
  }
  return true;
}

// The tile; its other numbers follow, see wide_sm90().
struct Choice {
  int rows, columns, blocks;
  int cluster;
  bool warps;  // a WarpTile
  bool plain;
};

inline Choice sm90_choice(const QMatmulArgs& a, const Matrix& m) {
  Choice c{};
  c.rows = a.M <= 16 ? 16 : a.M <= 32 ? 32 : a.M <= 64 ? 64 : a.M <= 128 ? 128 : 256;
  c.columns = c.rows > 128 ? 128 : 256;
  // 17 to 32 rows, plain, half, no zeros, H200: 50 to 54 us by wgmma, 54 to 56 by mma.sync; the others were not
  // compared
  c.warps = c.rows <= 32 && !(c.rows == 32 && a.x_dtype == DType::f16 && a.zeros == nullptr && is_plain(m, 4, 1));
  c.plain = c.warps ? is_plain(m, 8, 2) : is_plain(m, 4, 1);
  c.blocks = c.plain ? (c.warps ? 8 : 4) : c.rows <= 64 ? 4 : 2;
  c.cluster = c.rows <= 32 || (c.plain && c.rows <= 128) ? 1 : 2;
  return c;
}

inline Plan sm90_plan(const QMatmulArgs& a, const Matrix& m) {
  const Choice c = sm90_choice(a, m);
  const int columns = c.columns * c.cluster;
  return make_plan((a.M + c.rows - 1) / c.rows, (a.N + columns - 1) / columns, stages_of(m, c.blocks),
                   c.blocks * kTileRows, gpu().processors / c.cluster);
}

template <typename Tile>
Shape shape_of(const Matrix& m) {
  constexpr int kBlocks = Tile::kBlocks;
  Shape s{};
  s.span = 1;
  for (int i = 0; i < m.segments; ++i) {
    const int per = m.segment[i].per;
    const int most = per % kBlocks == 0 ? 1 : kBlocks % per == 0 ? kBlocks / per : (kBlocks - 2) / per + 2;
    s.span = std::max(s.span, std::min(most, kBlocks));
  }
  s.weight_at = Tile::kXBytes;
  s.scale_at = s.weight_at + Tile::kColumnBlocks * kBlocks * 64 * widest_of(m);
  s.zero_at = s.scale_at + Tile::kColumnBlocks * s.span * 32;
  const int end = s.zero_at + (m.zeros != nullptr ? Tile::kColumnBlocks * s.span * 64 : 0);
  s.stage_bytes = (end + 1023) / 1024 * 1024;  // x must begin at a multiple of 1024
  const int fixed = kBarrierBytes + (Tile::kHalves == 2 ? Tile::kWarps * Tile::kM * 512 : 0);
  s.stages = std::min(kMaxStages, (gpu().shared_memory - fixed) / s.stage_bytes);
  return s;
}

template <typename Tile>
bool describe(const QMatmulArgs& a, const Matrix& m, const Shape& s, Maps* maps) {
  constexpr int kBlocks = Tile::kBlocks, kColumnBlocks = Tile::kColumnBlocks;
  constexpr auto kType =
      std::is_same_v<typename Tile::T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const int64_t NB = (a.N + kTileColumns - 1) / kTileColumns, width = a.G * kTileColumns;
  bool made =
      describe_box(&maps->x, kType, 2, a.x, a.K, a.M, a.x_stride, kStepRows, Tile::kRows / Tile::kCluster, true);
  for (int i = 0; i < m.segments; ++i)  // in units of 8 bytes: a box has at most 256 of them in a row
    made &=
        describe_box(&maps->weight[width_index(m.segment[i].bits)], CU_TENSOR_MAP_DATA_TYPE_INT64, 8, a.weight,
                     m.column_bytes / 8, NB, m.column_bytes / 8, 8 * m.segment[i].bits * kBlocks, kColumnBlocks, false);
  made &= describe_box(&maps->scale, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, a.scales, width, NB, width,
                       s.span * kTileColumns, kColumnBlocks, false);
  if (a.zeros != nullptr)
    made &= describe_box(&maps->zero, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4, a.zeros, width, NB, width,
                         s.span * kTileColumns, kColumnBlocks, false);
  return made;
}

template <typename Tile, int kBits, bool kZeros>
Status launch_wide(const QMatmulArgs& a, const Matrix& m, const Plan& plan, Stream stream) {
  using T = typename Tile::T;
  const Shape shape = shape_of<Tile>(m);
  Maps maps{};
  if (!describe<Tile>(a, m, shape, &maps)) return {"qmatmul: the driver refuses a tensor map"};
  const auto kernel = wide_kernel<Tile, kBits, kZeros>;
  const int shared = shape.stages * shape.stage_bytes;
  if (const Status set = status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
      !set.ok())
    return set;
  const Output<T> output = output_of<T>(a);
  auto* pieces = static_cast<float4*>(a.scratch);
  const Status done = launch(kernel, dim3(plan.ctas * Tile::kCluster), dim3(Tile::kThreads), shared, stream, true, m,
                             maps, shape, plan, output, pieces);
  constexpr int kParts = Tile::kCluster * Tile::kColumns / 64;
  return done.ok() ? add_pieces<T, kParts, Tile::kRows>(plan, output, pieces, stream) : done;
}

template <typename T, bool kZeros>
Status wide_sm90(const QMatmulArgs& a, const Matrix& m, Stream stream) {
  const Choice choice = sm90_choice(a, m);
  const Plan plan = sm90_plan(a, m);
  if (choice.plain) {
    switch (choice.rows) {
      case 16:
        return launch_wide<WarpTile<T, 16, 8>, 4, kZeros>(a, m, plan, stream);
      case 32:
        if constexpr (std::is_same_v<T, __half> && !kZeros) {
          if (!choice.warps) return launch_wide<Tile<T, 2, 2, 32, 4, 4, 1>, 4, kZeros>(a, m, plan, stream);
        }
        return launch_wide<WarpTile<T, 32, 8>, 4, kZeros>(a, m, plan, stream);
      case 64:
        return launch_wide<Tile<T, 2, 2, 64, 4, 2, 1>, 4, kZeros>(a, m, plan, stream);
      case 128:
        return launch_wide<Tile<T, 2, 2, 128, 4, 2, 1>, 4, kZeros>(a, m, plan, stream);
    }
    return launch_wide<Tile<T, 2, 1, 256, 4, 4, 2>, 4, kZeros>(a, m, plan, stream);
  }
  switch (choice.rows) {
    case 16:
      return launch_wide<WarpTile<T, 16, 4>, 0, kZeros>(a, m, plan, stream);
    case 32:
      return launch_wide<WarpTile<T, 32, 4>, 0, kZeros>(a, m, plan, stream);
    case 64:
      return launch_wide<Tile<T, 4, 1, 64, 4, 4, 2>, 0, kZeros>(a, m, plan, stream);
    case 128:
      return launch_wide<Tile<T, 4, 1, 128, 2, 2, 2>, 0, kZeros>(a, m, plan, stream);
  }
  return launch_wide<Tile<T, 2, 1, 256, 2, 2, 2>, 0, kZeros>(a, m, plan, stream);
}

}  // namespace nybble::cuda::wide
