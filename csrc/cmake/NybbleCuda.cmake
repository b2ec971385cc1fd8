# The CUDA part: torch-free kernels and the static CUDA runtime, in the same library. No CUDA library is needed to load it.
set(CMAKE_CUDA_ARCHITECTURES "${NYBBLE_CUDA_ARCHS}")
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
# Of the host's half of a unit alone, which only launches kernels: -O3 takes gcc up to twice as long. The kernels know no other level.
set(CMAKE_CUDA_FLAGS_RELEASE "-O1 -DNDEBUG")
find_package(CUDAToolkit REQUIRED)

# The binding's CUDA half is compiled where this is defined.
target_compile_definitions(nybble_flags INTERFACE NYBBLE_CUDA)
# A target of its own: one made before the settings above would not have them.
file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS "${csrc}/cuda/*.cu" "${csrc}/cuda/*.cpp")
# These take less time to compile than CUDA's own headers, which every unit reads: so several are one unit, and the names at their file
# scopes must differ. None of them is marked hot.
set(units 0)
foreach(names IN ITEMS
    "anneal attention/attention decode_attention/decode_attention dequantize embedding fp8 gate gptq matmul/choose moe qmatmul/wide quantize
     repetition_penalty softcap"
    "int8_matmul/few_rows matmul/mma_rows matmul/tiles"
    "kv sample/sample")
  separate_arguments(names UNIX_COMMAND "${names}")
  set(text "")
  foreach(name IN LISTS names)
    if("${csrc}/cuda/${name}.cu" IN_LIST cuda_sources)
      list(REMOVE_ITEM cuda_sources "${csrc}/cuda/${name}.cu")
      string(APPEND text "#include \"cuda/${name}.cu\"\n")
    endif()
  endforeach()
  if(text)
    math(EXPR units "${units} + 1")
    set(unit "${CMAKE_CURRENT_BINARY_DIR}/small_${units}.cu")
    file(CONFIGURE OUTPUT "${unit}" CONTENT "${text}" @ONLY)
    list(APPEND cuda_sources "${unit}")
  endif()
endforeach()
# What takes longest begins first, so that many cores do not wait for one unit at the end.
set(slow ${cuda_sources})
list(FILTER slow INCLUDE REGEX "qmatmul/(few|wide)_|paged_attention/|norm|quantize_int8")
list(REMOVE_ITEM cuda_sources ${slow})
list(PREPEND cuda_sources ${slow})
add_library(nybble_cuda OBJECT ${cuda_sources})
target_link_libraries(nybble_cuda PRIVATE nybble_flags)
# Half numbers are joined by named functions here: the headers' operators, unused, would be read by every unit four times.
foreach(unused IN ITEMS HALF_OPERATORS HALF2_OPERATORS HALF_CONVERSIONS BFLOAT16_OPERATORS BFLOAT162_OPERATORS BFLOAT16_CONVERSIONS)
  target_compile_definitions(nybble_cuda PRIVATE __CUDA_NO_${unused}__)
endforeach()
list(FILTER cuda_sources INCLUDE REGEX "[.]cu$")
set(threads "${NYBBLE_NVCC_THREADS}")
if(NOT threads)
  # ninja fills the cores with units. One unit may compile several architectures at once where cores would be left over.
  cmake_host_system_information(RESULT cores QUERY NUMBER_OF_LOGICAL_CORES)
  if(DEFINED ENV{MAX_JOBS})
    set(cores "$ENV{MAX_JOBS}")
  endif()
  list(LENGTH cuda_sources units)
  math(EXPR threads "(${cores} - 1) / ${units} + 1")
endif()
target_compile_options(nybble_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--threads=${threads}>)
if(NYBBLE_CHECK_SPILLS)
  # A unit is marked by a line `// Hot: ...` of its own. All of ptxas's warnings fail it: those of wgmma made serial too.
  foreach(source IN LISTS cuda_sources)
    file(STRINGS "${source}" hot REGEX "^// Hot:")
    if(hot)
      set_source_files_properties("${source}" PROPERTIES COMPILE_OPTIONS "-Xptxas=--warn-on-spills,--warning-as-error")
    endif()
  endforeach()
endif()
if(NYBBLE_CUDA_ARCHS MATCHES "90a")
  # Host code must know whether the kernels with Hopper's own instructions are in.
  target_compile_definitions(nybble_cuda PRIVATE NYBBLE_SM90A)
endif()
if(NYBBLE_DEBUG)
  target_compile_options(nybble_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-DNYBBLE_DEVICE_ASSERT -lineinfo --time=nvcc_time.csv>)
endif()
target_sources(nybble PRIVATE $<TARGET_OBJECTS:nybble_cuda>)
target_link_libraries(nybble PRIVATE CUDA::cudart_static)
if(UNIX AND NOT APPLE)
  # torch may bring a shared runtime of its own: ours must neither serve it nor be replaced by it.
  target_link_options(nybble PRIVATE -Wl,--exclude-libs,libcudart_static.a)
endif()
