// Which kernel, how many warps, how many ranges; then the kernel and `combine`.
#include "cuda/common/flag.cuh"
#include "cuda/paged_attention/join.cuh"
#include "cuda/paged_attention/plan.cuh"

namespace nybble::cuda {
namespace {

using namespace paged;

bool is_code(KvKind kind) { return kind == KvKind::q8 || kind == KvKind::q4; }

// Every row of 16 bytes can be read as one, and 32 bits count them all.
bool aligned(const PagedAttentionArgs& a, const KvPages& kv) {
  const int64_t item = kv.kind == KvKind::plain ? 2 : 1;
  for (const int64_t stride : {kv.stride_page, kv.stride_slot, kv.stride_head})
    if (stride * item % 16 != 0) return false;
  if (reinterpret_cast<uintptr_t>(kv.data) % 16 != 0) return false;
  const int64_t bytes =
      ((a.P - 1) * kv.stride_page + (a.page - 1) * kv.stride_slot + (a.Hk - 1) * kv.stride_head) * item;
  if (bytes / 16 >= 0xfffffff0) return false;
  if (!is_code(kv.kind)) return true;
  const int64_t token = a.D / 32;  // scales of a token, read in one piece of up to 16 bytes
  for (const int64_t stride : {kv.scales_page, kv.scales_slot, kv.scales_head})
    if (stride % token != 0) return false;
  return reinterpret_cast<uintptr_t>(kv.scales) % (token * 2) == 0;
}

Kernel choose(const PagedAttentionArgs& a) {
  const KvKind k = a.keys.kind, v = a.values.kind;
  Kernel kernel{};
  const bool pairs = reinterpret_cast<uintptr_t>(a.q) % 4 == 0 && (a.q_stride_b | a.q_stride_t | a.q_stride_h) % 2 == 0;
  if (gpu().sm >= 80 && a.dtype != DType::f32 && pairs && aligned(a, a.keys) && aligned(a, a.values)) {
    if (k == KvKind::plain && v == k) kernel = a.dtype == DType::f16 ? half_kernel(a.D) : bfloat_kernel(a.D);
    if (k == KvKind::fp8 && v == k) kernel = fp8_kernel(a.D);
    if (k == KvKind::q8 && v == k) kernel = q8_kernel(a.D);
    if (k == KvKind::q4 && v == k) kernel = q4_kernel(a.D);
    if (k == KvKind::q8 && v == KvKind::q4) kernel = q8_q4_kernel(a.D);
  }
  // A device with little shared memory may not have room for one warp's ring.
  if (kernel.launch == nullptr || kernel.warp_bytes > gpu().shared_memory) return plain_kernel(a);
  return kernel;
}

Reach reach_of(const PagedAttentionArgs& a, const KvPages& kv) {
  const int64_t item = kv.kind == KvKind::plain ? 2 : 1, token = a.D < 32 ? 1 : a.D / 32;
  const auto pieces = [](int64_t n, int64_t size) { return static_cast<unsigned>(n / size); };
  return {pieces(kv.stride_page * item, 16), pieces(kv.stride_slot * item, 16), pieces(kv.stride_head * item, 16),
          pieces(kv.scales_page, token),     pieces(kv.scales_slot, token),     pieces(kv.scales_head, token)};
}

// Blocks of a head, where a range is a block's: what adding up by a second kernel takes is saved, but the warps of a
// block wait for each other at every sequence's end. 0: ranges for warps. H200, us, 8 KV heads, this and that way:
// float16 1 x 4096 10.3, 12.1; 16 x 4096 64, 71; 8 x 32768 247, 245; 4-bit codes 1 x 4096 9.6, 11.9; 8 x
// 4096 25.1, 24.6. Of one sequence, 8-bit codes 1 x 16384 14.7, 16.2; 1 x 65536 38.7, 40.6; 4-bit codes 14.3, 15.9;
// 31.5, 29.8.
int blocks_of_head(const PagedAttentionArgs& a, const Plan& plan, const Kernel& kernel) {
  if (a.invariant || a.D > 128 || plan.warps != kShare || kernel.launch == plain_kernel(a).launch) return 0;
  const int64_t room = a.B > 1 ? 8192 : a.keys.kind == KvKind::q8 ? 65536 : 16384;  // tokens of codes
  if (a.B > 16 || (is_code(a.keys.kind) && a.B * a.n * a.page > room)) return 0;
  const int blocks = gpu().processors / plan.heads < kMostBlocks ? gpu().processors / plan.heads : kMostBlocks;
  return 4 * blocks * plan.heads >= 3 * gpu().processors ? blocks : 0;
}

Plan plan_for(const PagedAttentionArgs& a, const Kernel& kernel) {
  Plan plan{};
  plan.tile_shift = kernel.tile_shift;
  plan.group = static_cast<int>(a.H / a.Hk);
  plan.rows = static_cast<int>(a.T) * plan.group;
  plan.most = static_cast<int>(a.n * a.page);
  plan.blocks_of_head = (plan.rows + kRows - 1) / kRows;
  plan.heads = static_cast<int>(a.Hk) * plan.blocks_of_head;
  plan.window = a.window > 0 && a.window < 0x7fffffff ? static_cast<unsigned>(a.window) : 0x7fffffffu;
  plan.page_shift = -1;
  for (int shift = 0; shift < 31; ++shift)
    if (a.page == int64_t{1} << shift) plan.page_shift = shift;
  plan.keys = reach_of(a, a.keys);
  plan.values = reach_of(a, a.values);
  const int fit = (gpu().shared_memory - 1024) / kernel.warp_bytes;
  plan.warps = fit >= 8 ? 8 : fit >= 4 ? 4 : fit;
  // Heads that lie side by side are read side by side: whole rows of memory, and scales in more than 8 bytes.
  const bool beside = a.keys.stride_head < a.keys.stride_slot && a.values.stride_head < a.values.stride_slot;
  plan.team = beside && plan.blocks_of_head == 1 && plan.warps == kTeam && a.Hk % kTeam == 0;
  if (a.invariant) {
    plan.ranges = kSegments;
    plan.slots = a.B * kSegments;
    return plan;
  }
  plan.blocks = blocks_of_head(a, plan, kernel);
  if (plan.blocks > 0) {
    plan.team = false;
    plan.ranges = plan.blocks;
    return plan;
  }
  // As many workers as run at once. Where heads do not divide them well, several rounds of them.
  const int64_t workers = static_cast<int64_t>(gpu().processors) * plan.warps;
  const int64_t rounds = workers >= 8 * plan.heads ? 1 : 4;
  const int64_t tiles = a.B * ((a.n * a.page >> plan.tile_shift) + 1), ranges = rounds * workers / plan.heads;
  plan.ranges = static_cast<int>(ranges < 1 ? 1 : ranges < tiles ? ranges : tiles);
  plan.slots = plan.ranges + a.B;
  return plan;
}

}  // namespace

int64_t paged_attention_scratch_bytes(const PagedAttentionArgs& a) {
  if (a.B * a.T * a.H * a.D == 0 || a.n * a.page == 0) return 0;
  const Kernel kernel = choose(a);
  const Plan plan = plan_for(a, kernel);
  if (plan.blocks > 0) return join_bytes(a, plan);
  return plan.slots * a.H * a.T * (a.D + 2) * static_cast<int64_t>(sizeof(float)) + 16;
}

Status paged_attention(const PagedAttentionArgs& a, Stream stream) {
  if (a.B * a.T * a.H * a.D == 0) return {};
  if (a.n * a.page == 0)
    return status(cudaMemsetAsync(a.o, 0, a.B * a.T * a.H * a.D * (a.dtype == DType::f32 ? 4 : 2), native(stream)));
  if (a.T * (a.H / a.Hk) > 0x40000000) return {"paged_attention: more than 2^30 queries of a KV head"};
  if (a.n * a.page > 0x7fffffff) return {"paged_attention: more than 2^31 - 1 tokens of a sequence"};
  const Kernel kernel = choose(a);
  if (kernel.launch == nullptr) return {"paged_attention: heads of more than 512 channels"};
  Plan plan = plan_for(a, kernel);
  if (plan.blocks > 0) plan.mark = next_mark() & ~Flag{255};
  const Status started = kernel.launch(a, plan, stream);
  if (!started.ok()) return started;
  if (plan.blocks > 0) return started;
  // The plain kernel undoes the rotation of each value itself.
  const bool rotated = is_code(a.values.kind) && kernel.launch != plain_kernel(a).launch;
  return combine(a, plan, rotated, stream);
}

}  // namespace nybble::cuda
