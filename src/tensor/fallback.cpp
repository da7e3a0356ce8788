// Operators without a quantized path get dense copies of quantized arguments.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <atomic>
#include <mutex>

#include "ops/check.h"
#include "tensor/impl.h"

namespace lowbit {
namespace {

std::atomic<int64_t> fallbacks{0};
std::mutex last_mutex;

std::string& last_name() {
  static std::string name;
  return name;
}

}  // namespace

int64_t fallback_count() noexcept { return fallbacks.load(std::memory_order_relaxed); }

std::string last_fallback() {
  const std::lock_guard lock(last_mutex);
  return last_name();
}

void reset_fallback_count() noexcept {
  const std::lock_guard lock(last_mutex);
  fallbacks.store(0, std::memory_order_relaxed);
  last_name().clear();
}

namespace tensor {

void note_fallback(const std::string& op) {
  const std::lock_guard lock(last_mutex);
  fallbacks.fetch_add(1, std::memory_order_relaxed);
  last_name() = op;
}

namespace {

at::Tensor dense_of(const at::Tensor& tensor) {
  const View view = view_of(tensor);
  return view ? dense(view, tensor.scalar_type()) : tensor;
}

void refuse_to_write(const std::string& op) {
  LOWBIT_CHECK(false, op, "self", "a dense tensor", "a quantized one",
               "A quantized weight cannot be changed in place: lowbit::dequantize it, change that, "
               "quantize it again.");
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::FunctionSchema& schema = op.schema();
  const std::string name = c10::toString(op.operator_name());
  const size_t count = schema.arguments().size();
  const size_t begin = stack->size() - count;
  for (size_t i = 0; i < count; ++i) {
    c10::IValue& value = (*stack)[begin + i];
    const c10::AliasInfo* alias = schema.arguments()[i].alias_info();
    const bool written = alias != nullptr && alias->isWrite();
    if (value.isTensor()) {
      if (!view_of(value.toTensor())) continue;
      if (written) refuse_to_write(name);
      value = dense_of(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> tensors = value.toTensorVector();
      for (at::Tensor& tensor : tensors) {
        if (written && view_of(tensor)) refuse_to_write(name);
        tensor = dense_of(tensor);
      }
      value = std::move(tensors);
    }
  }
  note_fallback(name);
  op.callBoxed(stack);
}

}  // namespace

/// Structured operators bring a composite kernel for backends that they do not know. It comes
/// before a fallback, and asks for the memory of its arguments, which a quantized tensor may not
/// have.
void register_structured_fallbacks(torch::Library& m) {
  constexpr auto kComposite = c10::DispatchKey::CompositeExplicitAutogradNonFunctional;
  c10::Dispatcher& dispatcher = c10::Dispatcher::singleton();
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0) continue;
    const auto op = dispatcher.findOp(name);
    if (!op || !op->hasKernelForDispatchKey(kComposite) ||
        op->hasKernelForDispatchKey(c10::DispatchKey::PrivateUse3)) {
      continue;
    }
    m.impl(c10::toString(name).c_str(), torch::CppFunction::makeFromBoxedFunction<&fallback>());
  }
}

}  // namespace tensor
}  // namespace lowbit

TORCH_LIBRARY_IMPL(_, PrivateUse3, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&lowbit::tensor::fallback>());
}
