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

const char* dtype_name(ScalarType type);

class Check {
 public:
  explicit Check(const char* op, bool cuda = false) : op_(op), cuda_(cuda) { bound_.reserve(8); }

  // Binds a letter by hand, for a size that no tensor states by itself.
  void let(std::string_view letter, int64_t value, std::string_view from) { bound_.push_back({letter, value, from}); }

  // The value of a bound letter.
  int64_t operator[](std::string_view letter) const;

  // "..." as the first letter stands for any number of leading dimensions.
  void shape(const Tensor& t, std::string_view name, Letters letters);
  void same_shape(const Tensor& t, std::string_view name, const Tensor& other, std::string_view other_name) const;

  // One of the float types of the contract, on this op's device.
  DType floats(const Tensor& t, std::string_view name) const;

  // Exactly `type`, on this op's device.
  void type(const Tensor& t, std::string_view name, ScalarType type) const;
  void on_cpu(const Tensor& t, std::string_view name, ScalarType type) const;
  void contiguous(const Tensor& t, std::string_view name) const;

  // What an op writes in place may not show one element at two places.
  void distinct(const Tensor& t, std::string_view name) const;

  void unit_stride(const Tensor& t, std::string_view name) const;

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

  void done(Status status) const;

 private:
  struct Bound {
    std::string_view letter;
    int64_t value;
    std::string_view from;
  };

  const Bound* find(std::string_view letter) const;
  void device(const Tensor& t, std::string_view name) const;
  void type_anywhere(const Tensor& t, std::string_view name, ScalarType type) const;
  void aligned(const Tensor& t, std::string_view name) const;
  static std::string listed(const Tensor& t);
  [[noreturn]] void wrong_shape(const Tensor& t, std::string_view name, Letters letters) const;

  const char* op_;
  bool cuda_;
  std::vector<Bound> bound_;
};

// x [..., D] seen as R rows with one stride; a copy is made only where the strides do not allow that view.
struct Rows {
  Tensor tensor;  // keeps the memory alive
  int64_t R = 1, D = 0, stride = 0;

  explicit Rows(const Tensor& x);
  void* data() const { return tensor.data_ptr(); }

 private:
  bool view(const Tensor& x);
};

// Rows that an op writes. Where they had to be copied, write_back() brings the results home.
struct WritableRows : Rows {
  explicit WritableRows(const Tensor& x) : Rows(x), home(x) {}
  void write_back() const;

 private:
  Tensor home;
};

// The same tensor, or a contiguous copy where its last dimension has gaps.
Tensor dense_last(const Tensor& t);

// The same tensor where it is contiguous already: asking torch for that costs more than a small op.
Tensor dense(const Tensor& t);

// A new CPU tensor. new_empty() asks torch's dispatcher twice, which a small op would feel.
Tensor new_cpu(const std::vector<int64_t>& sizes, ScalarType type);

// A new tensor on x's device.
Tensor new_beside(const Tensor& x, const std::vector<int64_t>& sizes, ScalarType type);

// A new tensor with x's leading sizes and `last` as its last one.
Tensor with_last(const Tensor& x, int64_t last);

inline const void* pointer(const std::optional<Tensor>& t) { return t.has_value() ? t->data_ptr() : nullptr; }

// `bytes` of memory on x's device, from a 64-byte boundary, given back when this goes. On a GPU it is torch's, whose
// cache knows the stream.
class Scratch {
 public:
  Scratch(const Tensor& x, int64_t bytes);
  void* data() const {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(start_) + 63) & ~static_cast<uintptr_t>(63));
  }

 private:
  std::unique_ptr<char[]> heap_;
  std::optional<Tensor> memory_;
  void* start_ = nullptr;
};

}  // namespace nybble::binding
