// What check.h declares: compiled once, not into every binding.
#include "binding/check.h"

namespace nybble::binding {

const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another type";
  }
}

int64_t Check::operator[](std::string_view letter) const {
  const Bound* found = find(letter);
  if (found == nullptr) fail(op_, ": unbound letter ", letter);
  return found->value;
}

void Check::shape(const Tensor& t, std::string_view name, Letters letters) {
  const auto sizes = t.sizes();
  const bool leading = letters.size() > 0 && *letters.begin() == "...";
  const int64_t rank = static_cast<int64_t>(letters.size()) - (leading ? 1 : 0);
  const int64_t skip = static_cast<int64_t>(sizes.size()) - rank;
  if (leading ? skip < 0 : skip != 0) wrong_shape(t, name, letters);
  int64_t at = skip;
  for (const auto letter : letters) {
    if (letter == "...") continue;
    const int64_t size = sizes[at++];
    const Bound* found = find(letter);
    if (found == nullptr) {
      bound_.push_back({letter, size, name});
    } else if (found->value != size) {
      wrong_shape(t, name, letters);
    }
  }
}

void Check::same_shape(const Tensor& t, std::string_view name, const Tensor& other, std::string_view other_name) const {
  const auto a = t.sizes(), b = other.sizes();
  bool same = a.size() == b.size();
  for (size_t i = 0; same && i < a.size(); ++i) same = a[i] == b[i];
  if (!same)
    fail(op_, ": ", name, " has shape ", listed(t), ", expected ", listed(other), ", the shape of ", other_name);
}

DType Check::floats(const Tensor& t, std::string_view name) const {
  device(t, name);
  DType type;
  switch (t.scalar_type()) {
    case ScalarType::Float:
      type = DType::f32;
      break;
    case ScalarType::Half:
      type = DType::f16;
      break;
    case ScalarType::BFloat16:
      type = DType::bf16;
      break;
    default:
      fail(op_, ": ", name, " is ", dtype_name(t.scalar_type()), ", expected float32, float16 or bfloat16");
  }
  aligned(t, name);
  return type;
}

void Check::type(const Tensor& t, std::string_view name, ScalarType type) const {
  device(t, name);
  type_anywhere(t, name, type);
}

void Check::on_cpu(const Tensor& t, std::string_view name, ScalarType type) const {
  if (!t.is_cpu()) fail(op_, ": ", name, " must be on the CPU");
  type_anywhere(t, name, type);
}

void Check::contiguous(const Tensor& t, std::string_view name) const {
  if (!t.is_contiguous()) fail(op_, ": ", name, " is not contiguous; call .contiguous() on it once, when it is made");
}

void Check::distinct(const Tensor& t, std::string_view name) const {
  const auto sizes = t.sizes();
  const auto strides = t.strides();
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] > 1 && strides[i] == 0) {
      fail(op_, ": ", name, " is expanded (stride 0 in dimension ", i, ") and cannot be written in place");
    }
  }
}

void Check::unit_stride(const Tensor& t, std::string_view name) const {
  const int64_t last = t.dim() - 1;
  if (t.size(last) > 1 && t.stride(last) != 1) {
    fail(op_, ": ", name, " has stride ", t.stride(last), " in its last dimension, expected 1");
  }
}

void Check::done(Status status) const {
  if (status.ok()) return;
  // Kernels may begin their text with the op's name.
  const std::string_view text = status.error;
  if (text.rfind(op_, 0) == 0) fail(text);
  fail(op_, ": ", text);
}

const Check::Bound* Check::find(std::string_view letter) const {
  for (const Bound& b : bound_) {
    if (b.letter == letter) return &b;
  }
  return nullptr;
}

void Check::device(const Tensor& t, std::string_view name) const {
  if (cuda_ ? !t.is_cuda() : !t.is_cpu())
    fail(op_, ": ", name, " must be on the ", cuda_ ? "GPU" : "CPU", " like the other tensors");
}

void Check::type_anywhere(const Tensor& t, std::string_view name, ScalarType type) const {
  if (t.scalar_type() != type) {
    fail(op_, ": ", name, " is ", dtype_name(t.scalar_type()), ", expected ", dtype_name(type));
  }
  aligned(t, name);
}

void Check::aligned(const Tensor& t, std::string_view name) const {
  if (reinterpret_cast<uintptr_t>(t.data_ptr()) % t.element_size() != 0) {
    fail(op_, ": ", name, " starts at an address that is not a multiple of its element size; clone it first");
  }
}

std::string Check::listed(const Tensor& t) {
  std::ostringstream text;
  const char* comma = "[";
  for (const int64_t size : t.sizes()) {
    text << comma << size;
    comma = ", ";
  }
  text << (t.dim() == 0 ? "[]" : "]");
  return text.str();
}

void Check::wrong_shape(const Tensor& t, std::string_view name, Letters letters) const {
  std::ostringstream text;
  text << op_ << ": " << name << " has shape " << listed(t) << ", expected [";
  const char* comma = "";
  for (const auto letter : letters) {
    text << comma << letter;
    comma = ", ";
  }
  text << "]";
  const char* with = " with ";
  for (const auto letter : letters) {
    const Bound* found = find(letter);
    if (found == nullptr || found->from == name) continue;
    text << with << letter << " = " << found->value << " from " << found->from;
    with = ", ";
  }
  throw std::runtime_error(text.str());
}

Rows::Rows(const Tensor& x) : tensor(x) {
  if (!view(x)) {
    tensor = torch::stable::contiguous(x);
    stride = D;
  }
}

bool Rows::view(const Tensor& x) {
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  const int64_t last = static_cast<int64_t>(sizes.size()) - 1;
  D = sizes[last];
  for (int64_t i = 0; i < last; ++i) R *= sizes[i];
  stride = D;
  if (R * D == 0) return true;
  if (D > 1 && strides[last] != 1) return false;
  int64_t expected = -1;  // stride that the next dimension to the left must have to continue the rows
  for (int64_t i = last - 1; i >= 0; --i) {
    if (sizes[i] == 1) continue;
    if (expected < 0) {
      stride = strides[i];
      expected = strides[i];
    } else if (strides[i] != expected) {
      return false;
    }
    expected *= sizes[i];
  }
  return true;
}

void WritableRows::write_back() const {
  if (Tensor to = home; tensor.data_ptr() != to.data_ptr()) torch::stable::copy_(to, tensor);
}

Tensor dense_last(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return t.size(last) > 1 && t.stride(last) != 1 ? torch::stable::contiguous(t) : t;
}

Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

Tensor new_cpu(const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * (sizes[i] > 1 ? sizes[i] : 1);
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                  dtype, aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

Tensor new_beside(const Tensor& x, const std::vector<int64_t>& sizes, ScalarType type) {
  return x.is_cpu() ? new_cpu(sizes, type) : torch::stable::new_empty(x, sizes, type);
}

Tensor with_last(const Tensor& x, int64_t last) {
  const auto sizes = x.sizes();
  std::vector<int64_t> shape(sizes.begin(), sizes.end());
  shape.back() = last;
  return new_beside(x, shape, x.scalar_type());
}

Scratch::Scratch(const Tensor& x, int64_t bytes) {
  if (bytes <= 0) return;
  bytes += 63;
  if (x.is_cpu()) {
    heap_.reset(new char[bytes]);
    start_ = heap_.get();
  } else {
    memory_ = torch::stable::new_empty(x, {bytes}, ScalarType::Byte);
    start_ = memory_->data_ptr();
  }
}

}  // namespace nybble::binding
