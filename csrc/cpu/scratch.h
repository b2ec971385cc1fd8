// Working memory of a kernel whose contract has no scratch argument: one buffer a thread and slot, kept between calls.
// A slot belongs to one function; calls of that function do not nest.
#pragma once
#include <cstdint>

namespace nybble::cpu {

enum class Slot : int {
  matmul,
  attention_task,
  attention_parts,
  penalty,
  gptq,
  norm_row,
  decode_attention,
  paged_attention,
  sample,
  count
};

// 64-byte aligned, not initialised; nullptr if the memory is not there. Valid on this thread until its next call with
// `slot`.
void* thread_scratch(Slot slot, int64_t bytes);

}  // namespace nybble::cpu
