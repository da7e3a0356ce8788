// Tensors whose numbers are a Payload.
//
// No class derives from c10::TensorImpl: the payload is the tensor's BackendMeta, and its dispatch
// keys are PrivateUse3 and AutogradPrivateUse3. Both are carried by every shallow copy, so
// set_data, which torch uses to move and to clone modules, turns any tensor into a quantized one,
// and back, in place: whoever holds the tensor (members, tied layers, scripted modules, optimizers)
// sees it.
#pragma once

#include "tensor/payload.h"

namespace torch {
class Library;
}

namespace lowbit::tensor {

/// A tensor of the payload's shape (last two dimensions swapped when `transposed`), of `dtype`:
/// float32, float16 or bfloat16.
at::Tensor wrap(PayloadPtr payload, at::ScalarType dtype, bool transposed = false);

/// The numbers behind a quantized tensor, and whether it is seen transposed.
struct View {
  const PayloadPtr* payload = nullptr;  ///< null: not quantized
  bool transposed = false;

  explicit operator bool() const noexcept { return payload != nullptr; }
  const Payload& operator*() const noexcept { return **payload; }
  const Payload* operator->() const noexcept { return payload->get(); }
};
/// Of any tensor. Valid as long as the tensor is.
View view_of(const at::Tensor& tensor) noexcept;
/// Of a quantized tensor. Throws naming `op`.
View required_view(const char* op, const at::Tensor& tensor);

/// Makes `target` what `source` is, in place: dense or quantized. A quantized one requires no grad.
void become(const at::Tensor& target, const at::Tensor& source);

/// The dense tensor, transposed if the view is.
at::Tensor dense(const View& view, at::ScalarType dtype);

/// Counts an operator that got a dense copy.
void note_fallback(const std::string& op);
/// The fallback as a kernel of its own for every operator whose composite kernel would go before
/// it.
void register_structured_fallbacks(torch::Library& m);

}  // namespace lowbit::tensor
