#include "cpu/isa.h"

#include <atomic>
#include <cstring>

namespace nybble::cpu {
namespace {

struct Row {
  Isa isa;
  const char* name;
  bool built;
};

constexpr bool have_avx2 =
#ifdef NYBBLE_HAVE_AVX2
    true;
#else
    false;
#endif
constexpr bool have_avx512 =
#ifdef NYBBLE_HAVE_AVX512
    true;
#else
    false;
#endif
constexpr bool have_avx512_vnni =
#ifdef NYBBLE_HAVE_AVX512_VNNI
    have_avx512;  // most of its ops are those of avx512
#else
    false;
#endif
constexpr bool have_neon =
#ifdef NYBBLE_HAVE_NEON
    true;
#else
    false;
#endif

// Worst first; the last one that is built and that the CPU has is the default.
constexpr Row rows[] = {
    {Isa::generic, "generic", true},
    {Isa::neon, "neon", have_neon},
    {Isa::avx2, "avx2", have_avx2},
    {Isa::avx512, "avx512", have_avx512},
    {Isa::avx512_vnni, "avx512_vnni", have_avx512_vnni},
};

// The builtins also ask whether the system saves the wide registers (XGETBV).
bool cpu_has(Isa isa) {
  switch (isa) {
    case Isa::generic:
      return true;
#if defined(__x86_64__) || defined(__i386__)
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::avx512:
      return cpu_has(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case Isa::avx512_vnni:
      return cpu_has(Isa::avx512) && __builtin_cpu_supports("avx512vnni");
#endif
#if defined(__aarch64__)
    case Isa::neon:
      return true;
#endif
    default:
      return false;
  }
}

const Row& row_of(Isa isa) {
  for (const Row& row : rows)
    if (row.isa == isa) return row;
  return rows[0];
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{[] {
    Isa best = Isa::generic;
    for (const Row& row : rows)
      if (isa_available(row.isa)) best = row.isa;
    return best;
  }()};
  return isa;
}

}  // namespace

bool isa_available(Isa isa) { return row_of(isa).built && cpu_has(isa); }

const char* set_isa(const char* name) {
  for (const Row& row : rows) {
    if (!name || std::strcmp(name, row.name) != 0) continue;
    if (!row.built) return "this build of the library has no kernels for that instruction set";
    if (!cpu_has(row.isa)) return "this CPU, or its operating system, does not support that instruction set";
    chosen() = row.isa;
    return nullptr;
  }
  return "unknown instruction set: expected generic, avx2, avx512, avx512_vnni or neon";
}

Isa isa() { return chosen().load(std::memory_order_relaxed); }
const char* isa_name() { return row_of(isa()).name; }

}  // namespace nybble::cpu
