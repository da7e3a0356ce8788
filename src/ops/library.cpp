// Every schema of the operator library on one screen. This is public API: exported graphs and
// torch.ops users name these. A schema is never changed, only added. The first group has the names,
// argument order and defaults of the ecosystem's library, so that a graph written for one runs on
// the other.
#include <torch/library.h>

TORCH_LIBRARY(lowbit, m) {
  // clang-format off
  m.def("int8_mixed_scaled_mm(Tensor A, Tensor CA, Tensor CB, Tensor SCA, Tensor SCB, Tensor? outlier_cols=None, Tensor? bias=None) -> (Tensor, Tensor?)");
  m.def("int8_scaled_mm(Tensor A, Tensor B, Tensor row_stats, Tensor col_stats, Tensor? bias=None, ScalarType? dtype=None) -> Tensor");
  m.def("int8_linear_matmul(Tensor A, Tensor B) -> Tensor");
  m.def("int8_linear_matmul.out(Tensor A, Tensor B, Tensor(a!) out) -> ()");
  m.def("int8_vectorwise_quant(Tensor A, float threshold=0.0) -> (Tensor, Tensor, Tensor?)");
  m.def("int8_vectorwise_dequant(Tensor A, Tensor stats) -> Tensor");
  m.def("int8_mm_dequant(Tensor A, Tensor row_stats, Tensor col_stats, ScalarType? dtype=None, Tensor? bias=None) -> Tensor");
  m.def("int8_double_quant(Tensor A, float threshold=0.0) -> (Tensor, Tensor, Tensor, Tensor, Tensor?)");
  m.def("quantize_4bit(Tensor A, int blocksize, str quant_type, ScalarType quant_storage) -> (Tensor, Tensor)");
  m.def("dequantize_4bit(Tensor A, Tensor absmax, int blocksize, str quant_type, int[] shape, ScalarType dtype) -> Tensor");
  m.def("dequantize_4bit.out(Tensor A, Tensor absmax, int blocksize, str quant_type, int[] shape, ScalarType dtype, Tensor(a!) out) -> ()");
  m.def("gemm_4bit(Tensor A, Tensor B, int[] shapeB, Tensor absmax, int blocksize, str quant_type, Tensor? bias=None, Tensor? absmax_8bit=None, Tensor? absmax_code=None, Tensor? absmax_offset=None) -> Tensor");
  m.def("gemv_4bit(Tensor A, Tensor B, int[] shapeB, Tensor absmax, Tensor code, int blocksize) -> Tensor");
  m.def("gemv_4bit.out(Tensor A, Tensor B, int[] shapeB, Tensor absmax, Tensor code, int blocksize, Tensor(a!) out) -> ()");
  m.def("quantize_blockwise(Tensor A, Tensor code, int blocksize) -> (Tensor, Tensor)");
  m.def("dequantize_blockwise(Tensor A, Tensor absmax, Tensor code, int blocksize, ScalarType dtype) -> Tensor");
  m.def("dequantize_blockwise.out(Tensor A, Tensor absmax, Tensor code, int blocksize, ScalarType dtype, Tensor(a!) out) -> ()");
  m.def("optimizer_update_32bit(str optimizer_name, Tensor(a0!) g, Tensor(a1!) p, Tensor(a2!) state1, Tensor(a3!)? state2, Tensor(a4!)? unorm_vec, float max_unorm, float param_norm, float beta1, float beta2, float beta3, float alpha, float eps, float weight_decay, int step, float lr, float gnorm_scale, bool skip_zeros=False) -> ()");
  m.def("optimizer_update_8bit_blockwise(str optimizer_name, Tensor(a0!) g, Tensor(a1!) p, Tensor(a2!) state1, Tensor(a3!)? state2, float beta1, float beta2, float beta3, float alpha, float eps, int step, float lr, Tensor(a4!) qmap1, Tensor(a5!)? qmap2, Tensor(a6!) absmax1, Tensor(a7!)? absmax2, float weight_decay, float gnorm_scale, bool skip_zeros=False) -> ()");

  // lowbit's own: fused paths. With nested statistics `absmax` holds the second-level scales, as in gemm_4bit.
  m.def("linear_4bit(Tensor input, Tensor weight, int[] shape, Tensor absmax, int blocksize, str quant_type, Tensor? bias=None, Tensor? absmax_8bit=None, Tensor? absmax_code=None, Tensor? absmax_offset=None) -> Tensor");
  m.def("linear_4bit_backward_input(Tensor grad_output, Tensor weight, int[] shape, Tensor absmax, int blocksize, str quant_type, Tensor? absmax_8bit=None, Tensor? absmax_code=None, Tensor? absmax_offset=None) -> Tensor");
  m.def("embedding_4bit(Tensor ids, Tensor weight, int[] shape, Tensor absmax, int blocksize, str quant_type, ScalarType dtype, Tensor? absmax_8bit=None, Tensor? absmax_code=None, Tensor? absmax_offset=None) -> Tensor");
  // A stack of weights, shape [experts, out_features, in_features], over rows sorted by expert; offs: int32, the end of
  // each expert's rows.
  m.def("grouped_mm_4bit(Tensor input, Tensor weight, int[] shape, Tensor absmax, int blocksize, str quant_type, Tensor offs, Tensor? absmax_8bit=None, Tensor? absmax_code=None, Tensor? absmax_offset=None) -> Tensor");
  m.def("grouped_mm_4bit_backward_input(Tensor grad_output, Tensor weight, int[] shape, Tensor absmax, int blocksize, str quant_type, Tensor offs, Tensor? absmax_8bit=None, Tensor? absmax_code=None, Tensor? absmax_offset=None) -> Tensor");
  m.def("linear_8bit(Tensor input, Tensor CB, Tensor SCB, Tensor? bias=None, float threshold=0.0) -> Tensor");
  m.def("linear_8bit_weight_only(Tensor input, Tensor CB, Tensor SCB, Tensor? bias=None) -> Tensor");
  m.def("linear_8bit_backward_input(Tensor grad_output, Tensor CB, Tensor SCB) -> Tensor");
  m.def("embedding_8bit(Tensor ids, Tensor CB, Tensor SCB, ScalarType dtype) -> Tensor");
  // The parts of int8_vectorwise_quant and int8_double_quant whose shapes do not depend on data. `outliers` is a
  // uint8 mask of the columns.
  m.def("int8_rowwise_quant(Tensor A, float threshold=0.0) -> (Tensor q, Tensor stats, Tensor outliers)");
  m.def("int8_colwise_quant(Tensor A, float threshold=0.0) -> (Tensor q, Tensor stats)");
  // All tensors of one dtype, device and step in one call. Lists that the optimizer does not need are empty. max_unorm
  // limits |update| to max_unorm * |p|. The values replace lr and step (gnorm_scale: one more factor) and are read when
  // the step runs, so that a captured graph follows them.
  m.def("optimizer_step_multi_tensor_32bit(str optimizer_name, Tensor[] g, Tensor(a!)[] p, Tensor(b!)[] state1, Tensor(c!)[] state2, Tensor(d!)[] unorm_vec, float max_unorm, float beta1, float beta2, float beta3, float alpha, float eps, float weight_decay, int step, float lr, float gnorm_scale=1.0, bool skip_zeros=False, Tensor? lr_value=None, Tensor? step_value=None, Tensor? gnorm_scale_value=None) -> ()");
  m.def("optimizer_step_multi_tensor_8bit(str optimizer_name, Tensor[] g, Tensor(a!)[] p, Tensor(b!)[] state1, Tensor(c!)[] state2, Tensor qmap1, Tensor? qmap2, Tensor(d!)[] absmax1, Tensor(e!)[] absmax2, Tensor(f!)[] unorm_vec, float max_unorm, float beta1, float beta2, float beta3, float alpha, float eps, float weight_decay, int step, float lr, float gnorm_scale=1.0, bool skip_zeros=False, Tensor? lr_value=None, Tensor? step_value=None, Tensor? gnorm_scale_value=None) -> ()");
  // clang-format on
}
