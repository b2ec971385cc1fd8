// Every few_kernel of a dtype: files of their own, as they take the time to compile.
#pragma once
#include "cuda/qmatmul/few.cuh"

namespace nybble::cuda {

template <typename T>
FewKernel few_kernel_of(int bits) {
  switch (bits) {
    case 2:
      return few_kernel<T, 2>;
    case 3:
      return few_kernel<T, 3>;
    case 4:
      return few_kernel<T, 4>;
    case 5:
      return few_kernel<T, 5>;
    case 6:
      return few_kernel<T, 6>;
    default:
      return few_kernel<T, 8>;
  }
}

}  // namespace nybble::cuda
