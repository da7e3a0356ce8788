// What is behind a quantized tensor: codes and statistics, as files hold them and as the kernels
// read them. Never changes once made, so tensors and threads share it.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

#include <memory>
#include <optional>
#include <vector>

#include "lowbit/quantized_tensor.h"
#include "ops/linear.h"

namespace lowbit::tensor {

struct Payload {
  QuantScheme scheme = QuantScheme::kNF4;
  std::vector<int64_t> shape;  ///< of the weight, untransposed
  std::optional<at::ScalarType> compute_dtype;

  at::Tensor codes;  ///< packed bytes (4-bit) or int8 of `shape`
  QuantState state;  ///< 4-bit
  at::Tensor rows;   ///< int8: row absmax
  double threshold = 0.0;

  /// The same numbers as operands: all leading dimensions are rows.
  ops::Weight4bit weight_4bit;
  ops::Weight8bit weight_8bit;

  /// When all tensors above lie in one piece of memory: that piece, which torch::save writes
  /// (archive.h).
  c10::Storage archive;

  bool is_4bit() const noexcept { return lowbit::is_4bit(scheme); }
  at::Device device() const { return codes.device(); }
  int64_t numel() const noexcept;
  int64_t nbytes() const;
  /// Dtype at quantization; for int8 none is recorded.
  at::ScalarType original_dtype(at::ScalarType otherwise) const {
    return is_4bit() ? state.dtype : otherwise;
  }

  /// x * W^T + bias and x * W, in compute_dtype, returned in x's dtype. Differentiable in x and
  /// bias. The weight is a matrix.
  at::Tensor linear(const at::Tensor& x, const at::Tensor& bias) const;
  at::Tensor product(const at::Tensor& x) const;
  at::Tensor embedding(const at::Tensor& ids, at::ScalarType dtype) const;
  at::Tensor dequantize(at::ScalarType dtype) const;
};

using PayloadPtr = std::shared_ptr<const Payload>;

PayloadPtr make_4bit(const at::Tensor& packed, QuantState state,
                     std::optional<at::ScalarType> compute_dtype);
PayloadPtr make_int8(const at::Tensor& CB, const at::Tensor& SCB, double threshold,
                     bool weight_only, std::optional<at::ScalarType> compute_dtype);

/// On another device; itself when it is there.
PayloadPtr to_device(const PayloadPtr& payload, at::Device device, bool non_blocking);
/// Its own memory, in one piece.
PayloadPtr compact(const Payload& payload);
/// Slice `index` of the first dimension of a stack; null when its blocks do not begin at a block of
/// the stack.
PayloadPtr select(const Payload& payload, int64_t index);

}  // namespace lowbit::tensor
