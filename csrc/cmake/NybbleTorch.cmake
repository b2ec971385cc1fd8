# Finds the torch package, decides about CUDA, and links the stable C ABI.

if(NOT NYBBLE_TORCH_DIR)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  execute_process(
    COMMAND "${Python3_EXECUTABLE}" -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
    OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "torch is not installed for ${Python3_EXECUTABLE}: pip install 'torch>=2.10', or pass -DNYBBLE_TORCH_DIR=FOLDER")
  endif()
  set(NYBBLE_TORCH_DIR "${found}" CACHE PATH "Folder of the installed torch package" FORCE)
endif()
set(NYBBLE_TORCH_INCLUDES "${NYBBLE_TORCH_DIR}/include" "${NYBBLE_TORCH_DIR}/include/torch/csrc/api/include")
if(NOT EXISTS "${NYBBLE_TORCH_DIR}/include/torch/csrc/stable/library.h")
  message(FATAL_ERROR "${NYBBLE_TORCH_DIR} has no stable ABI headers: pip install 'torch>=2.10'")
endif()

# torch/version.py says which CUDA a torch was made with; reading it takes no import.
file(STRINGS "${NYBBLE_TORCH_DIR}/version.py" cuda_line REGEX "^cuda( |:)")
set(torch_has_cuda OFF)
if(cuda_line MATCHES "= '")
  set(torch_has_cuda ON)
endif()
set(NYBBLE_WITH_CUDA OFF)
if(NYBBLE_CUDA STREQUAL "ON")
  set(NYBBLE_WITH_CUDA ON)
elseif(NYBBLE_CUDA STREQUAL "AUTO" AND torch_has_cuda)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(NYBBLE_WITH_CUDA ON)
  endif()
endif()

# Every function of torch's that we know of is looked up when the library is taken into use (binding/torch.h). A newer torch's headers
# may use one more: it is linked by name, with no path kept in the file, and without one the file asks for no library of torch. Such
# a name is in the process already, since torch is imported first, so the loader takes the loaded one.
function(nybble_link_torch target)
  if(WIN32)
    set(names torch_cpu.lib)
  elseif(APPLE)
    set(names libtorch_cpu.dylib)
    set(as_needed "-Wl,-dead_strip_dylibs")
  else()
    set(names libtorch_cpu.so)
    # The C++ runtime first: torch for arm64 has a copy of it, which our symbols must not be taken from.
    set(as_needed "-Wl,--as-needed" stdc++)
  endif()
  foreach(name IN LISTS names)
    target_link_libraries(${target} PRIVATE ${as_needed} "${NYBBLE_TORCH_DIR}/lib/${name}")
  endforeach()
endfunction()

# What is in the file, as JSON behind a fixed beginning: the loader finds it by reading the file, without running any of it.
function(nybble_build_info path)
  set(archs "[]")
  set(toolkit "")
  if(NYBBLE_WITH_CUDA)
    set(toolkit "${NYBBLE_CUDA_VERSION}")
    list(JOIN NYBBLE_CUDA_ARCHS "\",\"" archs)
    set(archs "[\"${archs}\"]")
  endif()
  list(JOIN NYBBLE_ISAS "\",\"" isas)
  string(CONCAT NYBBLE_BUILD_INFO
    "{\"nybble_build\":1,\"hash\":\"${NYBBLE_HASH}\",\"torch_target\":\"2.10\",\"cuda\":\"${toolkit}\",\"cuda_archs\":${archs},"
    "\"isas\":[\"${isas}\"],\"compiler\":\"${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}\","
    "\"sanitize\":\"${NYBBLE_SANITIZE}\",\"debug\":\"${NYBBLE_DEBUG}\"}")
  configure_file("${CMAKE_CURRENT_SOURCE_DIR}/cmake/build_info.h.in" "${path}" @ONLY)
endfunction()
