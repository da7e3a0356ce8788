// Tensors and the views that files are read and written through.
#pragma once

#include <ATen/core/Tensor.h>

#include "lowbit/io/tensor_view.h"

namespace lowbit::llm {

at::ScalarType scalar_type(io::DType dtype);
io::DType io_dtype(at::ScalarType dtype);

/// Shares the view's memory, which is kept alive. When the data are not aligned to their type, a
/// copy.
at::Tensor to_tensor(const io::TensorView& view);
/// Shares the tensor's memory (made contiguous, on the CPU).
io::TensorView to_view(const at::Tensor& tensor);

}  // namespace lowbit::llm
