// Keys and values in 4 or 8 bits, in groups of 64 elements that lie one after the other, whichever head they belong to.
// A group is rotated: elements of even and of odd index are two vectors u of 32, each turned by the Hadamard matrix,
// u = H u, in five steps of half additions. Then each half of the group has a scale of its own, c = 2^(bits - 1):
//   scale = max |u| / c,  code = round(u / max |u| * c + c) in 0 ... 2c - 1,  and back: u = (code - c) * scale, x = H u
//   / 32.
// Every step rounds to half, so that the codes are those of the caches that ExLlamaV2 writes. NaN has code 0.
#pragma once
#include "ops/problem.h"

namespace nybble {

struct KvArgs {
  void* x;       // [N, T] float16; kv_quantize reads it, kv_dequantize writes it
  void* codes;   // [N, T * bits / 8] bytes; of two 4-bit codes in a byte the first is the low one
  void* scales;  // [N, T / 32] float16
  const int64_t*
      runs;  // [n, 2]: the tokens begin ... end - 1 of N to work on; begin * T and end * T are multiples of 64
  int64_t n, T, N;
  int64_t bits;  // 4 or 8
};

namespace cpu {
Status kv_quantize(const KvArgs&);
Status kv_dequantize(const KvArgs&);
}  // namespace cpu
namespace cuda {
Status kv_quantize(const KvArgs&, Stream);
Status kv_dequantize(const KvArgs&, Stream);
}  // namespace cuda

}  // namespace nybble
