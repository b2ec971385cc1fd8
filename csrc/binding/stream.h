// The caller's CUDA stream and device, from whichever torch is loaded.
#pragma once
#include <torch/csrc/stable/accelerator.h>

#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#include "binding/check.h"

namespace nybble::binding {

using CurrentStream = AOTITorchError (*)(int32_t device, void** stream);

// Looked up when first needed, not linked: the same library then loads under a torch without CUDA. Torch's libraries
// are loaded privately, so the global scope may not show the symbol; the open library itself does.
inline CurrentStream find_current_stream() {
  constexpr const char* kName = "aoti_torch_get_current_cuda_stream";
#ifdef _WIN32
  const HMODULE library = GetModuleHandleA("torch_cuda.dll");
  return library == nullptr ? nullptr : reinterpret_cast<CurrentStream>(GetProcAddress(library, kName));
#else
  if (void* found = dlsym(RTLD_DEFAULT, kName)) return reinterpret_cast<CurrentStream>(found);
  void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
  return library == nullptr ? nullptr : reinterpret_cast<CurrentStream>(dlsym(library, kName));
#endif
}

// Makes x's device the current one while it lives, and knows torch's current stream there.
class CudaScope {
 public:
  explicit CudaScope(const Tensor& x) : guard_(x.get_device_index()) {
    static const CurrentStream current = find_current_stream();
    if (current == nullptr)
      fail("nybble: this torch has no aoti_torch_get_current_cuda_stream; it was built without CUDA");
    TORCH_ERROR_CODE_CHECK(current(x.get_device_index(), &stream_));
  }
  Stream stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

}  // namespace nybble::binding
