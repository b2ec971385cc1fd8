// Every few_kernel of a dtype: files of their own, as they take the time to compile.
#pragma once
#include "cuda/qmatmul/few_registers.cuh"

namespace nybble::cuda {

template <typename T, bool kZeros>
FewKernel few_kernel_of_width(int bits) {
  switch (bits) {
    case 2:
      return few_kernel<T, 2, kZeros>;
    case 3:
      return few_kernel<T, 3, kZeros>;
    case 4:
      return few_kernel<T, 4, kZeros>;
    case 5:
      return few_kernel<T, 5, kZeros>;
    case 6:
      return few_kernel<T, 6, kZeros>;
    default:
      return few_kernel<T, 8, kZeros>;
  }
}

template <typename T>
FewKernel few_kernel_of(int bits, bool zeros) {
  return zeros ? few_kernel_of_width<T, true>(bits) : few_kernel_of_width<T, false>(bits);
}

}  // namespace nybble::cuda
