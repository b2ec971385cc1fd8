#pragma once

namespace nybble::binding {

// Register the ops with the functions of torch.h, whichever they are.
void register_cpu_ops();
void register_cuda_ops();  // none in a library without the CUDA part

}  // namespace nybble::binding
