// Each op, sent to the functions built for the chosen instruction set. A new op is one line at the end.
#include "cpu/isa.h"
#include "ops/attention.h"
#include "ops/decode_attention.h"
#include "ops/dequantize.h"
#include "ops/embedding.h"
#include "ops/fp8.h"
#include "ops/gate.h"
#include "ops/gptq.h"
#include "ops/int8_matmul.h"
#include "ops/kv.h"
#include "ops/kv_append.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/paged_attention.h"
#include "ops/qmatmul.h"
#include "ops/quantize.h"
#include "ops/quantize_int8.h"
#include "ops/rope.h"
#include "ops/sample.h"
#include "ops/softcap.h"

#ifdef NYBBLE_HAVE_AVX2
#define NYBBLE_IF_AVX2(code) code
#else
#define NYBBLE_IF_AVX2(code)
#endif
#ifdef NYBBLE_HAVE_AVX512
#define NYBBLE_IF_AVX512(code) code
#else
#define NYBBLE_IF_AVX512(code)
#endif
#if defined(NYBBLE_HAVE_AVX512_VNNI) && defined(NYBBLE_HAVE_AVX512)
#define NYBBLE_IF_AVX512_VNNI(code) code
#else
#define NYBBLE_IF_AVX512_VNNI(code)
#endif
#ifdef NYBBLE_HAVE_NEON
#define NYBBLE_IF_NEON(code) code
#else
#define NYBBLE_IF_NEON(code)
#endif

// `vnni` names the functions that avx512_vnni uses: its own, or those of avx512 where integer products do not matter.
#define NYBBLE_DISPATCH_(result, op, Args, vnni)                            \
  namespace generic {                                                       \
  result op(const Args&);                                                   \
  }                                                                         \
  NYBBLE_IF_AVX2(namespace avx2 { result op(const Args&); })                \
  NYBBLE_IF_AVX512(namespace avx512 { result op(const Args&); })            \
  NYBBLE_IF_AVX512_VNNI(namespace avx512_vnni { result op(const Args&); })  \
  NYBBLE_IF_NEON(namespace neon { result op(const Args&); })                \
  result op(const Args& args) {                                             \
    switch (isa()) {                                                        \
      NYBBLE_IF_AVX2(case Isa::avx2 : return avx2::op(args);)               \
      NYBBLE_IF_AVX512(case Isa::avx512 : return avx512::op(args);)         \
      NYBBLE_IF_AVX512_VNNI(case Isa::avx512_vnni : return vnni::op(args);) \
      NYBBLE_IF_NEON(case Isa::neon : return neon::op(args);)               \
      default:                                                              \
        return generic::op(args);                                           \
    }                                                                       \
  }
#define NYBBLE_DISPATCH(result, op, Args) NYBBLE_DISPATCH_(result, op, Args, avx512)
#define NYBBLE_DISPATCH_VNNI(result, op, Args) NYBBLE_DISPATCH_(result, op, Args, avx512_vnni)

namespace nybble::cpu {

NYBBLE_DISPATCH(Status, rms_norm, NormArgs)
NYBBLE_DISPATCH(Status, layer_norm, NormArgs)
NYBBLE_DISPATCH(Status, rope, RopeArgs)
NYBBLE_DISPATCH(Status, softcap, SoftcapArgs)
NYBBLE_DISPATCH(Status, kv_quantize, KvArgs)
NYBBLE_DISPATCH(Status, kv_dequantize, KvArgs)
NYBBLE_DISPATCH(Status, fp8_encode, Fp8Args)
NYBBLE_DISPATCH(Status, fp8_decode, Fp8Args)
NYBBLE_DISPATCH(Status, gate, GateArgs)
NYBBLE_DISPATCH(Status, attention, AttentionArgs)
NYBBLE_DISPATCH(Status, kv_append, KvAppendArgs)
NYBBLE_DISPATCH(Status, dequantize, DequantizeArgs)
NYBBLE_DISPATCH(Status, matmul, MatmulArgs)
NYBBLE_DISPATCH(Status, quantize_columns, QuantizeColumnsArgs)
NYBBLE_DISPATCH(Status, quantize_error, QuantizeErrorArgs)
NYBBLE_DISPATCH(Status, gptq_group, GptqGroupArgs)
NYBBLE_DISPATCH(Status, embedding, EmbeddingArgs)
NYBBLE_DISPATCH(Status, sample, SampleArgs)
NYBBLE_DISPATCH(Status, sample_chain, SampleChainArgs)
NYBBLE_DISPATCH_VNNI(int64_t, qmatmul_scratch_bytes, QMatmulArgs)
NYBBLE_DISPATCH_VNNI(Status, qmatmul, QMatmulArgs)
NYBBLE_DISPATCH(Status, quantize_int8, QuantizeArgs)
NYBBLE_DISPATCH(Status, layer_norm_int8, NormInt8Args)
NYBBLE_DISPATCH_VNNI(Status, int8_matmul, Int8MatmulArgs)
NYBBLE_DISPATCH(Status, decode_attention, DecodeAttentionArgs)
NYBBLE_DISPATCH(Status, paged_attention, PagedAttentionArgs)

}  // namespace nybble::cpu
