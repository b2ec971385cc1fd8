// Quantized matrix product: y = gather(x, perm) @ W + bias + add.
//
//   1. pack: rows of x become records (cpu/codec/packed_rows.h), in groups of up to kGroup rows.
//   2. units: one column block (16 columns) times one block of rows. One group of rows: the tiles are decoded into
//      registers as they stream in. More groups: kChunk tiles are decoded to L1, then every group passes over them.
//
//          16 columns        rows of x: records of k block t
//        +-----------+       +----+----+----+-
//   t    |   tile    |  <--  | g0 | g1 | g2 |      sums[row][16] += scale[row, t] * wscale[16] * dot[row][16]
//        +-----------+       +----+----+----+-
//   t+1  |   tile    |
//
// A row's sum runs over the k blocks in order, each block's dot alone in its own accumulator, whatever M and the number
// of threads: a row gives the same bits in every batch.
#include "ops/qmatmul.h"

#include "cpu/codec/packed_rows.h"
#include "cpu/codec/packed_tile.h"
#include "cpu/threads.h"
#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#if defined(__AVX512VNNI__)
namespace nybble::cpu::avx512 {
Status qmatmul(const QMatmulArgs&);
}
#endif

namespace nybble::cpu::NYBBLE_ISA {
namespace {

constexpr int kMaxRows = 128;                   // rows of a row block at most
constexpr int64_t kRowBlockBytes = 1280 << 10;  // its records: they should stay in L2 while the columns pass
constexpr int kAhead = 1024;                    // bytes from the tile in work to the prefetched one

#if defined(__AVX512VNNI__)
constexpr bool kIntegers = true;
#else
constexpr bool kIntegers = false;
#endif

int planes_of(const QMatmulArgs& a) { return !kIntegers || a.act_bits == 32 ? 0 : a.act_bits == 16 ? 2 : 1; }

// What the kernels of one column block read.
struct Columns {
  const QMatmulArgs& a;
  int64_t nb;
  const uint16_t* scales(int64_t kb) const { return a.scales + (nb * a.G + a.blocks[2 * kb + 1]) * 16; }
  const float* zeros(int64_t kb) const { return a.zeros ? a.zeros + (nb * a.G + a.blocks[2 * kb + 1]) * 16 : nullptr; }
  int bits(int64_t kb) const { return a.blocks[2 * kb]; }
};

// S column blocks, each `apart` blocks after the one before. Their tiles are read side by side: a core reads memory
// faster as several runs than as one.
template <int S>
struct Strips {
  Columns first;
  const uint8_t* tiles;           // of the first
  int64_t apart = 0, stride = 0;  // in column blocks; in bytes
  Columns columns(int s) const { return {first.a, first.nb + s * apart}; }
};

inline F32 load_scales(const uint16_t* p) {
#if defined(__AVX512F__)
  return (F32)_mm512_maskz_cvtph_ps(0xffff, load<__m256i>(p));  // the plain form warns in gcc 12's header
#elif defined(__F16C__)
  return (F32)_mm256_cvtph_ps(load<__m128i>(p));
#else
  F32 v;
  for (int i = 0; i < kLanes; i++) v[i] = to_float(f16{p[i]});
  return v;
#endif
}

// Prefetching past the weight's end is harmless: a prefetch never faults.
inline void prefetch_tile(const uint8_t* tile, int bits) {
  for (int i = 0; i < bits; i++) __builtin_prefetch(tile + kAhead + 64 * i);
}

// Float activations. A decoded tile is f32 [32 rows][16 columns] of code - zero.
struct Floats {
  static constexpr int kStrips = 1;
  static constexpr int kTileBytes = 4 * 32 * 16;
  static constexpr int kChunk = 8;

