// Every skinny_kernel: a file of its own, as they take the time to compile.
#include "cuda/qmatmul/skinny.cuh"

namespace nybble::cuda {
namespace {

template <int kBits>
SkinnyKernel of_width(int row_tiles) {
  return row_tiles == 1 ? skinny_kernel<kBits, 1> : skinny_kernel<kBits, 2>;
}

}  // namespace

SkinnyKernel skinny_kernel_of(int bits, int row_tiles) {
  switch (bits) {
    case 2:
      return of_width<2>(row_tiles);
    case 3:
      return of_width<3>(row_tiles);
    case 4:
      return of_width<4>(row_tiles);
    case 5:
      return of_width<5>(row_tiles);
    case 6:
      return of_width<6>(row_tiles);
    case 8:
      return of_width<8>(row_tiles);
    default:
      return of_width<0>(row_tiles);
  }
}

}  // namespace nybble::cuda
