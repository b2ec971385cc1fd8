// Checks at the border: each tensor's device, dtype, shape and layout, once. Nothing below checks again.
// Shapes are written in letters, which bind at first use and must agree after:
//   Check check("rms_norm");
//   check.shape(x, "x", {"...", "D"});
//   check.shape(weight, "weight", {"D"});   // rms_norm: weight has shape [4095], expected [D] with D = 4096 from x
#pragma once
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "binding/torch.h"
#include "ops/problem.h"

namespace nybble::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Letters = std::initializer_list<std::string_view>;

// std::runtime_error becomes Python's RuntimeError. STD_TORCH_CHECK does the same but puts the source path before the
// text.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

inline const char* dtype_name(ScalarType type) {
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

class Check {
 public:
  explicit Check(const char* op, bool cuda = false) : op_(op), cuda_(cuda) { bound_.reserve(8); }

  // Binds a letter by hand, for a size that no tensor states by itself.
  void let(std::string_view letter, int64_t value, std::string_view from) { bound_.push_back({letter, value, from}); }

  // The value of a bound letter.
  int64_t operator[](std::string_view letter) const {
    const Bound* found = find(letter);
    if (found == nullptr) fail(op_, ": unbound letter ", letter);
    return found->value;
  }

  // "..." as the first letter stands for any number of leading dimensions.
  void shape(const Tensor& t, std::string_view name, Letters letters) {
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

  void same_shape(const Tensor& t, std::string_view name, const Tensor& other, std::string_view other_name) const {
    const auto a = t.sizes(), b = other.sizes();
    bool same = a.size() == b.size();
    for (size_t i = 0; same && i < a.size(); ++i) same = a[i] == b[i];
    if (!same)
      fail(op_, ": ", name, " has shape ", listed(t), ", expected ", listed(other), ", the shape of ", other_name);
  }

  // One of the float types of the contract, on this op's device.
  DType floats(const Tensor& t, std::string_view name) const {
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

  // Exactly `type`, on this op's device.
  void type(const Tensor& t, std::string_view name, ScalarType type) const {
    device(t, name);
    type_anywhere(t, name, type);
  }

  void on_cpu(const Tensor& t, std::string_view name, ScalarType type) const {
    if (!t.is_cpu()) fail(op_, ": ", name, " must be on the CPU");
    type_anywhere(t, name, type);
  }

  void contiguous(const Tensor& t, std::string_view name) const {
    if (!t.is_contiguous()) fail(op_, ": ", name, " is not contiguous; call .contiguous() on it once, when it is made");
  }

  // What an op writes in place may not show one element at two places.
  void distinct(const Tensor& t, std::string_view name) const {
    const auto sizes = t.sizes();
    const auto strides = t.strides();
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (sizes[i] > 1 && strides[i] == 0) {
        fail(op_, ": ", name, " is expanded (stride 0 in dimension ", i, ") and cannot be written in place");
      }
    }
  }

  void unit_stride(const Tensor& t, std::string_view name) const {
    const int64_t last = t.dim() - 1;
    if (t.size(last) > 1 && t.stride(last) != 1) {
      fail(op_, ": ", name, " has stride ", t.stride(last), " in its last dimension, expected 1");
    }
  }

  // values[i] must satisfy `good`; the message shows the first that does not. On a GPU nothing is asked, since looking
  // would wait for the stream: kernels there touch nothing outside and answer NaN or -1 (docs/performance-gpu.md).
  template <typename T, typename Good>
  void each(const Tensor& t, std::string_view name, const char* expected, Good good) const {
    if (t.is_cuda()) return;
    const T* values = static_cast<const T*>(t.data_ptr());
    const int64_t n = t.numel();
    for (int64_t i = 0; i < n; ++i) {
      if (!good(values[i])) fail(op_, ": ", name, "[", i, "] is ", values[i], ", expected ", expected);
    }
  }

  template <typename... Parts>
  void that(bool good, const Parts&... parts) const {
    if (!good) fail(op_, ": ", parts...);
  }

  void done(Status status) const {
    if (status.ok()) return;
    // Kernels may begin their text with the op's name.
    const std::string_view text = status.error;
    if (text.rfind(op_, 0) == 0) fail(text);
    fail(op_, ": ", text);
  }

 private:
  struct Bound {
    std::string_view letter;
    int64_t value;
    std::string_view from;
  };

  const Bound* find(std::string_view letter) const {
    for (const Bound& b : bound_) {
      if (b.letter == letter) return &b;
    }
    return nullptr;
  }

  void device(const Tensor& t, std::string_view name) const {
    if (cuda_ ? !t.is_cuda() : !t.is_cpu())
      fail(op_, ": ", name, " must be on the ", cuda_ ? "GPU" : "CPU", " like the other tensors");
  }

  void type_anywhere(const Tensor& t, std::string_view name, ScalarType type) const {
    if (t.scalar_type() != type) {
      fail(op_, ": ", name, " is ", dtype_name(t.scalar_type()), ", expected ", dtype_name(type));
    }
    aligned(t, name);
  }

  void aligned(const Tensor& t, std::string_view name) const {
    if (reinterpret_cast<uintptr_t>(t.data_ptr()) % t.element_size() != 0) {
      fail(op_, ": ", name, " starts at an address that is not a multiple of its element size; clone it first");
    }
  }

  static std::string listed(const Tensor& t) {
    std::ostringstream text;
    const char* comma = "[";
    for (const int64_t size : t.sizes()) {
      text << comma << size;
      comma = ", ";
    }
    text << (t.dim() == 0 ? "[]" : "]");
    return text.str();
  }

  [[noreturn]] void wrong_shape(const Tensor& t, std::string_view name, Letters letters) const {
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

  const char* op_;
  bool cuda_;
  std::vector<Bound> bound_;
};

// x [..., D] seen as R rows with one stride; a copy is made only where the strides do not allow that view.
struct Rows {
  Tensor tensor;  // keeps the memory alive
  int64_t R = 1, D = 0, stride = 0;

  explicit Rows(const Tensor& x) : tensor(x) {
    if (!view(x)) {
      tensor = torch::stable::contiguous(x);
      stride = D;
    }
  }
  void* data() const { return tensor.data_ptr(); }

 private:
  bool view(const Tensor& x) {
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
};

// Rows that an op writes. Where they had to be copied, write_back() brings the results home.
struct WritableRows : Rows {
  explicit WritableRows(const Tensor& x) : Rows(x), home(x) {}
  void write_back() const {
    if (Tensor to = home; tensor.data_ptr() != to.data_ptr()) torch::stable::copy_(to, tensor);
  }

 private:
  Tensor home;
};

// The same tensor, or a contiguous copy where its last dimension has gaps.
inline Tensor dense_last(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return t.size(last) > 1 && t.stride(last) != 1 ? torch::stable::contiguous(t) : t;
}

// The same tensor where it is contiguous already: asking torch for that costs more than a small op.
inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// A new CPU tensor. new_empty() asks torch's dispatcher twice, which a small op would feel.
inline Tensor new_cpu(const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * (sizes[i] > 1 ? sizes[i] : 1);
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                  dtype, aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

// A new tensor on x's device.
inline Tensor new_beside(const Tensor& x, const std::vector<int64_t>& sizes, ScalarType type) {
  return x.is_cpu() ? new_cpu(sizes, type) : torch::stable::new_empty(x, sizes, type);
}

// A new tensor with x's leading sizes and `last` as its last one.
inline Tensor with_last(const Tensor& x, int64_t last) {
  const auto sizes = x.sizes();
  std::vector<int64_t> shape(sizes.begin(), sizes.end());
  shape.back() = last;
  return new_beside(x, shape, x.scalar_type());
}

inline const void* pointer(const std::optional<Tensor>& t) { return t.has_value() ? t->data_ptr() : nullptr; }

// `bytes` of memory on x's device, from a 64-byte boundary, given back when this goes. On a GPU it is torch's, whose
// cache knows the stream.
class Scratch {
 public:
  Scratch(const Tensor& x, int64_t bytes) {
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
  void* data() const {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(start_) + 63) & ~static_cast<uintptr_t>(63));
  }

 private:
  std::unique_ptr<char[]> heap_;
  std::optional<Tensor> memory_;
  void* start_ = nullptr;
};

}  // namespace nybble::binding
