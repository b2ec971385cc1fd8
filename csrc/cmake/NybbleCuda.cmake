# The CUDA part: torch-free kernels and the static CUDA runtime, in the same library. No CUDA library is needed to load it.
set(CMAKE_CUDA_ARCHITECTURES "${NYBBLE_CUDA_ARCHS}")
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

# The binding's CUDA half is compiled where this is defined.
target_compile_definitions(nybble_flags INTERFACE NYBBLE_CUDA)
# A target of its own: one made before the settings above would not have them.
file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS "${csrc}/cuda/*.cu" "${csrc}/cuda/*.cpp")
add_library(nybble_cuda OBJECT ${cuda_sources})
target_link_libraries(nybble_cuda PRIVATE nybble_flags)
target_compile_options(nybble_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-O3 --threads=${NYBBLE_NVCC_THREADS}>)
if(NYBBLE_CUDA_ARCHS MATCHES "90a")
  # Host code must know whether the kernels with Hopper's own instructions are in.
  target_compile_definitions(nybble_cuda PRIVATE NYBBLE_SM90A)
endif()
if(NYBBLE_DEBUG)
  target_compile_options(nybble_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-DNYBBLE_DEVICE_ASSERT -lineinfo --time=nvcc_time.csv>)
endif()
target_sources(nybble PRIVATE $<TARGET_OBJECTS:nybble_cuda>)
target_include_directories(nybble_binding PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(nybble PRIVATE CUDA::cudart_static)
if(UNIX AND NOT APPLE)
  # torch may bring a shared runtime of its own: ours must neither serve it nor be replaced by it.
  target_link_options(nybble PRIVATE -Wl,--exclude-libs,libcudart_static.a)
endif()
