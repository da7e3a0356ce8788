// LLM.int8() ops that are made of other ops, on every device. The list of outlier columns has a
// size that depends on data: it comes from aten::nonzero, which tracers understand.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "ops/dispatch.h"
#include "ops/int8.h"

namespace lowbit::ops {
namespace {
namespace composite {

using OptionalTensor = std::optional<at::Tensor>;

OptionalTensor outlier_columns(const at::Tensor& mask, double threshold) {
  if (threshold == 0.0) return std::nullopt;
  return mask.nonzero().squeeze(1);
}

std::tuple<at::Tensor, at::Tensor, OptionalTensor> int8_vectorwise_quant(const at::Tensor& A,
                                                                         double threshold) {
  check_quantize_int8("lowbit::int8_vectorwise_quant", A, threshold);
  const auto [q, stats, mask] = dispatch::int8_rowwise_quant(A, threshold);
  return {q, stats, outlier_columns(mask, threshold)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, OptionalTensor> int8_double_quant(
    const at::Tensor& A, double threshold) {
  check_quantize_int8("lowbit::int8_double_quant", A, threshold);
  const auto [q_row, row_stats, mask] = dispatch::int8_rowwise_quant(A, threshold);
  const auto [q_col, col_stats] = dispatch::int8_colwise_quant(A, threshold);
  return {q_row, q_col, row_stats, col_stats, outlier_columns(mask, threshold)};
}

// No branch on how many outliers there are: with none, the second product has an inner size of 0.
std::tuple<at::Tensor, OptionalTensor> int8_mixed_scaled_mm(
    const at::Tensor& A, const at::Tensor& CA, const at::Tensor& CB, const at::Tensor& SCA,
    const at::Tensor& SCB, const OptionalTensor& outlier_cols, const OptionalTensor& bias) {
  check_float("lowbit::int8_mixed_scaled_mm", "A", A);
  LOWBIT_CHECK(A.sym_sizes() == CA.sym_sizes(), "lowbit::int8_mixed_scaled_mm", "A",
               c10::str("of CA's shape ", CA.sym_sizes()), c10::str("shape ", A.sym_sizes()));
  const at::ScalarType dtype = A.scalar_type();
  if (!outlier_cols.has_value()) {
    return {dispatch::int8_scaled_mm(CA, CB, SCA, SCB, bias, dtype), at::empty({0}, A.options())};
  }
  const at::Tensor sub_a = A.flatten(0, -2).index_select(1, *outlier_cols);
  const at::Tensor sub_b =
      dispatch::int8_vectorwise_dequant(CB.index_select(1, *outlier_cols), SCB);
  const at::Tensor sum = dispatch::int8_scaled_mm(CA, CB, SCA, SCB, bias, at::kFloat);
  const at::Tensor product = at::mm(sub_a.to(at::kFloat), sub_b.t());
  return {(sum + product.view_symint(sum.sym_sizes())).to(dtype), sub_a};
}

}  // namespace composite
}  // namespace
}  // namespace lowbit::ops

TORCH_LIBRARY_IMPL(lowbit, CompositeImplicitAutograd, m) {
  namespace composite = lowbit::ops::composite;
  m.impl("int8_vectorwise_quant", &composite::int8_vectorwise_quant);
  m.impl("int8_double_quant", &composite::int8_double_quant);
}

TORCH_LIBRARY_IMPL(lowbit, CompositeExplicitAutograd, m) {
  m.impl("int8_mixed_scaled_mm", &lowbit::ops::composite::int8_mixed_scaled_mm);
}
