// Tensors as the kernels read them: rows of the last dimension.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/check.h"

namespace lowbit::ops {

/// A tensor [..., width] as a matrix: read in place when one stride describes all rows, copied
/// otherwise.
struct Rows {
  at::Tensor owner;
  const void* data = nullptr;
  int64_t count = 0;
  int64_t stride = 0;  ///< elements between rows
};

inline Rows as_rows(const at::Tensor& tensor, int64_t width) {
  Rows rows;
  int64_t count = 1;
  for (int64_t i = 0; i + 1 < tensor.dim(); ++i) count *= tensor.size(i);
  rows.count = count;
  const bool strided =
      tensor.dim() == 2 && (tensor.stride(1) == 1 || width <= 1) && tensor.stride(0) >= width;
  if (tensor.is_contiguous()) {
    rows.owner = tensor;
    rows.stride = width;
  } else if (strided) {
    rows.owner = tensor;
    rows.stride = tensor.stride(0);
  } else {
    rows.owner = tensor.contiguous();
    rows.stride = width;
  }
  rows.data = rows.owner.const_data_ptr();
  return rows;
}

/// `like`'s sizes with another last dimension.
inline c10::SmallVector<int64_t, 5> with_last(at::IntArrayRef sizes, int64_t last) {
  c10::SmallVector<int64_t, 5> result(sizes.begin(), sizes.end());
  result.back() = last;
  return result;
}
inline c10::SymDimVector with_last(c10::SymIntArrayRef sizes, c10::SymInt last) {
  c10::SymDimVector result(sizes.begin(), sizes.end());
  result.back() = std::move(last);
  return result;
}

inline const at::Tensor& value_or_undefined(const std::optional<at::Tensor>& tensor) {
  static const at::Tensor undefined;
  return tensor.has_value() ? *tensor : undefined;
}

}  // namespace lowbit::ops
