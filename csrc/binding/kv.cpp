// kv_quantize_, kv_dequantize_, fp8_encode_, fp8_decode_: check, fill the arguments, call.
#include "ops/kv.h"

#include "binding/bindings.h"
#include "ops/fp8.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

// Both directions have the same arguments; `kernel` is one of them.
template <typename Kernel>
void kv(Check check, const Tensor& x, const Tensor& codes, const Tensor& scales, const Tensor& runs, int64_t bits,
        Kernel kernel) {
  check.that(bits == 4 || bits == 8, "bits is ", bits, ", expected 4 or 8");
  check.type(x, "x", ScalarType::Half);
  check.shape(x, "x", {"P", "S", "H", "D"});
  check.contiguous(x, "x");
  check.that(check["D"] % 32 == 0, "x has D = ", check["D"], ", expected a multiple of 32");
  check.let("D bits/8", check["D"] / 8 * bits, "D and bits");
  check.type(codes, "codes", ScalarType::Byte);
  check.shape(codes, "codes", {"P", "S", "H", "D bits/8"});
  check.contiguous(codes, "codes");
  check.let("D/32", check["D"] / 32, "D");
  check.type(scales, "scales", ScalarType::Half);
  check.shape(scales, "scales", {"P", "S", "H", "D/32"});
  check.contiguous(scales, "scales");
  check.type(runs, "runs", ScalarType::Long);
  check.let("2", 2, "begin and end");
  check.shape(runs, "runs", {"n", "2"});
  const Tensor dense = torch::stable::contiguous(runs);
  KvArgs args{};
  args.runs = static_cast<const int64_t*>(dense.data_ptr());
  args.n = check["n"];
  if (x.numel() == 0) {
    check.each<int64_t>(dense, "runs", "0, x is empty", [](int64_t token) { return token == 0; });
    return;
  }
  const int64_t N = args.N = check["P"] * check["S"];
  args.T = check["H"] * check["D"];
  for (int64_t r = 0; r < args.n && runs.is_cpu(); ++r) {
    const int64_t begin = args.runs[2 * r], end = args.runs[2 * r + 1];
    check.that(0 <= begin && begin <= end && end <= N, "runs[", r, "] is ", begin, " to ", end,
               ", expected tokens in order from 0 to ", N);
    check.that(begin * args.T % 64 == 0 && end * args.T % 64 == 0, "runs[", r, "] is ", begin, " to ", end,
               " tokens of ", args.T, " elements, expected whole groups of 64");
  }
  args.x = x.data_ptr();
  args.codes = codes.data_ptr();
  args.scales = scales.data_ptr();
  args.bits = bits;
  check.done(kernel(args));
}

template <typename Kernel>
void fp8(Check check, const Tensor& to, const char* to_name, ScalarType to_type, const Tensor& from,
         const char* from_name, ScalarType from_type, Kernel kernel) {
  check.type(to, to_name, to_type);
  check.type(from, from_name, from_type);
  check.shape(to, to_name, {"...", "D"});
  check.distinct(to, to_name);
  const auto a = to.sizes(), b = from.sizes();
  bool same = a.size() == b.size();
  for (size_t i = 0; same && i < a.size(); ++i) same = a[i] == b[i];
  check.that(same, "codes and x have different shapes; expected the same");
  const WritableRows out(to);
  const Rows in(from);
  if (out.R * out.D == 0) return;
  check.done(kernel({in.data(), out.data(), out.R, out.D, in.stride, out.stride}));
  out.write_back();
}

}  // namespace

void kv_quantize_cpu(const Tensor& codes, const Tensor& scales, const Tensor& x, const Tensor& runs, int64_t bits) {
  kv(Check("kv_quantize_"), x, codes, scales, runs, bits, cpu::kv_quantize);
}

void kv_dequantize_cpu(const Tensor& x, const Tensor& codes, const Tensor& scales, const Tensor& runs, int64_t bits) {
  kv(Check("kv_dequantize_"), x, codes, scales, runs, bits, cpu::kv_dequantize);
}

void fp8_encode_cpu(const Tensor& codes, const Tensor& x) {
  fp8(Check("fp8_encode_"), codes, "codes", ScalarType::Byte, x, "x", ScalarType::Half, cpu::fp8_encode);
}

void fp8_decode_cpu(const Tensor& x, const Tensor& codes) {
  fp8(Check("fp8_decode_"), x, "x", ScalarType::Half, codes, "codes", ScalarType::Byte, cpu::fp8_decode);
}

#ifdef NYBBLE_CUDA
void kv_quantize_cuda(const Tensor& codes, const Tensor& scales, const Tensor& x, const Tensor& runs, int64_t bits) {
  const CudaScope scope(x);
  kv(Check("kv_quantize_", true), x, codes, scales, runs, bits,
     [&](const KvArgs& args) { return cuda::kv_quantize(args, scope.stream()); });
}

void kv_dequantize_cuda(const Tensor& x, const Tensor& codes, const Tensor& scales, const Tensor& runs, int64_t bits) {
  const CudaScope scope(x);
  kv(Check("kv_dequantize_", true), x, codes, scales, runs, bits,
     [&](const KvArgs& args) { return cuda::kv_dequantize(args, scope.stream()); });
}

void fp8_encode_cuda(const Tensor& codes, const Tensor& x) {
  const CudaScope scope(x);
  fp8(Check("fp8_encode_", true), codes, "codes", ScalarType::Byte, x, "x", ScalarType::Half,
      [&](const Fp8Args& args) { return cuda::fp8_encode(args, scope.stream()); });
}

void fp8_decode_cuda(const Tensor& x, const Tensor& codes) {
  const CudaScope scope(x);
  fp8(Check("fp8_decode_", true), x, "x", ScalarType::Half, codes, "codes", ScalarType::Byte,
      [&](const Fp8Args& args) { return cuda::fp8_decode(args, scope.stream()); });
}
#endif

}  // namespace nybble::binding
