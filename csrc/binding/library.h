#pragma once

namespace nybble::binding {

// Registers every op with the functions of torch_functions.h, whichever they are.
void register_ops();

}  // namespace nybble::binding
