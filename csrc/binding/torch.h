// Torch as the binding sees it: the only file that includes its headers.
//
// Torch's C functions stand here behind pointers, filled when the library is taken into use: with torch's own
// (library.cpp), or, under a torch too old to have them, with our stand-ins (c_interface.cpp). So the library needs no
// symbol of torch to be loaded, and the checks and the dispatch are compiled once for both. Torch's C++ headers, at the
// end of this file, live in namespace torch, where a name is looked for before it is looked for outside: they find the
// pointers, not the functions. A call costs what it costs through the linker's own table. A function that is used and
// not listed here is linked as ever; tools/check_abi.py tells its name.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>
#include <torch/csrc/stable/c/shim.h>

#define NYBBLE_TORCH_FUNCTIONS(X)     \
  X(aoti_torch_abi_version)           \
  X(aoti_torch_aten_narrow)           \
  X(aoti_torch_create_device_guard)   \
  X(aoti_torch_delete_device_guard)   \
  X(aoti_torch_delete_library_object) \
  X(aoti_torch_delete_tensor_object)  \
  X(aoti_torch_dtype_element_size)    \
  X(aoti_torch_empty_strided)         \
  X(aoti_torch_get_data_ptr)          \
  X(aoti_torch_get_device_index)      \
  X(aoti_torch_get_device_type)       \
  X(aoti_torch_get_dim)               \
  X(aoti_torch_get_dtype)             \
  X(aoti_torch_get_numel)             \
  X(aoti_torch_get_size)              \
  X(aoti_torch_get_sizes)             \
  X(aoti_torch_get_stride)            \
  X(aoti_torch_get_strides)           \
  X(aoti_torch_is_contiguous)         \
  X(aoti_torch_library_init_impl)     \
  X(aoti_torch_new_tensor_handle)     \
  X(torch_call_dispatcher)            \
  X(torch_delete_list)                \
  X(torch_get_num_threads)            \
  X(torch_library_impl)               \
  X(torch_list_get_item)              \
  X(torch_list_push_back)             \
  X(torch_list_size)                  \
  X(torch_new_list_reserve_size)      \
  X(torch_parallel_for)

// Torch's number for a device, dtype, layout or memory format; beside each the name that torch's headers have for it.
#define NYBBLE_TORCH_NUMBERS(X)                                              \
  X(aoti_torch_device_type_cpu, DeviceType::CPU)                             \
  X(aoti_torch_device_type_cuda, DeviceType::CUDA)                           \
  X(aoti_torch_device_type_meta, DeviceType::Meta)                           \
  X(aoti_torch_device_type_mps, DeviceType::MPS)                             \
  X(aoti_torch_device_type_privateuse1, DeviceType::PrivateUse1)             \
  X(aoti_torch_device_type_xpu, DeviceType::XPU)                             \
  X(aoti_torch_dtype_bfloat16, ScalarType::BFloat16)                         \
  X(aoti_torch_dtype_bool, ScalarType::Bool)                                 \
  X(aoti_torch_dtype_complex128, ScalarType::ComplexDouble)                  \
  X(aoti_torch_dtype_complex32, ScalarType::ComplexHalf)                     \
  X(aoti_torch_dtype_complex64, ScalarType::ComplexFloat)                    \
  X(aoti_torch_dtype_float16, ScalarType::Half)                              \
  X(aoti_torch_dtype_float32, ScalarType::Float)                             \
  X(aoti_torch_dtype_float64, ScalarType::Double)                            \
  X(aoti_torch_dtype_float8_e4m3fn, ScalarType::Float8_e4m3fn)               \
  X(aoti_torch_dtype_float8_e4m3fnuz, ScalarType::Float8_e4m3fnuz)           \
  X(aoti_torch_dtype_float8_e5m2, ScalarType::Float8_e5m2)                   \
  X(aoti_torch_dtype_float8_e5m2fnuz, ScalarType::Float8_e5m2fnuz)           \
  X(aoti_torch_dtype_int16, ScalarType::Short)                               \
  X(aoti_torch_dtype_int32, ScalarType::Int)                                 \
  X(aoti_torch_dtype_int64, ScalarType::Long)                                \
  X(aoti_torch_dtype_int8, ScalarType::Char)                                 \
  X(aoti_torch_dtype_uint16, ScalarType::UInt16)                             \
  X(aoti_torch_dtype_uint32, ScalarType::UInt32)                             \
  X(aoti_torch_dtype_uint64, ScalarType::UInt64)                             \
  X(aoti_torch_dtype_uint8, ScalarType::Byte)                                \
  X(aoti_torch_layout__mkldnn, Layout::Mkldnn)                               \
  X(aoti_torch_layout_jagged, Layout::Jagged)                                \
  X(aoti_torch_layout_sparse_bsc, Layout::SparseBsc)                         \
  X(aoti_torch_layout_sparse_bsr, Layout::SparseBsr)                         \
  X(aoti_torch_layout_sparse_coo, Layout::Sparse)                            \
  X(aoti_torch_layout_sparse_csc, Layout::SparseCsc)                         \
  X(aoti_torch_layout_sparse_csr, Layout::SparseCsr)                         \
  X(aoti_torch_layout_strided, Layout::Strided)                              \
  X(aoti_torch_memory_format_channels_last, MemoryFormat::ChannelsLast)      \
  X(aoti_torch_memory_format_channels_last_3d, MemoryFormat::ChannelsLast3d) \
  X(aoti_torch_memory_format_contiguous_format, MemoryFormat::Contiguous)    \
  X(aoti_torch_memory_format_preserve_format, MemoryFormat::Preserve)

// A shorter name for both lists.
#define NYBBLE_TORCH_ALL(X) NYBBLE_TORCH_FUNCTIONS(X) NYBBLE_TORCH_NUMBERS(X)

namespace torch {
#define X(name, ...) inline decltype(&::name) name = nullptr;
NYBBLE_TORCH_ALL(X)
#undef X
}  // namespace torch

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace nybble::binding {
#define X(name, ...) using torch::name;
NYBBLE_TORCH_ALL(X)
#undef X

// In libtorch_cuda, which a torch without CUDA does not have: nullptr there.
using CurrentStream = AOTITorchError (*)(int32_t device, void** stream);
inline CurrentStream current_stream = nullptr;
}  // namespace nybble::binding
