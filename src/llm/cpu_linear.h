// One weight of a decoder as the CPU kernels read it, and products with several of them at once.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "lowbit/kernels/fourbit.h"
#include "ops/linear.h"

namespace lowbit::llm {

/// A weight [rows, cols], dense or quantized, and its bias.
class CpuLinear {
 public:
  CpuLinear() = default;
  /// `fast`: 4-bit products may round activations to 15 bits per block of 64 (relative error 6e-5).
  CpuLinear(const at::Tensor& weight, const at::Tensor& bias, bool fast);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  /// Whether `weight` and `bias` are still the tensors that this was made from.
  bool reads(const at::Tensor& weight, const at::Tensor& bias) const;

  /// output[M, rows] = input[M, cols] * W^T + bias, float32.
  void multiply(const float* input, int64_t m, float* output) const;
  /// output[count, cols] = rows `ids` of W, float32. ids are in [0, rows).
  void gather(const int64_t* ids, int64_t count, float* output) const;

 private:
  friend void multiply_together(std::span<const struct LinearCall>, const float*, int64_t);
  enum class Kind { kDense, k4bit, k8bit, k8bitWeightOnly };

  kernels::Matmul4bitParams params_4bit(const float* input, int64_t m, float* output) const;
  void multiply_dense(const float* input, int64_t m, float* output) const;

  Kind kind_ = Kind::kDense;
  at::Tensor weight_;           ///< as given; keeps the memory alive
  const void* data_ = nullptr;  ///< of weight_
  at::Tensor bias_;
  at::Tensor bias32_;
  ops::Weight4bit w4_;
  ops::Weight8bit w8_;
  double threshold_ = 0.0;
  bool fast_ = false;
  int64_t rows_ = 0, cols_ = 0;
};

struct LinearCall {
  const CpuLinear* linear;
  float* output;
};

/// Products of one input with several weights of equal cols. 4-bit weights share the preparation of
/// the input and one fork of the threads: at one token that costs as much as the arithmetic of a
/// small layer.
void multiply_together(std::span<const LinearCall> calls, const float* input, int64_t m);

}  // namespace lowbit::llm
