// paged_attention: check, fill the arguments, call.
#include "ops/paged_attention.h"

#include "binding/bindings.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

constexpr const char* kExpected = "expected D (q's dtype or float8 bytes), or D or D / 2 bytes of codes with scales";

// Keys or values: their storage follows from dtype, width and whether there are scales.
KvPages read(Check& check, const Tensor& t, const char* name, const std::optional<Tensor>& scales,
             const char* scales_name, const Tensor& q) {
  KvPages kv{};
  const int64_t D = check["D"];
  if (t.scalar_type() != ScalarType::Byte) {
    check.type(t, name, q.scalar_type());
    check.that(!scales.has_value(), scales_name, " is given, but ", name, " is ", dtype_name(t.scalar_type()),
               ", expected uint8");
    check.shape(t, name, {"P", "page", "Hk", "D"});
    kv.kind = KvKind::plain;
  } else {
    check.type(t, name, ScalarType::Byte);
    check.that(q.scalar_type() != ScalarType::Float, name, " is uint8, which q's dtype float32 does not go with");
    check.that(t.dim() == 4, name, " has ", t.dim(), " dimensions, expected [P, page, Hk, D or D / 2]");
    const int64_t width = t.size(3);
    check.that(width == D || (scales.has_value() && 2 * width == D), name, " has rows of ", width, " bytes, ",
               kExpected, ", D = ", D, " from q");
    check.shape(t, name, {"P", "page", "Hk", width == D ? "D" : "D/2"});
    kv.kind = !scales.has_value() ? KvKind::fp8 : width == D ? KvKind::q8 : KvKind::q4;
  }
  check.unit_stride(t, name);
  if (scales.has_value()) {
    const int64_t Hk = check["Hk"];
    check.that(D % 32 == 0 && Hk * D % 64 == 0, name, " has Hk = ", Hk, " heads of D = ", D,
               ", expected D a multiple of 32 and Hk D of 64, the size of a rotated group");
    check.contiguous(t, name);
    check.type(*scales, scales_name, ScalarType::Half);
    check.shape(*scales, scales_name, {"P", "page", "Hk", "D/32"});
    check.contiguous(*scales, scales_name);
    kv.scales = scales->data_ptr();
    kv.scales_page = scales->stride(0);
    kv.scales_slot = scales->stride(1);
    kv.scales_head = scales->stride(2);
  }
  kv.data = t.data_ptr();
  kv.stride_page = t.stride(0);
  kv.stride_slot = t.stride(1);
  kv.stride_head = t.stride(2);
  return kv;
}

// `scratch_bytes` and `kernel` are those of one device.
template <typename ScratchBytes, typename Kernel>
Tensor attend(Check check, const Tensor& q_in, const Tensor& keys, const Tensor& values,
              const std::optional<Tensor>& key_scales, const std::optional<Tensor>& value_scales,
              const Tensor& block_table, const Tensor& lengths, const std::optional<Tensor>& slopes, double scale,
              int64_t window, double softcap, bool invariant, ScratchBytes scratch_bytes, Kernel kernel) {
  PagedAttentionArgs args{};
  args.dtype = check.floats(q_in, "q");
  check.shape(q_in, "q", {"B", "T", "H", "D"});
  args.D = check["D"];
  check.let("D/2", args.D / 2, "q");
  check.let("D/32", args.D / 32, "q");
  args.keys = read(check, keys, "keys", key_scales, "key_scales", q_in);
  args.values = read(check, values, "values", value_scales, "value_scales", q_in);
  check.type(block_table, "block_table", ScalarType::Int);
  check.shape(block_table, "block_table", {"B", "n"});
  check.type(lengths, "lengths", ScalarType::Long);
  check.shape(lengths, "lengths", {"B"});
  args.B = check["B"], args.T = check["T"], args.H = check["H"], args.Hk = check["Hk"];
  args.P = check["P"], args.page = check["page"], args.n = check["n"];
  check.that(args.Hk > 0 && args.H % args.Hk == 0, "q has H = ", args.H,
             " heads, expected a multiple of keys' Hk = ", args.Hk);
  check.that(window >= 0, "window is ", window, ", expected 0 (no window) or more");
  check.that(softcap >= 0, "softcap is ", softcap, ", expected 0 (none) or more");
  if (slopes.has_value()) {
    check.type(*slopes, "slopes", ScalarType::Float);
    check.shape(*slopes, "slopes", {"H"});
    check.contiguous(*slopes, "slopes");
  }
  const Tensor filled = dense(lengths), table = dense_last(block_table), q = dense_last(q_in);
  const int64_t most = args.n * args.page, P = args.P, page = args.page;
  check.each<int64_t>(filled, "lengths", "0 to n page, the tokens of a row of block_table",
                      [most](int64_t n) { return n >= 0 && n <= most; });
  if (q.is_cpu()) {
    // Only the pages that hold tokens: the rest of a row may be anything.
    for (int64_t b = 0; b < args.B; ++b) {
      const int32_t* row = static_cast<const int32_t*>(table.data_ptr()) + b * table.stride(0);
      const int64_t length = static_cast<const int64_t*>(filled.data_ptr())[b];
      for (int64_t i = 0; i * page < length; ++i)
        check.that(row[i] >= 0 && row[i] < P, "block_table[", b, ", ", i, "] is ", row[i], ", expected 0 to ", P - 1);
    }
  }
  Tensor o = with_last(q, args.D);
  if (o.numel() == 0) return o;
  args.q = q.data_ptr();
  args.o = o.data_ptr();
  args.block_table = static_cast<const int32_t*>(table.data_ptr());
  args.block_table_stride = table.stride(0);
  args.lengths = static_cast<const int64_t*>(filled.data_ptr());
  args.slopes = static_cast<const float*>(pointer(slopes));
  args.q_stride_b = q.stride(0);
  args.q_stride_t = q.stride(1);
  args.q_stride_h = q.stride(2);
  args.scale = static_cast<float>(scale);
  args.window = window;
  args.softcap = static_cast<float>(softcap);
  args.invariant = invariant;
  const Scratch scratch(q, scratch_bytes(args));
  args.scratch = scratch.data();
  check.done(kernel(args));
  return o;
}

}  // namespace

Tensor paged_attention_cpu(const Tensor& q, const Tensor& keys, const Tensor& values,
                           const std::optional<Tensor>& key_scales, const std::optional<Tensor>& value_scales,
                           const Tensor& block_table, const Tensor& lengths, const std::optional<Tensor>& slopes,
                           double scale, int64_t window, double softcap, bool invariant) {
  return attend(
      Check("paged_attention"), q, keys, values, key_scales, value_scales, block_table, lengths, slopes, scale, window,
      softcap, invariant, [](const PagedAttentionArgs&) { return 0; }, cpu::paged_attention);
}

#ifdef NYBBLE_CUDA
Tensor paged_attention_cuda(const Tensor& q, const Tensor& keys, const Tensor& values,
                            const std::optional<Tensor>& key_scales, const std::optional<Tensor>& value_scales,
                            const Tensor& block_table, const Tensor& lengths, const std::optional<Tensor>& slopes,
                            double scale, int64_t window, double softcap, bool invariant) {
  const CudaScope scope(q);
  return attend(Check("paged_attention", true), q, keys, values, key_scales, value_scales, block_table, lengths, slopes,
                scale, window, softcap, invariant, cuda::paged_attention_scratch_bytes,
                [&](const PagedAttentionArgs& args) { return cuda::paged_attention(args, scope.stream()); });
}
#endif

}  // namespace nybble::binding
