// The host's side of wide_sm90.cuh: which tile, where the copy engine finds things, the launch.
#pragma once
#include <algorithm>

#include "cuda/common/tensor_map.h"
#include "cuda/qmatmul/wide.h"
#include "cuda/qmatmul/wide_sm90.cuh"

namespace nybble::cuda::wide {

constexpr int kMaxSplit = 8;  // blocks of a cluster that share a tile: what any GPU takes

// A matrix of `rows` rows of `columns` numbers, `stride` numbers apart, in boxes.
inline bool describe_box(CUtensorMap* map, CUtensorMapDataType type, int bytes, const void* base, int64_t columns,
                         int64_t rows, int64_t stride, int box_columns, int box_rows, bool swizzle) {
  return describe_tensor<2>(*map, type, bytes, base, {columns, rows}, {stride}, {box_columns, box_rows}, swizzle).ok();
}

// Calls body(tile, narrow) with the tile for so many rows of a matrix in runs, and one of half its columns for
// matrices with too few tiles for the GPU (16 and 256 rows: the same).
template <typename T, typename Body>
auto with_run_tile(int64_t rows, Body body) {
  if (rows <= 16) return body(WarpTile<T, 16, 8, true>{}, WarpTile<T, 16, 8, true>{});
  if (rows <= 32) return body(RunTile<T, 4, 1, 32, 8, 4>{}, RunTile<T, 2, 1, 32, 8, 4>{});
  if (rows <= 64) return body(RunTile<T, 4, 1, 64, 8, 4>{}, RunTile<T, 2, 1, 64, 8, 4>{});
  if (rows <= 128) return body(RunTile<T, 2, 2, 128, 4, 1>{}, RunTile<T, 2, 1, 128, 4, 4>{});
  return body(RunTile<T, 2, 1, 256, 4, 1, 2>{}, RunTile<T, 2, 1, 256, 4, 1, 2>{});
}

// The same for any matrix.
template <typename T, typename Body>
auto with_mixed_tile(int64_t rows, Body body) {
  if (rows <= 16) return body(WarpTile<T, 16, 4, false>{}, WarpTile<T, 16, 4, false>{});
  if (rows <= 32) return body(WarpTile<T, 32, 4, false>{}, WarpTile<T, 32, 4, false>{});
  if (rows <= 64) return body(MixedTile<T, 4, 1, 64, 4, 4>{}, MixedTile<T, 4, 1, 64, 4, 4>{});
  if (rows <= 128) return body(MixedTile<T, 4, 1, 128, 2, 2>{}, MixedTile<T, 4, 1, 128, 2, 2>{});
  return body(MixedTile<T, 2, 1, 256, 2, 2, 2>{}, MixedTile<T, 2, 1, 256, 2, 2, 2>{});
}

// Measured on an H200.
template <typename Tile>
constexpr Extra kExtra = Tile::kRows == 32   ? Extra{1176, 400, 4}
                         : Tile::kRows <= 64 ? Extra{1216, 512, 4}
                                             : Extra{704, 512, 4, 256};
constexpr double kNarrow = 0.6;  // the time of half the columns

// Columns of a cluster's tiles, and how many such clusters the GPU runs at once.
template <typename Tile>
constexpr int kJointColumns = Tile::kColumns * Tile::kCluster;
template <typename Tile>
int joint_places() {
  return gpu().processors / Tile::kCluster;
}

template <typename Tile>
Plan whole_plan_of(const QMatmulArgs& a, const Matrix& m) {
  constexpr int kColumns = kJointColumns<Tile>;
  return whole_plan((a.M + Tile::kRows - 1) / Tile::kRows, (a.N + kColumns - 1) / kColumns, stages_of(m, Tile::kBlocks),
                    joint_places<Tile>());
}

// The tiles of the last turn each by a block of its own, the others as its helpers, if they are few. To leave a piece
// takes a helper as long as 256 k, and it should be done as much earlier.
template <typename Tile>
Plan helped_plan(const Plan& whole) {
  constexpr int kStage = Tile::kBlocks * kTileRows, kPiece = 256, kEarlier = 256;
  Plan p = whole;
  p.ctas = joint_places<Tile>(), p.whole = p.tiles / p.ctas, p.rest = p.tiles % p.ctas;
  const int64_t work = static_cast<int64_t>(p.rest) * p.stages * kStage + p.ctas * kPiece + p.helpers() * kEarlier;
  p.own = static_cast<int>((work + int64_t{p.ctas} * kStage - 1) / (int64_t{p.ctas} * kStage));
  return kHelps<Tile> && 2 * p.helpers() <= p.rest && p.own < p.stages ? p : Plan{};
}

// Whole, cut or helped.
template <typename Tile>
Plan plan_of(const QMatmulArgs& a, const Matrix& m) {
  constexpr int kColumns = kJointColumns<Tile>, kStage = Tile::kBlocks * kTileRows;
  const Plan plan = make_plan((a.M + Tile::kRows - 1) / Tile::kRows, (a.N + kColumns - 1) / kColumns,
                              stages_of(m, Tile::kBlocks), kStage, joint_places<Tile>(), kExtra<Tile>);
  const Plan helped = helped_plan<Tile>(whole_plan_of<Tile>(a, m));
  return helped.own > 0 && cost_of(helped, kStage, kExtra<Tile>) < cost_of(plan, kStage, kExtra<Tile>) ? helped : plan;
}

// See Scratch.
template <typename Tile>
int64_t flags_of(const Plan& plan) {
  return plan.own == 0 ? 0
                       : (static_cast<int64_t>(plan.ctas) * Tile::kCluster + 1) / 2 * 2;  // pieces are 16-byte aligned
}
template <typename Tile>
int64_t scratch_bytes(const Plan& plan) {
  return flags_of<Tile>(plan) * static_cast<int64_t>(sizeof(Flag)) +
         piece_bytes(plan, static_cast<int64_t>(Tile::kRows) * kJointColumns<Tile>);
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
  const int fixed = kBarrierBytes + (Tile::kByWarps ? Tile::kWarps * Tile::kM * 512 : 0);
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

// Clusters of `size` blocks that the GPU runs at once: a block fills a multiprocessor, and not all of those can be in
// one cluster.
template <typename Tile, bool kZeros>
int clusters_at_once(int shared, int size) {
  constexpr int kDevices = 64;
  static int known[kDevices][kMaxSplit + 1];  // plus one; a race writes the same values twice
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return 0;
  int& found = known[device][size];
  if (found == 0) {
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(size);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(size)), config.blockDim = dim3(Tile::kThreads);
    config.dynamicSmemBytes = shared, config.attrs = &cluster, config.numAttrs = 1;
    int clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, wide_kernel<Tile, kZeros>, &config) != cudaSuccess) {
      cudaGetLastError();
      clusters = 0;
    }
    found = clusters + 1;
  }
  return found - 1;
}

