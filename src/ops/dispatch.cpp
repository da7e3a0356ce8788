#include "ops/dispatch.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include "ops/grouped_mm.h"

namespace lowbit::ops::dispatch {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

OptionalTensor optional(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

}  // namespace

at::Tensor linear_4bit(const at::Tensor& input, const Weight4bit& w, const at::Tensor& bias) {
  static const auto op =
      find<at::Tensor(const at::Tensor&, const at::Tensor&, at::IntArrayRef, const at::Tensor&,
                      int64_t, std::string_view, const OptionalTensor&, const OptionalTensor&,
                      const OptionalTensor&, const OptionalTensor&)>("lowbit::linear_4bit");
  return op.call(input, w.packed, {w.rows, w.cols}, w.absmax, w.blocksize, to_string(w.quant_type),
                 optional(bias), optional(w.absmax_8bit), optional(w.absmax_code),
                 optional(w.absmax_offset));
}

at::Tensor linear_4bit_backward_input(const at::Tensor& grad_output, const Weight4bit& w) {
  static const auto op =
      find<at::Tensor(const at::Tensor&, const at::Tensor&, at::IntArrayRef, const at::Tensor&,
                      int64_t, std::string_view, const OptionalTensor&, const OptionalTensor&,
                      const OptionalTensor&)>("lowbit::linear_4bit_backward_input");
  return op.call(grad_output, w.packed, {w.rows, w.cols}, w.absmax, w.blocksize,
                 to_string(w.quant_type), optional(w.absmax_8bit), optional(w.absmax_code),
                 optional(w.absmax_offset));
}

namespace {

using GroupedMm = at::Tensor(const at::Tensor&, const at::Tensor&, at::IntArrayRef,
                             const at::Tensor&, int64_t, std::string_view, const at::Tensor&,
                             const OptionalTensor&, const OptionalTensor&, const OptionalTensor&);

at::Tensor call(const c10::TypedOperatorHandle<GroupedMm>& op, const at::Tensor& input,
                const Stack4bit& stack, const at::Tensor& offs) {
  const Weight4bit& w = stack.weight;
  return op.call(input, w.packed, {stack.experts, stack.rows(), w.cols}, w.absmax, w.blocksize,
                 to_string(w.quant_type), offs, optional(w.absmax_8bit), optional(w.absmax_code),
                 optional(w.absmax_offset));
}

}  // namespace

at::Tensor grouped_mm_4bit(const at::Tensor& input, const Stack4bit& stack,
                           const at::Tensor& offs) {
  static const auto op = find<GroupedMm>("lowbit::grouped_mm_4bit");
  return call(op, input, stack, offs);
}

at::Tensor grouped_mm_4bit_backward_input(const at::Tensor& grad_output, const Stack4bit& stack,
                                          const at::Tensor& offs) {
  static const auto op = find<GroupedMm>("lowbit::grouped_mm_4bit_backward_input");
  return call(op, grad_output, stack, offs);
}

at::Tensor embedding_4bit(const at::Tensor& ids, const Weight4bit& w, at::ScalarType dtype) {
  static const auto op =
      find<at::Tensor(const at::Tensor&, const at::Tensor&, at::IntArrayRef, const at::Tensor&,
                      int64_t, std::string_view, at::ScalarType, const OptionalTensor&,
                      const OptionalTensor&, const OptionalTensor&)>("lowbit::embedding_4bit");
  return op.call(ids, w.packed, {w.rows, w.cols}, w.absmax, w.blocksize, to_string(w.quant_type),
                 dtype, optional(w.absmax_8bit), optional(w.absmax_code),
                 optional(w.absmax_offset));
}

at::Tensor linear_8bit(const at::Tensor& input, const Weight8bit& w, const at::Tensor& bias,
                       double threshold) {
  static const auto op = find<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                         const OptionalTensor&, double)>("lowbit::linear_8bit");
  return op.call(input, w.q, w.stats, optional(bias), threshold);
}

at::Tensor linear_8bit_weight_only(const at::Tensor& input, const Weight8bit& w,
                                   const at::Tensor& bias) {
  static const auto op = find<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                         const OptionalTensor&)>("lowbit::linear_8bit_weight_only");
  return op.call(input, w.q, w.stats, optional(bias));
}

