// Every few_kernel of a dtype: files of their own, as they take the time to compile.
#pragma once
#include "cuda/qmatmul/few_registers.cuh"

namespace nybble::cuda {

template <typename T, bool kZeros>
FewKernel few_kernel_of_width(int bits) {
  switch (bits) {
    case 2:
      return few_kernel<T, 2, kZeros, false>;
    case 3:
      return few_kernel<T, 3, kZeros, false>;
    case 4:
      return few_kernel<T, 4, kZeros, false>;
    case 5:
      return few_kernel<T, 5, kZeros, false>;
    case 6:
      return few_kernel<T, 6, kZeros, false>;
    default:
      return few_kernel<T, 8, kZeros, false>;
  }
}

template <typename T, bool kZeros>
FewKernel few_digit_kernel_of_width(int bits) {
  return bits == 2 ? few_kernel<T, 2, kZeros, true> : few_kernel<T, 3, kZeros, true>;
}

template <typename T>
FewKernel few_kernel_of(int bits, bool zeros, bool digits) {
  if (digits) return zeros ? few_digit_kernel_of_width<T, true>(bits) : few_digit_kernel_of_width<T, false>(bits);
  return zeros ? few_kernel_of_width<T, true>(bits) : few_kernel_of_width<T, false>(bits);
}

}  // namespace nybble::cuda
