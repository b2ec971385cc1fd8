// cached_attention_: rope, then the new keys and values into the cache, then attention over it.
#include "binding/bindings.h"
#include "binding/rope.h"
#include "ops/attention.h"
#include "ops/kv_append.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

// `kernels` does the three steps on either device.
template <typename Kernels>
Tensor step(Check check, const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& positions, bool neox,
            const Tensor& keys, const Tensor& values, const Tensor& lengths, double scale, int64_t window,
            Kernels kernels) {
  KvAppendArgs store{};
  store.dtype = check.floats(qkv, "qkv");
  check.type(keys, "keys", qkv.scalar_type());
  check.type(values, "values", qkv.scalar_type());
  check.shape(qkv, "qkv", {"B", "T", "(H+2Hk)D"});
  check.contiguous(qkv, "qkv");
  check.shape(keys, "keys", {"B", "Hk", "S", "D"});
  check.shape(values, "values", {"B", "Hk", "S", "D"});
  for (const auto& [t, name] : {std::pair{&keys, "keys"}, std::pair{&values, "values"}}) {
    check.unit_stride(*t, name);
    check.distinct(*t, name);
  }
  const int64_t B = check["B"], T = check["T"], S = check["S"], Hk = check["Hk"], D = check["D"],
                width = check["(H+2Hk)D"];
  check.that(Hk > 0 && D > 0 && width % D == 0 && (width / D) % Hk == 0 && width / D > 2 * Hk, "qkv has ", width,
             " columns, expected (H + 2 Hk) D with H a multiple of Hk = ", Hk, " and D = ", D, " from keys");
  check.that(window >= 0, "window is ", window, ", expected 0 (no window) or more");
  check.type(lengths, "lengths", ScalarType::Long);
  check.shape(lengths, "lengths", {"B"});
  const Tensor after = dense(lengths);
  check.each<int64_t>(after, "lengths", "T to S: tokens held with the new ones",
                      [=](int64_t n) { return n >= T && n <= S; });

  RopeArgs turn{};
  const Tensor place = check_rope(check, cos, sin, positions, D, "keys have", turn);

  const int64_t H = width / D - 2 * Hk, item = qkv.element_size();
  Tensor o = new_beside(qkv, {B, T, H * D}, qkv.scalar_type());
  if (o.numel() == 0) return o;
  char* base = static_cast<char*>(qkv.data_ptr());

  turn.x = base;  // q and k lie side by side
  turn.dtype = store.dtype;
  turn.B = B, turn.T = T, turn.H = H + Hk;
  turn.stride_b = T * width, turn.stride_t = width, turn.stride_h = D;
  turn.neox = neox;

  store.keys = keys.data_ptr();
  store.values = values.data_ptr();
  store.k = base + H * D * item;
  store.v = base + (H + Hk) * D * item;
  store.lengths = static_cast<const int64_t*>(after.data_ptr());
  store.B = B, store.T = T, store.S = S, store.Hk = Hk, store.D = D;
  store.keys_stride = {keys.stride(0), keys.stride(1), keys.stride(2)};
  store.values_stride = {values.stride(0), values.stride(1), values.stride(2)};
  store.k_stride = store.v_stride = {T * width, D, width};

  AttentionArgs attend{};
  attend.q = base;
  attend.k = store.keys;
  attend.v = store.values;
  attend.o = o.data_ptr();
  attend.dtype = store.dtype;
  attend.lengths = store.lengths;
  attend.B = B, attend.T = T, attend.S = S, attend.H = H, attend.Hk = Hk, attend.D = D;
  attend.q_stride_b = T * width, attend.q_stride_t = width, attend.q_stride_h = D;
  attend.k_stride_b = store.keys_stride.b, attend.k_stride_h = store.keys_stride.h,
  attend.k_stride_s = store.keys_stride.s;
  attend.v_stride_b = store.values_stride.b, attend.v_stride_h = store.values_stride.h,
  attend.v_stride_s = store.values_stride.s;
  attend.scale = static_cast<float>(scale);
  attend.causal = true;
  attend.window = window;
  check.done(kernels(turn, store, attend));
  return o;
}

}  // namespace

Tensor cached_attention_cpu(const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& positions, bool neox,
                            const Tensor& keys, const Tensor& values, const Tensor& lengths, double scale,
                            int64_t window) {
  return step(Check("cached_attention_"), qkv, cos, sin, positions, neox, keys, values, lengths, scale, window,
              [](const RopeArgs& turn, const KvAppendArgs& store, const AttentionArgs& attend) {
                if (turn.R > 0) {
                  if (const Status turned = cpu::rope(turn); !turned.ok()) return turned;
                }
                const Status stored = cpu::kv_append(store);
                return stored.ok() ? cpu::attention(attend) : stored;
              });
}

#ifdef NYBBLE_CUDA
Tensor cached_attention_cuda(const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& positions,
                             bool neox, const Tensor& keys, const Tensor& values, const Tensor& lengths, double scale,
                             int64_t window) {
  const CudaScope scope(qkv);
  return step(Check("cached_attention_", true), qkv, cos, sin, positions, neox, keys, values, lengths, scale, window,
              [&](const RopeArgs& turn, const KvAppendArgs& store, AttentionArgs attend) {
                const Status stored = cuda::rope_append(turn, store, scope.stream());
                if (!stored.ok()) return stored;
                const Scratch scratch(qkv, cuda::attention_scratch_bytes(attend));
                attend.scratch = scratch.data();
                return cuda::attention(attend, scope.stream());
              });
}
#endif

}  // namespace nybble::binding
