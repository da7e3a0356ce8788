#include "nn/swap.h"

#include "lowbit/quantized_tensor.h"
#include "tensor/impl.h"

namespace lowbit::nn {

void Swap::apply() {
  try {
    for (Change& change : changes_) {
      change.old = change.target.variable_data();
      change.required_grad = change.target.requires_grad();
      tensor::become(change.target, change.value);
    }
  } catch (...) {
    for (const Change& change : changes_) {
      if (!change.old.defined()) break;
      tensor::become(change.target, change.old);
      change.target.set_requires_grad(change.required_grad);
    }
    throw;
  }
  for (Change& change : changes_) {
    if (is_quantized(change.value)) change.target.mutable_grad().reset();
  }
}

}  // namespace lowbit::nn
