# NYBBLE_ISAS: the instruction sets this compiler can build for this processor family, and NYBBLE_FLAGS_<name> for each.
include(CheckCXXCompilerFlag)

set(NYBBLE_ISAS generic)
# Made for any CPU, not for speed: at -O3 gcc takes twelve seconds for one file of it, at -O2 five.
set(NYBBLE_FLAGS_generic $<IF:$<BOOL:${MSVC}>,/O2,-O2>)

# Adds a set where the compiler takes its flags.
function(nybble_isa name)
  set(CMAKE_REQUIRED_QUIET ON)
  string(REPLACE ";" " " flags "${ARGN}")
  check_cxx_compiler_flag("${flags}" NYBBLE_CXX_HAS_${name})
  if(NYBBLE_CXX_HAS_${name})
    set(NYBBLE_ISAS ${NYBBLE_ISAS} ${name} PARENT_SCOPE)
    set(NYBBLE_FLAGS_${name} ${ARGN} PARENT_SCOPE)
  endif()
endfunction()

set(processor "${CMAKE_SYSTEM_PROCESSOR}")
if(APPLE AND CMAKE_OSX_ARCHITECTURES)
  set(processor "${CMAKE_OSX_ARCHITECTURES}")
endif()
if(processor MATCHES "^(x86_64|AMD64|amd64)$")
  if(MSVC)
    nybble_isa(avx2 /arch:AVX2)
    nybble_isa(avx512 /arch:AVX512)
    nybble_isa(avx512_vnni /arch:AVX512)
  else()
    set(avx2 -mavx2 -mfma -mf16c)
    set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq)
    nybble_isa(avx2 ${avx2})
    nybble_isa(avx512 ${avx512})
    nybble_isa(avx512_vnni ${avx512} -mavx512vnni)
  endif()
elseif(processor MATCHES "^(aarch64|arm64|ARM64)$")
  # NEON is part of every 64-bit ARM: no flag, but the name selects its sources.
  list(APPEND NYBBLE_ISAS neon)
  set(NYBBLE_FLAGS_neon "")
endif()
