// One weight of a decoder on a CUDA device.
#pragma once

#include <ATen/core/Tensor.h>

#include "llm/weight.h"

namespace lowbit::llm {

/// A weight [rows, cols], dense or quantized, and its bias.
class CudaLinear {
 public:
  CudaLinear() = default;
  CudaLinear(const at::Tensor& weight, const at::Tensor& bias);

  /// Whether `weight` and `bias` are still the tensors that this was made from, where they were.
  bool reads(const at::Tensor& weight, const at::Tensor& bias) const;

  /// input [M, cols] * W^T + bias: [M, rows] of input's dtype. `programmatic`: the kernel may begin
  /// before the one in front of it ended, which does not write this weight.
  at::Tensor multiply(const at::Tensor& input, bool programmatic) const;
  /// The products of several weights with one input: one launch when all of them are 4-bit and a
  /// kernel takes them together, else one each. One output per weight.
  static void multiply_group(c10::ArrayRef<const CudaLinear*> linears, const at::Tensor& input,
                             bool programmatic, at::Tensor* outputs);
  /// Rows `ids` (int64, [count]) of W: [count, cols], `dtype`.
  at::Tensor gather(const at::Tensor& ids, at::ScalarType dtype) const;

 private:
  at::Tensor weight_, bias_;    ///< as given; keep the memory alive
  const void* data_ = nullptr;  ///< of weight_
  at::Tensor dense_;            ///< undefined when quantized
  at::Tensor dense_bias_;       ///< contiguous
  WeightView view_;
};

}  // namespace lowbit::llm
