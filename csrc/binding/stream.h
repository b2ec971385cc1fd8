// The caller's CUDA stream and device, from whichever torch is loaded.
#pragma once
#include "binding/check.h"

namespace nybble::binding {

// Makes x's device the current one while it lives, and knows torch's current stream there.
class CudaScope {
 public:
  explicit CudaScope(const Tensor& x) : guard_(x.get_device_index()) {
    if (current_stream == nullptr)
      fail("nybble: this torch has no aoti_torch_get_current_cuda_stream; it was built without CUDA");
    TORCH_ERROR_CODE_CHECK(current_stream(x.get_device_index(), &stream_));
  }
  Stream stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

}  // namespace nybble::binding