  template <int BITS>
  static void decode_tile(const uint8_t* tile, const float* zeros, uint8_t* out) {
    float* w = reinterpret_cast<float*>(out);
    for (int part = 0; part < kParts; part++) {
      U32 codes[kQuads];
      decode<BITS>(tile + 4 * kLanes * part, codes);
      const F32 zero = zeros ? load<F32>(zeros + kLanes * part) : F32{} + float(1 << (BITS - 1));
#pragma GCC unroll 8
      for (int q = 0; q < kQuads; q++) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
          const U32 code = codes[q] >> (8 * i) & 0xff;
          store(w + (4 * q + i) * 16 + kLanes * part, __builtin_convertvector((I32)code, F32) - zero);
        }
      }
    }
  }

  template <int R>
  static void multiply(const Columns& c, int64_t kb, const uint8_t* tile, const uint8_t* record, float* sums) {
    const float* w = reinterpret_cast<const float*>(tile);
    const float* x = reinterpret_cast<const float*>(record);
    for (int part = 0; part < kParts; part++) {
      F32 dot[2][R] = {};  // even and odd rows, so that the adds of one x row need not wait for each other
#pragma GCC unroll 4
      for (int k = 0; k < 32; k += 2) {
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; odd++) {
          const F32 wk = load<F32>(w + (k + odd) * 16 + kLanes * part);
#pragma GCC unroll 8
          for (int r = 0; r < R; r++) dot[odd][r] += wk * x[(k + odd) * R + r];
        }
      }
      const F32 scale = load_scales(c.scales(kb) + kLanes * part);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        float* sum = sums + 16 * r + kLanes * part;
        store(sum, load<F32>(sum) + (dot[0][r] + dot[1][r]) * scale);
      }
    }
  }

  // Tiles kb.. kb+n of one width, of every strip, for one group of rows.
  template <int R, int BITS, int S>
  static void stream(const Strips<S>& strips, int64_t kb, int64_t n, int64_t offset, const uint8_t* records,
                     float* sums) {
    const uint8_t* tiles = strips.tiles + offset;
    alignas(64) uint8_t decoded[kTileBytes];
    for (int64_t t = 0; t < n; t++, tiles += 64 * BITS, records += 4 * 32 * R) {
      for (int s = 0; s < S; s++) {
        const Columns c = strips.columns(s);
        prefetch_tile(tiles + s * strips.stride, BITS);
        decode_tile<BITS>(tiles + s * strips.stride, c.zeros(kb + t), decoded);
        multiply<R>(c, kb + t, decoded, records, sums + 16 * R * s);
      }
    }
  }

  template <int R>
  static void chunk(const Columns& c, int64_t kb, int64_t n, const uint8_t* decoded, const uint8_t* records,
                    float* sums) {
    for (int64_t t = 0; t < n; t++) multiply<R>(c, kb + t, decoded + t * kTileBytes, records + t * 4 * 32 * R, sums);
  }
};

#if defined(__AVX512VNNI__)
// Integer activations of PLANES int8 planes. A decoded tile is 8 vectors of 64 code bytes: a tile of 8 bits.
template <int PLANES>
struct Integers {
  static constexpr int kStrips = 4;
  static constexpr int kTileBytes = 64 * kQuads;
  static constexpr int kChunk = 32;
  static constexpr int kRow = PLANES * kPackRows + 12;  // bytes of a record for each row

  template <int BITS>
  static void decode_tile(const uint8_t* tile, const float*, uint8_t* out) {
    U32 codes[kQuads];
    decode<BITS>(tile, codes);
#pragma GCC unroll 8
    for (int q = 0; q < kQuads; q++) store(out + 64 * q, codes[q]);
  }

