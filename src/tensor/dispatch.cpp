// The operators that know quantized tensors. Each is registered above and below autograd: the
// products record their own graph (through lowbit's ops), the rest has no gradient to record.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "ops/check.h"
#include "tensor/impl.h"

namespace lowbit::tensor {
namespace {
namespace aten {

using OptionalTensor = std::optional<at::Tensor>;
using OptionalDtype = std::optional<at::ScalarType>;

/// For operand combinations without a kernel.
at::Tensor counted_dense(const char* op, const at::Tensor& tensor) {
  const View view = view_of(tensor);
  if (!view) return tensor;
  note_fallback(op);
  return dense(view, tensor.scalar_type());
}

at::Tensor retyped(const View& view, at::ScalarType dtype) {
  return wrap(*view.payload, dtype, view.transposed);
}

// ---- Products ----

/// x * weight
at::Tensor times(const at::Tensor& x, const View& weight, const at::Tensor& bias = {}) {
  if (weight.transposed) return weight->linear(x, bias);
  const at::Tensor y = weight->product(x);
  return bias.defined() ? y + bias : y;
}

at::Tensor linear(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias) {
  const View view = view_of(weight);
  const bool fused = view && !view.transposed && view->shape.size() == 2 && !view_of(input) &&
                     !(bias && view_of(*bias));
  if (fused) return view->linear(input, bias.value_or(at::Tensor()));
  const char* op = "aten::linear";
  const at::Tensor x = counted_dense(op, input);
  const at::Tensor b = bias ? counted_dense(op, *bias) : at::Tensor();
  if (view && view->shape.size() == 2 && view_of(input)) return aten::linear(x, weight, b);
  return at::linear(x, counted_dense(op, weight), b);
}

at::Tensor mm(const at::Tensor& a, const at::Tensor& b) {
  const char* op = "aten::mm";
  LOWBIT_CHECK(a.dim() == 2 && b.dim() == 2, op, "self, mat2", "matrices",
               c10::str("shapes ", a.sizes(), " and ", b.sizes()));
  if (const View right = view_of(b)) return times(counted_dense(op, a), right);
  View left = view_of(a);  // a * b = (b^T * a^T)^T
  left.transposed = !left.transposed;
  return times(b.t(), left).t();
}

at::Tensor addmm(const at::Tensor& self, const at::Tensor& mat1, const at::Tensor& mat2,
                 const at::Scalar& beta, const at::Scalar& alpha) {
  const View right = view_of(mat2);
  const bool fused = right && right.transposed && !view_of(self) && !view_of(mat1) &&
                     mat1.dim() == 2 && mat2.dim() == 2 && self.dim() == 1 &&
                     self.size(0) == mat2.size(1) && beta.equal(1) && alpha.equal(1);
  if (fused) return right->linear(mat1, self);
  const char* op = "aten::addmm";
  const at::Tensor bias = counted_dense(op, self);
  const bool any = right || view_of(mat1);
  const at::Tensor product = any ? aten::mm(mat1, mat2) : at::mm(mat1, mat2);
  const at::Tensor scaled = alpha.equal(1) ? product : product * alpha;
  return beta.equal(0) ? scaled : scaled + (beta.equal(1) ? bias : bias * beta);
}

/// Products of a stack [E, ., .], expert by expert.
at::Tensor bmm(const at::Tensor& a, const at::Tensor& b) {
  const char* op = "aten::bmm";
  const View stack = view_of(b);
  const bool fits =
      stack && a.dim() == 3 && b.dim() == 3 && a.size(0) == b.size(0) && a.size(0) > 0;
  if (fits) {
    std::vector<at::Tensor> products;
    for (int64_t e = 0; e < b.size(0); ++e) {
      const PayloadPtr expert = select(*stack, e);
      if (expert == nullptr) break;
      products.push_back(times(counted_dense(op, a).select(0, e), {&expert, stack.transposed}));
    }
    if (static_cast<int64_t>(products.size()) == b.size(0)) return at::stack(products);
  }
  return at::bmm(counted_dense(op, a), counted_dense(op, b));
}

at::Tensor matmul(const at::Tensor& a, const at::Tensor& b) {
  const View right = view_of(b);
  if (right && b.dim() == 2 && a.dim() >= 1) {
    return times(counted_dense("aten::matmul", a), right);
  }
  if (right && b.dim() == 3 && a.dim() == 3) return aten::bmm(a, b);
  View left = view_of(a);
  if (left && a.dim() == 2 && b.dim() == 2) return aten::mm(a, b);
  if (left && a.dim() == 2 && b.dim() == 1) {
    left.transposed = !left.transposed;
    return times(b, left);
  }
  return at::matmul(counted_dense("aten::matmul", a), counted_dense("aten::matmul", b));
}

at::Tensor embedding(const at::Tensor& weight, const at::Tensor& indices, c10::SymInt padding_idx,
                     bool scale_grad_by_freq, bool sparse) {
  const View view = view_of(weight);
  if (view && !view.transposed && view->shape.size() == 2 && !view_of(indices)) {
    return view->embedding(indices, weight.scalar_type());
  }
  const char* op = "aten::embedding";
  return at::embedding_symint(counted_dense(op, weight), counted_dense(op, indices),
                              std::move(padding_idx), scale_grad_by_freq, sparse);
}

// ---- Views ----

at::Tensor detach(const at::Tensor& self) { return retyped(view_of(self), self.scalar_type()); }

at::Tensor transpose(const at::Tensor& self, int64_t dim0, int64_t dim1) {
  const int64_t rank = self.dim();
  const int64_t a = at::maybe_wrap_dim(dim0, rank), b = at::maybe_wrap_dim(dim1, rank);
  if (a == b) return aten::detach(self);
  const View view = view_of(self);
  if (std::max(a, b) == rank - 1 && std::min(a, b) == rank - 2) {
    return wrap(*view.payload, self.scalar_type(), !view.transposed);
  }
  return counted_dense("aten::transpose", self).transpose(a, b);
}

at::Tensor t(const at::Tensor& self) {
  LOWBIT_CHECK(self.dim() <= 2, "aten::t", "self", "at most 2-D", c10::str("shape ", self.sizes()));
  return self.dim() < 2 ? aten::detach(self) : aten::transpose(self, 0, 1);
}

at::Tensor select_int(const at::Tensor& self, int64_t dim, c10::SymInt index) {
  const View view = view_of(self);
  const int64_t rank = self.dim();
  const int64_t axis = at::maybe_wrap_dim(dim, rank);
  if (rank == 3 && axis == 0) {
    const int64_t size = self.size(0);
    const int64_t at = index.guard_int(__FILE__, __LINE__);
    LOWBIT_CHECK(at >= -size && at < size, "aten::select", "index", c10::str("in [0, ", size, ")"),
                 at);
    if (PayloadPtr slice = select(*view, at < 0 ? at + size : at)) {
      return wrap(std::move(slice), self.scalar_type(), view.transposed);
    }
  }
  return at::select_symint(counted_dense("aten::select", self), axis, std::move(index));
}

// ---- Copies ----

/// A cast changes the dtype that the tensor stands for; codes and statistics stay.
at::Tensor to_copy(const at::Tensor& self, OptionalDtype dtype, std::optional<at::Layout> layout,
                   std::optional<at::Device> device, std::optional<bool> pin_memory,
                   bool non_blocking, std::optional<at::MemoryFormat> memory_format) {
  const View view = view_of(self);
  const at::ScalarType target = dtype.value_or(self.scalar_type());
  const at::Device where = device.value_or(self.device());
  if (!ops::is_kernel_dtype(target) || layout.value_or(at::kStrided) != at::kStrided) {
    return dense(view, at::kFloat)
        .to(at::TensorOptions().dtype(target).layout(layout).device(where), non_blocking);
  }
  return wrap(to_device(*view.payload, where, non_blocking), target, view.transposed);
}

at::Tensor dequantize_self(const at::Tensor& self) {
  return dense(view_of(self), self.scalar_type());
}

/// reshape() takes a contiguous clone for what it says and views it: a transposed payload cannot
/// give that.
at::Tensor clone(const at::Tensor& self, std::optional<at::MemoryFormat> memory_format) {
  const View view = view_of(self);
  if (view.transposed && memory_format == at::MemoryFormat::Contiguous) {
    return counted_dense("aten::clone", self).contiguous();
  }
  return wrap(compact(*view), self.scalar_type(), view.transposed);
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& src, bool non_blocking) {
  const View from = view_of(src);
  if (!view_of(self)) return self.copy_(dense(from, src.scalar_type()), non_blocking);
  LOWBIT_CHECK(from, "aten::copy_", "src", "a quantized weight, as self is", "a dense tensor",
               "lowbit::quantize it first.");
  LOWBIT_CHECK(self.sizes() == src.sizes(), "aten::copy_", "src",
               c10::str("of shape ", self.sizes()), c10::str("shape ", src.sizes()));
  const PayloadPtr copy = compact(*from);
  become(self,
         wrap(to_device(copy, self.device(), non_blocking), self.scalar_type(), from.transposed));
  return self;
}

at::Tensor empty_like(const at::Tensor& self, OptionalDtype dtype, std::optional<at::Layout> layout,
                      std::optional<at::Device> device, std::optional<bool> pin_memory,
                      std::optional<at::MemoryFormat> memory_format) {
  const at::TensorOptions options = at::TensorOptions()
                                        .dtype(dtype.value_or(self.scalar_type()))
                                        .layout(layout)
                                        .device(device.value_or(self.device()))
                                        .pinned_memory(pin_memory);
  return at::empty(self.sizes(), options);
}

/// How torch::load puts what it read into a parameter.
at::Tensor& set_(at::Tensor& self, const at::Tensor& source) {
  LOWBIT_CHECK(view_of(source), "aten::set_", "source", "a quantized weight, as self is",
               c10::str("a dense ", ops::dtype_name(source.scalar_type()), " tensor of shape ",
                        source.sizes()),
               "Load float weights before quantizing, or dequantize_ first.");
  LOWBIT_CHECK(self.sizes() == source.sizes(), "aten::set_", "source",
               c10::str("of shape ", self.sizes()), c10::str("shape ", source.sizes()));
  become(self, source);
  return self;
}

/// set_data asks this before it makes `self` a shallow copy of `from`. A float parameter that is
/// about to become quantized (a module's clone() does that) can no longer be trained.
bool has_compatible_shallow_copy_type(const at::Tensor& self, const at::Tensor& from) {
  if (view_of(from) && self.requires_grad()) self.set_requires_grad(false);
  return true;
}

}  // namespace aten

void register_all(torch::Library& m) {
  m.impl("linear", &aten::linear);
  m.impl("mm", &aten::mm);
  m.impl("addmm", &aten::addmm);
  m.impl("bmm", &aten::bmm);
  m.impl("matmul", &aten::matmul);
  m.impl("embedding", &aten::embedding);
  m.impl("detach", &aten::detach);
  m.impl("alias", &aten::detach);
  m.impl("t", &aten::t);
  m.impl("transpose.int", &aten::transpose);
  m.impl("select.int", &aten::select_int);
  m.impl("_to_copy", &aten::to_copy);
  m.impl("dequantize.self", &aten::dequantize_self);
  m.impl("clone", &aten::clone);
  m.impl("copy_", &aten::copy_);
  m.impl("empty_like", &aten::empty_like);
  m.impl("set_.source_Tensor", &aten::set_);
  m.impl("_has_compatible_shallow_copy_type", &aten::has_compatible_shallow_copy_type);
}

}  // namespace
}  // namespace lowbit::tensor

TORCH_LIBRARY_IMPL(aten, PrivateUse3, m) {
  lowbit::tensor::register_all(m);
  lowbit::tensor::register_structured_fallbacks(m);
}
TORCH_LIBRARY_IMPL(aten, AutogradPrivateUse3, m) { lowbit::tensor::register_all(m); }
