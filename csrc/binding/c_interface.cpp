// The ops as plain C, for a torch without the stable functions (below 2.10). Torch's C functions have stand-ins here,
// to which a tensor is what Python told of it; the checks and the dispatch above them do not know the difference. What
// only torch can do (new memory, a copy, the current stream) is asked of Python. nybble/ops/_c_interface.py is the
// other side.
#include <algorithm>
#include <map>

#include "binding/check.h"
#include "binding/export.h"
#include "binding/library.h"
#include "cpu/threads.h"

namespace nybble::binding {
namespace {

namespace detail = torch::stable::detail;

// Does `what` with the numbers and returns the numbers of the answer, valid until the op is done. nullptr: it raised
// an error, which Python keeps.
using Ask = const int64_t* (*)(const char* what, const int64_t* numbers);
Ask ask_python = nullptr;

using Kernel = void (*)(StableIValue* stack, uint64_t arguments, uint64_t results);
std::map<std::string, Kernel, std::less<>> kernels;  // by device and op: CPU.rms_norm

struct Told {
  int64_t token;  // Python's number for it
  void* data;
  int32_t dtype, device_type, device_index;
  std::vector<int64_t> sizes, strides;
};

Told& told(AtenTensorHandle t) { return *reinterpret_cast<Told*>(t); }
int64_t token(const Tensor& t) { return told(t.get()).token; }

int64_t product(const std::vector<int64_t>& sizes) {
  int64_t n = 1;
  for (const int64_t size : sizes) n *= size;
  return n;
}

// Reads one tensor and moves on behind it: token, address, dtype, device type and index, dimensions, sizes, strides.
AtenTensorHandle read_tensor(const int64_t*& at) {
  const int64_t* sizes = at + 6;
  const int64_t* strides = sizes + at[5];
  auto* t = new Told{at[0],
                     reinterpret_cast<void*>(at[1]),
                     static_cast<int32_t>(at[2]),
                     static_cast<int32_t>(at[3]),
                     static_cast<int32_t>(at[4]),
                     {sizes, strides},
                     {strides, strides + at[5]}};
  at = strides + at[5];
  return reinterpret_cast<AtenTensorHandle>(t);
}

AOTITorchError ask_tensor(const char* what, const std::vector<int64_t>& numbers, AtenTensorHandle* made) {
  const int64_t* answer = ask_python(what, numbers.data());
  if (answer == nullptr) return TORCH_FAILURE;
  *made = read_tensor(answer);
  return TORCH_SUCCESS;
}

AOTITorchError ask_empty(int32_t dtype, int32_t device_type, int32_t device_index, int64_t dim, const int64_t* sizes,
                         AtenTensorHandle* made) {
  std::vector<int64_t> numbers{dtype, device_type, device_index, dim};
  numbers.insert(numbers.end(), sizes, sizes + dim);
  return ask_tensor("empty", numbers, made);
}

// The stand-ins, each with the name of what it stands for.
namespace stand_in {

uint64_t aoti_torch_abi_version() { return TORCH_ABI_VERSION; }

AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle t, AtenTensorHandle* made) {
  *made = reinterpret_cast<AtenTensorHandle>(new Told(told(t)));
  return TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle t) {
  delete &told(t);
  return TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle t, void** data) {
  *data = told(t).data;
  return TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_device_type(AtenTensorHandle t, int32_t* type) {
  *type = told(t).device_type;
  return TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_device_index(AtenTensorHandle t, int32_t* index) {
  *index = told(t).device_index;
  return TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_dtype(AtenTensorHandle t, int32_t* dtype) {
  *dtype = told(t).dtype;
  return TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_dim(AtenTensorHandle t, int64_t* dim) {
  *dim = static_cast<int64_t>(told(t).sizes.size());
  return TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_numel(AtenTensorHandle t, int64_t* numel) {
  *numel = product(told(t).sizes);
  return TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_sizes(AtenTensorHandle t, int64_t** sizes) {
  *sizes = told(t).sizes.data();
  return TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_strides(AtenTensorHandle t, int64_t** strides) {
  *strides = told(t).strides.data();
  return TORCH_SUCCESS;
}

AOTITorchError item(const std::vector<int64_t>& list, int64_t at, int64_t* value) {
  const auto n = static_cast<int64_t>(list.size());
  if (at < -n || at >= n) return TORCH_FAILURE;
  *value = list[at < 0 ? at + n : at];
  return TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_size(AtenTensorHandle t, int64_t at, int64_t* size) {
  return item(told(t).sizes, at, size);
}

AOTITorchError aoti_torch_get_stride(AtenTensorHandle t, int64_t at, int64_t* stride) {
  return item(told(t).strides, at, stride);
}

AOTITorchError aoti_torch_is_contiguous(AtenTensorHandle t, bool* contiguous) {
  const auto& sizes = told(t).sizes;
  const auto& strides = told(t).strides;
  const bool empty = product(sizes) == 0;
  int64_t expected = 1;
  *contiguous = true;
  for (size_t i = sizes.size(); i-- > 0; expected *= sizes[i])
    *contiguous = *contiguous && (empty || sizes[i] == 1 || strides[i] == expected);
  return TORCH_SUCCESS;
}

size_t aoti_torch_dtype_element_size(int32_t dtype) {
  switch (static_cast<ScalarType>(dtype)) {
#define X(type, name)    \
  case ScalarType::name: \
    return sizeof(type);
    AT_FORALL_SCALAR_TYPES_WITH_COMPLEX(X)
#undef X
    default:
      fail("nybble: dtype number ", dtype, " is not known");
  }
}

// Asked for dense strides only.
AOTITorchError aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t*, int32_t dtype,
                                        int32_t device_type, int32_t device_index, AtenTensorHandle* made) {
  return ask_empty(dtype, device_type, device_index, dim, sizes, made);
}

AOTITorchError aoti_torch_aten_narrow(AtenTensorHandle t, int64_t dim, int64_t start, int64_t length,
                                      AtenTensorHandle* made) {
  return ask_tensor("narrow", {told(t).token, dim, start, length}, made);
}

// The few of torch's ops that the binding calls, each of them with one tensor as its result.
AOTITorchError call(const std::string_view op, StableIValue* stack, AtenTensorHandle* made) {
  if (op == "aten::linear") {  // the form with out=
    const Tensor x = detail::to<Tensor>(stack[0]), weight = detail::to<Tensor>(stack[1]);
    const auto bias = detail::to<std::optional<Tensor>>(stack[2]);
    const Tensor y = detail::to<Tensor>(stack[3]);
    return ask_tensor("linear", {token(x), token(weight), bias.has_value() ? token(*bias) : -1, token(y)}, made);
  }
  const Tensor self = detail::to<Tensor>(stack[0]);
  if (op == "aten::contiguous") return ask_tensor("contiguous", {token(self)}, made);
  if (op == "aten::copy_") return ask_tensor("copy", {token(self), token(detail::to<Tensor>(stack[1]))}, made);
  if (op == "aten::reshape") {
    auto numbers = detail::to<std::vector<int64_t>>(stack[1]);
    numbers.insert(numbers.begin(), {token(self), static_cast<int64_t>(numbers.size())});
    return ask_tensor("reshape", numbers, made);
  }
  if (op == "aten::new_empty") {
    const auto sizes = detail::to<std::vector<int64_t>>(stack[1]);
    const auto dtype = detail::to<std::optional<ScalarType>>(stack[2]).value_or(self.scalar_type());
    const Told& like = told(self.get());
    return ask_empty(detail::to<int32_t>(detail::from(dtype)), like.device_type, like.device_index,
                     static_cast<int64_t>(sizes.size()), sizes.data(), made);
  }
  fail("nybble: ", op, " has no stand-in");
}

AOTITorchError torch_call_dispatcher(const char* op, const char*, StableIValue* stack, uint64_t) {
  AtenTensorHandle made = nullptr;
  const AOTITorchError error = call(op, stack, &made);
  stack[0] = detail::from(made);
  return error;
}

// Lists of numbers.
std::vector<StableIValue>& items(StableListHandle list) { return *reinterpret_cast<std::vector<StableIValue>*>(list); }

AOTITorchError torch_new_list_reserve_size(size_t, StableListHandle* made) {
  *made = reinterpret_cast<StableListHandle>(new std::vector<StableIValue>);
  return TORCH_SUCCESS;
}

AOTITorchError torch_list_push_back(StableListHandle list, StableIValue value) {
  items(list).push_back(value);
  return TORCH_SUCCESS;
}

AOTITorchError torch_list_size(StableListHandle list, size_t* size) {
  *size = items(list).size();
  return TORCH_SUCCESS;
}

AOTITorchError torch_list_get_item(StableListHandle list, size_t at, StableIValue* value) {
  *value = items(list).at(at);
  return TORCH_SUCCESS;
}

AOTITorchError torch_delete_list(StableListHandle list) {
  delete &items(list);
  return TORCH_SUCCESS;
}

// A library is its device's name, an op registered there an entry of `kernels`.
AOTITorchError aoti_torch_library_init_impl(const char*, const char* device, const char*, uint32_t,
                                            TorchLibraryHandle* made) {
  *made = reinterpret_cast<TorchLibraryHandle>(const_cast<char*>(device));
  return TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_library_object(TorchLibraryHandle) { return TORCH_SUCCESS; }

AOTITorchError torch_library_impl(TorchLibraryHandle library, const char* op, Kernel kernel, uint64_t) {
  kernels[std::string(reinterpret_cast<const char*>(library)) + "." + op] = kernel;
  return TORCH_SUCCESS;
}

// Python gives the device back when the op is done.
AOTITorchError aoti_torch_create_device_guard(int32_t device, DeviceGuardHandle* made) {
  *made = nullptr;
  const int64_t numbers[] = {device};
  return ask_python("device", numbers) == nullptr ? TORCH_FAILURE : TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return TORCH_SUCCESS; }

AOTITorchError current_stream(int32_t device, void** stream) {
  const int64_t numbers[] = {device};
  const int64_t* answer = ask_python("stream", numbers);
  if (answer == nullptr) return TORCH_FAILURE;
  *stream = reinterpret_cast<void*>(answer[0]);
  return TORCH_SUCCESS;
}

// Unused: the pool is our own.
AOTITorchError torch_parallel_for(int64_t, int64_t, int64_t, ParallelFunc, void*) { return TORCH_FAILURE; }
AOTITorchError torch_get_num_threads(uint32_t*) { return TORCH_FAILURE; }

using torch::headeronly::DeviceType;
using torch::headeronly::Layout;
using torch::headeronly::MemoryFormat;
#define X(name, value) \
  int32_t name() { return static_cast<int32_t>(value); }
NYBBLE_TORCH_NUMBERS(X)
#undef X

}  // namespace stand_in

// One argument as an op takes it, from the numbers that Python gave. T: a tensor, l: a list of integers (its length
// first), s: a dtype, b: a truth value; any other number is passed on bit for bit, floating ones too.
StableIValue read_argument(char kind, const int64_t*& at) {
  switch (kind) {
    case 'T':
      return detail::from(read_tensor(at));
    case 'l': {
      const int64_t* items = at + 1;
      at = items + at[0];
      return detail::from(std::vector<int64_t>(items, at));
    }
    case 's':
      return detail::from(static_cast<int32_t>(*at++));
    case 'b':
      return detail::from(*at++ != 0);
    default:
      return detail::from(*at++);
  }
}

void call(Kernel kernel, const char* kinds, int64_t results, const int64_t* numbers, int64_t* tokens) {
  std::vector<StableIValue> stack;
  for (; *kinds != 0; ++kinds) {
    if (*kinds == '?') {  // optional: 0, or 1 and the value
      ++kinds;
      stack.push_back(*numbers++ == 0 ? 0 : detail::from(new StableIValue(read_argument(*kinds, numbers))));
    } else {
      stack.push_back(read_argument(*kinds, numbers));
    }
  }
  const size_t arguments = stack.size();
  stack.resize(std::max(arguments, static_cast<size_t>(results)));
  kernel(stack.data(), arguments, static_cast<uint64_t>(results));
  for (int64_t i = 0; i < results; ++i) tokens[i] = token(detail::to<Tensor>(stack[i]));
}

}  // namespace
}  // namespace nybble::binding

// Takes the library into use: `ask` is Python's. False: torch has it in use already.
NYBBLE_EXPORT bool nybble_use_python(const int64_t* (*ask)(const char* what, const int64_t* numbers)) {
  using namespace nybble::binding;
  if (torch::aoti_torch_abi_version != nullptr && ask_python == nullptr) return false;
  ask_python = ask;
#define X(name, ...) torch::name = stand_in::name;
  NYBBLE_TORCH_ALL(X)
#undef X
  current_stream = stand_in::current_stream;
  nybble::cpu::set_pool(nybble::cpu::own_pool());
  register_cpu_ops();
  register_cuda_ops();
  return true;
}

// An op's kernel by a name like CPU.rms_norm; nullptr where there is none.
NYBBLE_EXPORT void* nybble_kernel(const char* name) {
  const auto found = nybble::binding::kernels.find(std::string_view(name));
  return found == nybble::binding::kernels.end() ? nullptr : reinterpret_cast<void*>(found->second);
}

// Runs a kernel on `threads` threads. `kinds` has a letter for each argument (read_argument), after a ? where it may be
// missing; `numbers` holds the arguments one after another. Writes the tokens of the resulting tensors. Returns
// nullptr, or what was wrong, valid until this thread's next call.
NYBBLE_EXPORT const char* nybble_call(void* kernel, const char* kinds, int64_t threads, const int64_t* numbers,
                                      int64_t results, int64_t* tokens) {
  static thread_local std::string wrong;
  try {
    nybble::cpu::set_own_threads(threads);
    nybble::binding::call(reinterpret_cast<nybble::binding::Kernel>(kernel), kinds, results, numbers, tokens);
    return nullptr;
  } catch (const std::exception& error) {
    wrong = error.what();
    return wrong.c_str();
  }
}