  // The sum over p of dot[p][r] grows by codes . plane of row r.
  template <int R, int SPLIT>
  static inline void add_dots(const U32 (&codes)[kQuads], const uint8_t* plane, __m512i (&dot)[SPLIT][R]) {
#pragma GCC unroll 8
    for (int q = 0; q < kQuads; q++) {
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const __m512i x = _mm512_set1_epi32(load<int32_t>(plane + 4 * (q * R + r)));
        dot[q % SPLIT][r] = _mm512_dpbusd_epi32(dot[q % SPLIT][r], (__m512i)codes[q], x);
      }
    }
  }

  template <int R, int SPLIT>
  static inline __m512i sum_parts(const __m512i (&dot)[SPLIT][R], int r) {
    return SPLIT == 2 ? _mm512_add_epi32(dot[0][r], dot[SPLIT - 1][r]) : dot[0][r];
  }

  template <int R>
  static inline void multiply(const uint16_t* scales, const float* zeros, const U32 (&codes)[kQuads],
                              const uint8_t* record, F32 (&sums)[R]) {
    const uint8_t* tail = record + PLANES * kPackRows * R;
    // Few rows leave few sums to overlap, so each is kept in several parts: integer sums do not mind the order.
    constexpr int kSplit = R <= 2 ? 2 : 1;
    __m512i dot[R], parts[PLANES][kSplit][R] = {};
#pragma GCC unroll 2
    for (int p = 0; p < PLANES; p++) add_dots<R, kSplit>(codes, record + p * kPackRows * R, parts[p]);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      dot[r] = sum_parts<R, kSplit>(parts[PLANES - 1], r);
      if (PLANES == 2) dot[r] = (__m512i)((I32)dot[r] + ((I32)sum_parts<R, kSplit>(parts[0], r) << 8));
    }
    const F32 wscale = load_scales(scales);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      F32 f = __builtin_convertvector((I32)dot[r] + load<int32_t>(tail + 4 * (R + r)), F32);
      if (zeros) f -= load<F32>(zeros) * load<float>(tail + 4 * (2 * R + r));
      sums[r] += f * wscale * load<float>(tail + 4 * r);
    }
  }

  template <int R, int BITS, int S, bool FROM_MEMORY = true>
  static void stream(const Strips<S>& strips, int64_t kb, int64_t n, int64_t offset, const uint8_t* records,
                     float* out) {
    const uint8_t* tiles = strips.tiles + offset;
    const int64_t groups = strips.apart * strips.first.a.G * 16;
    F32 sums[S][R];
    for (int s = 0; s < S; s++)
      for (int r = 0; r < R; r++) sums[s][r] = load<F32>(out + 16 * (R * s + r));
    for (int64_t t = 0; t < n; t++, tiles += 64 * BITS, records += kRow * R) {
      const uint16_t* scales = strips.first.scales(kb + t);
      const float* zeros = strips.first.zeros(kb + t);
#pragma GCC unroll 4
      for (int s = 0; s < S; s++) {
        U32 codes[kQuads];
        if (FROM_MEMORY) prefetch_tile(tiles + s * strips.stride, BITS);
        decode<BITS>(tiles + s * strips.stride, codes);
        multiply<R>(scales + s * groups, zeros ? zeros + s * groups : nullptr, codes, records, sums[s]);
      }
    }
    for (int s = 0; s < S; s++)
      for (int r = 0; r < R; r++) store(out + 16 * (R * s + r), sums[s][r]);
  }

  template <int R>
  static void chunk(const Columns& c, int64_t kb, int64_t n, const uint8_t* decoded, const uint8_t* records,
                    float* out) {
    stream<R, 8, 1, false>(Strips<1>{c, decoded}, kb, n, 0, records, out);
  }
};
#endif

template <typename F>
inline void with_rows(int rows, const F& f) {
  switch (rows) {
    case 1:
      return f(Bits<1>{});
    case 2:
      return f(Bits<2>{});
    case 4:
      return f(Bits<4>{});
    default:
      return f(Bits<kGroup>{});
  }
}

// The widths change a few times along k: finds the end of the run that begins at kb.
inline int64_t run_end(const Columns& c, int64_t kb, int64_t limit) {
  int64_t end = kb + 1;
  while (end < limit && c.bits(end) == c.bits(kb)) end++;
  return end;
}