template <typename Tile, bool kZeros>
Status prepare(int shared) {
  return status(cudaFuncSetAttribute(wide_kernel<Tile, kZeros>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
}

// Bytes that add_up_cluster() writes in a block.
template <typename Tile>
constexpr int exchanged_bytes(int split) {
  constexpr int kFours = Tile::kRows * Tile::kColumns / (Tile::kWarps * 32) / 4;
  return (kFours + split - 1) * Tile::kWarps * 32 * 16;
}

struct Way {
  Plan plan;
  double cost;
};

// One turn of tiles, by a block each or by clusters, where that is sooner done.
template <typename Tile, bool kZeros>
void consider_one_turn(const QMatmulArgs& a, const Matrix& m, int shared, double width, Way* best) {
  const int most = joint_places<Tile>();
  const Plan whole = whole_plan_of<Tile>(a, m);
  const int most_split = Tile::kCluster > 1 ? 1 : std::min(kMaxSplit, whole.stages);
  for (int split = 1; split <= most_split && split * whole.tiles <= most; ++split) {
    const Plan plan = split == 1 ? whole : split_plan(whole, split);
    const double cost = width * static_cast<double>(cost_of(plan, Tile::kBlocks * kTileRows, kExtra<Tile>));
    if (cost >= best->cost) continue;
    if (split > 1 &&
        (exchanged_bytes<Tile>(split) > shared || whole.tiles > clusters_at_once<Tile, kZeros>(shared, split)))
      continue;
    *best = {plan, cost};
  }
}

template <typename Tile, bool kZeros>
Status launch_wide(const QMatmulArgs& a, const Matrix& m, const Shape& shape, const Plan& plan, Stream stream) {
  using T = typename Tile::T;
  Maps maps{};
  if (!describe<Tile>(a, m, shape, &maps)) return {"qmatmul: the driver refuses a tensor map"};
  const Output<T> output = output_of<T>(a);
  auto* flags = static_cast<Flag*>(a.scratch);
  auto* pieces = reinterpret_cast<float4*>(flags + flags_of<Tile>(plan));
  const Scratch scratch{flags, pieces, plan.own > 0 ? next_mark() : 0};
  const int cluster = plan.split * Tile::kCluster;  // one of them is 1
  const Status done =
      launch_together(wide_kernel<Tile, kZeros>, dim3(plan.ctas * Tile::kCluster), cluster, dim3(Tile::kThreads),
                      shape.bytes(), stream, true, plan.own > 0, m, maps, shape, plan, output, scratch);
  return done.ok() ? add_pieces<T, kJointColumns<Tile> / 64, Tile::kRows>(plan, output, pieces, stream) : done;
}

template <typename Wide, typename Narrow, bool kZeros>
Status launch_best(const QMatmulArgs& a, const Matrix& m, Stream stream) {
  const Shape shape = shape_of<Wide>(m);
  if (const Status set = prepare<Wide, kZeros>(shape.bytes()); !set.ok()) return set;
  Way best{plan_of<Wide>(a, m), 0};
  // Helpers are waited for, so all blocks run at once: a GPU that is shared may have no room for them.
  if (best.plan.own > 0 && best.plan.ctas > clusters_at_once<Wide, kZeros>(shape.bytes(), Wide::kCluster))
    best.plan = whole_plan_of<Wide>(a, m);
  best.cost = static_cast<double>(cost_of(best.plan, Wide::kBlocks * kTileRows, kExtra<Wide>));
  consider_one_turn<Wide, kZeros>(a, m, shape.bytes(), 1, &best);
  if constexpr (!std::is_same_v<Wide, Narrow>) {
    const Shape narrow = shape_of<Narrow>(m);
    if (const Status set = prepare<Narrow, kZeros>(narrow.bytes()); !set.ok()) return set;
    const double so_far = best.cost;
    consider_one_turn<Narrow, kZeros>(a, m, narrow.bytes(), kNarrow, &best);
    if (best.cost < so_far) return launch_wide<Narrow, kZeros>(a, m, narrow, best.plan, stream);
  }
  return launch_wide<Wide, kZeros>(a, m, shape, best.plan, stream);
}

template <typename T, bool kZeros>
Status wide_in_runs(const QMatmulArgs& a, const Matrix& m, Stream stream) {
  return with_run_tile<T>(
      a.M, [&](auto wide, auto narrow) { return launch_best<decltype(wide), decltype(narrow), kZeros>(a, m, stream); });
}

template <typename T>
Status wide_mixed(const QMatmulArgs& a, const Matrix& m, Stream stream) {
  return with_mixed_tile<T>(
      a.M, [&](auto wide, auto narrow) { return launch_best<decltype(wide), decltype(narrow), false>(a, m, stream); });
}

}  // namespace nybble::cuda::wide
