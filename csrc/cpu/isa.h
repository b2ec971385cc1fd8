// Which vector instruction set the kernels use: the best one this CPU has, or NYBBLE_CPU_ISA.
#pragma once

namespace nybble::cpu {

enum class Isa : int { generic, avx2, avx512, avx512_vnni, neon };

// An instruction set this build or this CPU does not have, or an unknown name, leaves the choice as it was and returns
// the reason (a static string); nullptr: done.
const char* set_isa(const char* name);
Isa isa();               // detected once, at first use
const char* isa_name();  // "generic", "avx2", "avx512", "avx512_vnni", "neon"
bool isa_available(Isa);

}  // namespace nybble::cpu