// sums [S][rows of the group, rounded up][16] += the product of one group of rows with S column blocks.
template <typename Path, int S>
void few_product(const Strips<S>& strips, const uint8_t* records, int64_t row_bytes, int rows, float* sums) {
  const Columns& c = strips.first;
  int64_t offset = 0;
  for (int64_t kb = 0; kb < c.a.KB;) {
    const int64_t n = run_end(c, kb, c.a.KB) - kb;
    with_rows(rows, [&](auto R) {
      if constexpr (S == 1 || R.value <= 2) {
        with_bits(c.bits(kb), [&](auto B) {
          Path::template stream<R.value, B.value, S>(strips, kb, n, offset, records + kb * rows * row_bytes, sums);
        });
      }
    });
    offset += n * 64 * c.bits(kb);
    kb += n;
  }
}

// sums [rows of the groups][16] += the product of groups [g0, g1) with one column block.
template <typename Path>
void many_product(const Columns& c, const uint8_t* tiles, const uint8_t* records, int64_t row_bytes, int64_t g0,
                  int64_t g1, float* sums) {
  const QMatmulArgs& a = c.a;
  alignas(64) uint8_t decoded[Path::kChunk * Path::kTileBytes];
  for (int64_t kb = 0; kb < a.KB; kb += Path::kChunk) {
    const int64_t n = kb + Path::kChunk < a.KB ? Path::kChunk : a.KB - kb;
    for (int64_t t = 0; t < n; t++) {
      const int bits = c.bits(kb + t);
      prefetch_tile(tiles, bits);
      with_bits(bits, [&](auto B) {
        Path::template decode_tile<B.value>(tiles, c.zeros(kb + t), decoded + t * Path::kTileBytes);
      });
      tiles += 64 * bits;
    }
    for (int64_t g = g0; g < g1; g++) {
      const int rows = group_rows(a.M, g);
      const uint8_t* group = records + ((g - g0) * kGroup * a.KB + kb * rows) * row_bytes;
      with_rows(rows, [&](auto R) {
        Path::template chunk<R.value>(c, kb, n, decoded, group, sums + (g - g0) * kGroup * 16);
      });
    }
  }
}

// y[m0.. m1, the block's columns] = sums + bias + add
void store_sums(const Columns& c, int64_t m0, int64_t m1, const float* sums) {
  const QMatmulArgs& a = c.a;
  const int64_t n0 = c.nb * kPackColumns, n1 = n0 + kPackColumns < a.N ? n0 + kPackColumns : a.N;
  const bool vectors = a.x_dtype == DType::f32 && n1 - n0 == kPackColumns;
  for (int64_t m = m0; m < m1; m++, sums += 16) {
    for (int part = 0; vectors && part < kParts; part++) {
      const int64_t n = n0 + kLanes * part;
      F32 v = load<F32>(sums + kLanes * part);
      if (a.bias) v += load<F32>(static_cast<const float*>(a.bias) + n);
      if (a.add) v += load<F32>(static_cast<const float*>(a.add) + m * a.add_stride + n);
      store(static_cast<float*>(a.y) + m * a.N + n, v);
    }
    for (int64_t n = vectors ? n1 : n0; n < n1; n++) {
      float v = sums[n - n0];
      if (a.bias) v += load_element(a.bias, a.x_dtype, n);
      if (a.add) v += load_element(a.add, a.x_dtype, m * a.add_stride + n);
      store_element(a.y, a.x_dtype, m * a.N + n, v);
    }
  }
}

// One group of rows: each thread reads its column blocks once, as kStrips runs side by side.
template <typename Path>
void multiply_few(const QMatmulArgs& a, const uint8_t* records, int64_t row_bytes, int64_t NB, int64_t column_bytes) {
  const int rows = group_rows(a.M, 0);
  const auto columns = [&](auto S, int64_t nb, int64_t apart) {
    alignas(64) float sums[S.value * kGroup * 16];
    std::memset(sums, 0, size_t(S.value) * rows * 16 * 4);
    const Strips<S.value> strips{{a, nb}, a.weight + nb * column_bytes, apart, apart * column_bytes};
    few_product<Path>(strips, records, row_bytes, rows, sums);
    for (int s = 0; s < S.value; s++) store_sums(strips.columns(s), 0, a.M, sums + s * rows * 16);
  };
  parallel_for(NB, 1, [&](int64_t begin, int64_t end) {
    // More than two rows keep the arithmetic busy, and their sums would not find room in the registers four times.
    const int64_t run = rows > 2 ? 0 : (end - begin) / Path::kStrips;
    for (int64_t nb = begin; nb < begin + run; nb++) columns(Bits<Path::kStrips>{}, nb, run);
    for (int64_t nb = begin + run * Path::kStrips; nb < end; nb++) columns(Bits<1>{}, nb, 0);
  });
}

