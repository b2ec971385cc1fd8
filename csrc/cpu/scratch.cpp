#include "cpu/scratch.h"

#include <cstdlib>

namespace nybble::cpu {
namespace {

struct Buffers {
  void* data[int(Slot::count)] = {};
  int64_t size[int(Slot::count)] = {};
  ~Buffers() {
    for (void* p : data) std::free(p);
  }
};
thread_local Buffers buffers;

}  // namespace

void* thread_scratch(Slot slot, int64_t bytes) {
  const int i = int(slot);
  if (buffers.size[i] < bytes) {
    const int64_t rounded = (bytes + 4095) / 4096 * 4096;
    std::free(buffers.data[i]);
    buffers.size[i] = 0;
    buffers.data[i] = std::aligned_alloc(64, size_t(rounded));
    if (buffers.data[i]) buffers.size[i] = rounded;
  }
  return buffers.data[i];
}

}  // namespace nybble::cpu