at::Tensor linear_8bit_backward_input(const at::Tensor& grad_output, const Weight8bit& w) {
  static const auto op = find<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&)>(
      "lowbit::linear_8bit_backward_input");
  return op.call(grad_output, w.q, w.stats);
}

at::Tensor embedding_8bit(const at::Tensor& ids, const Weight8bit& w, at::ScalarType dtype) {
  static const auto op =
      find<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, at::ScalarType)>(
          "lowbit::embedding_8bit");
  return op.call(ids, w.q, w.stats, dtype);
}

std::tuple<at::Tensor, at::Tensor> quantize_4bit(const at::Tensor& A, int64_t blocksize,
                                                 QuantType quant_type, at::ScalarType storage) {
  static const auto op = find<std::tuple<at::Tensor, at::Tensor>(
      const at::Tensor&, int64_t, std::string_view, at::ScalarType)>("lowbit::quantize_4bit");
  return op.call(A, blocksize, to_string(quant_type), storage);
}

at::Tensor dequantize_4bit(const at::Tensor& A, const at::Tensor& absmax, int64_t blocksize,
                           QuantType quant_type, at::IntArrayRef shape, at::ScalarType dtype) {
  static const auto op =
      find<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, std::string_view,
                      at::IntArrayRef, at::ScalarType)>("lowbit::dequantize_4bit");
  return op.call(A, absmax, blocksize, to_string(quant_type), shape, dtype);
}

std::tuple<at::Tensor, at::Tensor> quantize_blockwise(const at::Tensor& A, const at::Tensor& code,
                                                      int64_t blocksize) {
  static const auto op =
      find<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, int64_t)>(
          "lowbit::quantize_blockwise");
  return op.call(A, code, blocksize);
}

at::Tensor dequantize_blockwise(const at::Tensor& A, const at::Tensor& absmax,
                                const at::Tensor& code, int64_t blocksize, at::ScalarType dtype) {
  static const auto op = find<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                         int64_t, at::ScalarType)>("lowbit::dequantize_blockwise");
  return op.call(A, absmax, code, blocksize, dtype);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> int8_rowwise_quant(const at::Tensor& A,
                                                                  double threshold) {
  static const auto op =
      find<std::tuple<at::Tensor, at::Tensor, at::Tensor>(const at::Tensor&, double)>(
          "lowbit::int8_rowwise_quant");
  return op.call(A, threshold);
}

std::tuple<at::Tensor, at::Tensor> int8_colwise_quant(const at::Tensor& A, double threshold) {
  static const auto op = find<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, double)>(
      "lowbit::int8_colwise_quant");
  return op.call(A, threshold);
}

at::Tensor int8_vectorwise_dequant(const at::Tensor& A, const at::Tensor& stats) {
  static const auto op =
      find<at::Tensor(const at::Tensor&, const at::Tensor&)>("lowbit::int8_vectorwise_dequant");
  return op.call(A, stats);
}

at::Tensor int8_linear_matmul(const at::Tensor& A, const at::Tensor& B) {
  static const auto op =
      find<at::Tensor(const at::Tensor&, const at::Tensor&)>("lowbit::int8_linear_matmul");
  return op.call(A, B);
}

at::Tensor int8_mm_dequant(const at::Tensor& A, const at::Tensor& row_stats,
                           const at::Tensor& col_stats, std::optional<at::ScalarType> dtype,
                           const OptionalTensor& bias) {
  static const auto op = find<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                         std::optional<at::ScalarType>, const OptionalTensor&)>(
      "lowbit::int8_mm_dequant");
  return op.call(A, row_stats, col_stats, dtype, bias);
}

at::Tensor int8_scaled_mm(const at::Tensor& A, const at::Tensor& B, const at::Tensor& row_stats,
                          const at::Tensor& col_stats, const OptionalTensor& bias,
                          std::optional<at::ScalarType> dtype) {
  static const auto op =
      find<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                      const OptionalTensor&, std::optional<at::ScalarType>)>(
          "lowbit::int8_scaled_mm");
  return op.call(A, B, row_stats, col_stats, bias, dtype);
}

}  // namespace lowbit::ops::dispatch