// Units of one column block and one block of rows.
template <typename Path>
void multiply_many(const QMatmulArgs& a, const uint8_t* records, int64_t row_bytes, int64_t NB, int64_t column_bytes) {
  const int64_t groups = (a.M + kGroup - 1) / kGroup, group_bytes = kGroup * a.KB * row_bytes;
  int64_t per_block = group_bytes > 0 ? kRowBlockBytes / group_bytes : kMaxRows / kGroup;
  per_block = per_block < 2 ? 2 : per_block > kMaxRows / kGroup ? kMaxRows / kGroup : per_block;
  const int64_t row_blocks = (groups + per_block - 1) / per_block;
  parallel_for(row_blocks * NB, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t nb = unit % NB, g0 = unit / NB * per_block;
      const int64_t g1 = g0 + per_block < groups ? g0 + per_block : groups;
      alignas(64) float sums[kMaxRows * 16];
      std::memset(sums, 0, size_t(g1 - g0) * kGroup * 16 * 4);
      const Columns c{a, nb};
      many_product<Path>(c, a.weight + nb * column_bytes, records + g0 * group_bytes, row_bytes, g0, g1, sums);
      store_sums(c, g0 * kGroup, g1 * kGroup < a.M ? g1 * kGroup : a.M, sums);
    }
  });
}

template <typename Path>
void multiply_all(const QMatmulArgs& a, const uint8_t* records, int64_t row_bytes) {
  const int64_t NB = (a.N + kPackColumns - 1) / kPackColumns;
  int64_t column_bytes = 0;
  for (int64_t kb = 0; kb < a.KB; kb++) column_bytes += 64 * a.blocks[2 * kb];
  if (a.M <= kGroup)
    multiply_few<Path>(a, records, row_bytes, NB, column_bytes);
  else
    multiply_many<Path>(a, records, row_bytes, NB, column_bytes);
}

}  // namespace

int64_t qmatmul_scratch_bytes(const QMatmulArgs& a) {
  if (a.M == 0) return 0;
  const int64_t last = (a.M - 1) / kGroup;
  return (last * kGroup + group_rows(a.M, last)) * a.KB * record_bytes_per_row(planes_of(a));
}

Status qmatmul(const QMatmulArgs& a) {
  if (a.act_bits != 32 && a.act_bits != 16 && a.act_bits != 8) return {"qmatmul: act_bits is not 32, 16 or 8"};
  if (a.M == 0 || a.N == 0) return {};
  const int planes = planes_of(a);
#if defined(__AVX512VNNI__)
  if (planes == 0) return avx512::qmatmul(a);  // the same without integers: compiled there
#endif
  const int64_t row_bytes = record_bytes_per_row(planes), last = (a.M - 1) / kGroup;
  const int64_t padded_rows = last * kGroup + group_rows(a.M, last);
  uint8_t* records = static_cast<uint8_t*>(a.scratch);

  parallel_for(padded_rows * a.KB, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t m = i / a.KB, kb = i % a.KB, g = m / kGroup;
      const int rows = group_rows(a.M, g);
      write_record(a, planes, records + (g * kGroup * a.KB + kb * rows) * row_bytes, rows, int(m % kGroup), m, kb);
    }
  });

#if defined(__AVX512VNNI__)
  if (planes == 2) multiply_all<Integers<2>>(a, records, row_bytes);
  if (planes == 1) multiply_all<Integers<1>>(a, records, row_bytes);
#else
  multiply_all<Floats>(a, records, row_bytes);
#endif
  return {};
}

}  // namespace nybble::cpu::NYBBLE_ISA
