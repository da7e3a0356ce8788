// The ops, called through the dispatcher: what traces, differentiates and runs on any device.
#pragma once

#include <tuple>

#include "ops/linear.h"

namespace lowbit::ops::dispatch {

at::Tensor linear_4bit(const at::Tensor& input, const Weight4bit& weight, const at::Tensor& bias);
at::Tensor linear_4bit_backward_input(const at::Tensor& grad_output, const Weight4bit& weight);
at::Tensor embedding_4bit(const at::Tensor& ids, const Weight4bit& table, at::ScalarType dtype);
at::Tensor linear_8bit(const at::Tensor& input, const Weight8bit& weight, const at::Tensor& bias,
                       double threshold);
at::Tensor linear_8bit_weight_only(const at::Tensor& input, const Weight8bit& weight,
                                   const at::Tensor& bias);
at::Tensor linear_8bit_backward_input(const at::Tensor& grad_output, const Weight8bit& weight);
at::Tensor embedding_8bit(const at::Tensor& ids, const Weight8bit& table, at::ScalarType dtype);

std::tuple<at::Tensor, at::Tensor> quantize_4bit(const at::Tensor& A, int64_t blocksize,
                                                 QuantType quant_type, at::ScalarType storage);
at::Tensor dequantize_4bit(const at::Tensor& A, const at::Tensor& absmax, int64_t blocksize,
                           QuantType quant_type, at::IntArrayRef shape, at::ScalarType dtype);
std::tuple<at::Tensor, at::Tensor> quantize_blockwise(const at::Tensor& A, const at::Tensor& code,
                                                      int64_t blocksize);
at::Tensor dequantize_blockwise(const at::Tensor& A, const at::Tensor& absmax,
                                const at::Tensor& code, int64_t blocksize, at::ScalarType dtype);
std::tuple<at::Tensor, at::Tensor, at::Tensor> int8_rowwise_quant(const at::Tensor& A,
                                                                  double threshold);
std::tuple<at::Tensor, at::Tensor> int8_colwise_quant(const at::Tensor& A, double threshold);
at::Tensor int8_vectorwise_dequant(const at::Tensor& A, const at::Tensor& stats);
at::Tensor int8_linear_matmul(const at::Tensor& A, const at::Tensor& B);
at::Tensor int8_mm_dequant(const at::Tensor& A, const at::Tensor& row_stats,
                           const at::Tensor& col_stats, std::optional<at::ScalarType> dtype,
                           const std::optional<at::Tensor>& bias);
at::Tensor int8_scaled_mm(const at::Tensor& A, const at::Tensor& B, const at::Tensor& row_stats,
                          const at::Tensor& col_stats, const std::optional<at::Tensor>& bias,
                          std::optional<at::ScalarType> dtype);

}  // namespace lowbit::ops::dispatch
