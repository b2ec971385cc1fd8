// Rows of x as the packed matrix product reads them: gathered through perm, in groups of rows, one record per group and
// k block. With R rows in the group a record is
//   float activations:   f32 [32 k][R]
//   integer activations: int8 [planes][8 quads][R][4 k], f32 scale [R], i32 correction [R], f32 sum [R]
// x = scale * v; v = 256 * plane 0 + plane 1 (act_bits 16) or plane 0 (act_bits 8); sum = sum of v over the block;
// correction = -2^(bits-1) * sum, or 0 where the matrix has its own zeros.
#pragma once
#include <cstdint>
#include <cstring>

#include "cpu/codec/packed_tile.h"
#include "cpu/simd/vec.h"
#include "ops/qmatmul.h"

namespace nybble::cpu::NYBBLE_ISA {

constexpr int kGroup = kLanes == 16 ? 8 : 4;  // rows of a full group: what the registers hold beside the codes

inline float load_element(const void* p, DType dtype, int64_t i) {
  if (dtype == DType::f32) return static_cast<const float*>(p)[i];
  return dtype == DType::f16 ? to_float(static_cast<const f16*>(p)[i]) : to_float(static_cast<const bf16*>(p)[i]);
}

inline void store_element(void* p, DType dtype, int64_t i, float f) {
  if (dtype == DType::f32)
    static_cast<float*>(p)[i] = f;
  else if (dtype == DType::f16)
    from_float(f, static_cast<f16*>(p) + i);
  else
    from_float(f, static_cast<bf16*>(p) + i);
}

// Rows of group g: full, or the remainder rounded up to a power of two, so that few kernels serve all M.
inline int group_rows(int64_t M, int64_t g) {
  const int64_t left = M - g * kGroup;
  return left >= kGroup ? kGroup : left > 4 ? 8 : left > 2 ? 4 : int(left);
}

inline int64_t record_bytes_per_row(int planes) { return planes == 0 ? 4 * kPackRows : planes * kPackRows + 12; }

// The 32 values of k block kb of row m.
inline void gather(const QMatmulArgs& a, int64_t m, int64_t kb, float* out) {
  const int64_t row = m * a.x_stride, k0 = kb * kPackRows;
  if (a.perm) {
    for (int i = 0; i < kPackRows; i++) {
      const int32_t k = a.perm[k0 + i];
      out[i] = k < 0 ? 0.f : load_element(a.x, a.x_dtype, row + k);
    }
  } else if (k0 + kPackRows <= a.K && a.x_dtype == DType::f32) {
    std::memcpy(out, static_cast<const float*>(a.x) + row + k0, 4 * kPackRows);
  } else {
    for (int i = 0; i < kPackRows; i++) out[i] = k0 + i < a.K ? load_element(a.x, a.x_dtype, row + k0 + i) : 0.f;
  }
}

// Writes row r of a record of R rows; a row beyond M (real = false) is zeros.
inline void write_record(const QMatmulArgs& a, int planes, uint8_t* record, int R, int r, int64_t m, int64_t kb) {
  alignas(64) float x[kPackRows] = {};
  if (m < a.M) gather(a, m, kb, x);
  if (planes == 0) {
    for (int k = 0; k < kPackRows; k++) std::memcpy(record + 4 * (k * R + r), x + k, 4);
    return;
  }
  uint32_t largest = 0;  // the bits of |x| order like the values, with inf and NaN on top
  for (int k = 0; k < kPackRows; k++) {
    const uint32_t u = bits_of(x[k]) & 0x7fffffff;
    largest = u > largest ? u : largest;
  }
  const float limit = planes == 2 ? 127.f * 256 : 127.f;  // so that both planes of v fit int8
  float scale = float_of(largest) / limit, inverse = limit / float_of(largest);
  if (largest >= 0x7f800000) {
    scale = float_of(0x7fc00000), inverse = 0;  // inf or NaN somewhere: the whole row becomes NaN
    for (float& v : x) v = 0;
  } else if (largest < bits_of(1e-30f)) {
    scale = inverse = 0;  // too small for 1 / |x| to be finite
  }
  alignas(64) int32_t v[kPackRows];
  alignas(64) int8_t plane[2][kPackRows];
  int32_t sum = 0;
  for (int k = 0; k < kPackRows; k++) {
    v[k] = int32_t(bits_of(x[k] * inverse + 0x1.8p23f)) - 0x4b400000;  // rounds to nearest even
    sum += v[k];
  }
  for (int k = 0; k < kPackRows; k++) {
    const int8_t low = int8_t(v[k]);
    plane[0][k] = planes == 2 ? int8_t((v[k] - low) >> 8) : low;
    plane[1][k] = low;
  }
  for (int p = 0; p < planes; p++) {
    for (int q = 0; q < kQuads; q++) std::memcpy(record + p * 32 * R + 4 * (q * R + r), plane[p] + 4 * q, 4);
  }
  uint8_t* tail = record + planes * kPackRows * R + 4 * r;
  const int32_t correction = a.zeros ? 0 : -sum * (1 << (a.blocks[2 * kb] - 1));
  const float fsum = float(sum);
  std::memcpy(tail, &scale, 4);
  std::memcpy(tail + 4 * R, &correction, 4);
  std::memcpy(tail + 8 * R, &fsum, 4);
}

}  // namespace nybble::cpu::NYBBLE_ISA
