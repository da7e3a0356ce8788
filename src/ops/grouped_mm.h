// Stacks of 4-bit weights (mixture of experts) over tokens in groups.
#pragma once

#include "ops/linear.h"
#include "ops/operands.h"

namespace lowbit::ops {

/// Experts' weights [N, K] as one weight of experts * N rows, over whose flat index blocks run.
struct Stack4bit {
  Weight4bit weight;
  int64_t experts = 1;

  int64_t rows() const { return weight.rows / experts; }  ///< N
};

/// [E, N, K], at least one expert; [E * N, K].
inline std::array<int64_t, 2> stack_shape(const char* op, const char* argument,
                                          at::IntArrayRef shape) {
  LOWBIT_CHECK(shape.size() == 3 && shape[0] >= 1, op, argument,
               "[experts, out_features, in_features], at least one expert", shape);
  int64_t rows = 0;
  LOWBIT_CHECK(shape[1] >= 0 && shape[2] >= 0 && !__builtin_mul_overflow(shape[0], shape[1], &rows),
               op, argument, "non-negative sizes of at most 2^63 elements", shape);
  return {rows, shape[2]};
}

/// input: [M, width]; offs: int32 [experts]; all on the weight's device.
inline void check_groups(const char* op, const char* argument, const at::Tensor& input,
                         int64_t width, int64_t experts, const at::Tensor& offs,
                         at::Device device) {
  check_activations(op, argument, input, width, device);
  LOWBIT_CHECK(input.dim() == 2, op, argument, c10::str("[M, ", width, "]"),
               c10::str("shape ", input.sym_sizes()));
  check_device(op, "offs", offs, device);
  check_dtype(op, "offs", offs, at::kInt);
  LOWBIT_CHECK(offs.dim() == 1 && offs.sym_size(0) == experts, op, "offs",
               c10::str("[", experts, "], an end for each expert"),
               c10::str("shape ", offs.sym_sizes()));
}

/// input [M, K], its rows sorted by expert; offs: int32 [experts], the end of each expert's rows.
/// [M, N] of input's dtype. Differentiable in input.
at::Tensor grouped_mm_4bit(const at::Tensor& input, const Stack4bit& stack, const at::Tensor& offs);
/// grad_output [M, N] times the weights untransposed: [M, K].
at::Tensor grouped_mm_4bit_backward_input(const at::Tensor& grad_output, const Stack4bit& stack,
                                          const at::Tensor& offs);

namespace direct {
at::Tensor grouped_mm_4bit(const at::Tensor& input, const Stack4bit& stack, const at::Tensor& offs);
at::Tensor grouped_mm_4bit_backward_input(const at::Tensor& grad_output, const Stack4bit& stack,
                                          const at::Tensor& offs);
}  // namespace direct

namespace dispatch {
at::Tensor grouped_mm_4bit(const at::Tensor& input, const Stack4bit& stack, const at::Tensor& offs);
at::Tensor grouped_mm_4bit_backward_input(const at::Tensor& grad_output, const Stack4bit& stack,
                                          const at::Tensor& offs);
}  // namespace dispatch

}  // namespace lowbit::ops
