// What this library is, for ctypes: plain C names that need no torch.
#include "binding/export.h"
#include "cpu/isa.h"

#ifndef NYBBLE_BUILD_INFO
#define NYBBLE_BUILD_INFO "{}"
#endif

// The instruction set that the CPU kernels use now.
NYBBLE_EXPORT const char* nybble_cpu_isa() { return nybble::cpu::isa_name(); }

// nullptr, or why the choice stayed as it was.
NYBBLE_EXPORT const char* nybble_set_cpu_isa(const char* name) { return nybble::cpu::set_isa(name); }

// JSON: version hash, CUDA architectures, compiler, flags.
NYBBLE_EXPORT const char* nybble_build_info() { return NYBBLE_BUILD_INFO; }
