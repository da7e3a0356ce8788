// Quantized weights: from a state, or from an op's arguments, checked once.
#include "ops/weight.h"

#include "ops/operands.h"

namespace lowbit::ops {
namespace {

void check_statistics(const char* op, const Weight4bit& w, at::Device device, int64_t numel) {
  const int64_t blocks = kernels::ceil_div(numel, w.blocksize);
  const int64_t scales = w.nested() ? kernels::ceil_div(blocks, kernels::kNestedBlocksize) : blocks;
  check_device(op, "absmax", w.absmax, device);
  check_dtype(op, "absmax", w.absmax, at::kFloat);
  check_numel(op, "absmax", w.absmax, scales);
  if (!w.nested()) {
    return;
  }
  LOWBIT_CHECK(w.absmax_code.defined(), op, "absmax_code", "given with absmax_8bit", "None");
  LOWBIT_CHECK(w.absmax_offset.defined(), op, "absmax_offset", "given with absmax_8bit", "None");
  check_device(op, "absmax_8bit", w.absmax_8bit, device);
  check_dtype(op, "absmax_8bit", w.absmax_8bit, at::kByte);
  check_numel(op, "absmax_8bit", w.absmax_8bit, blocks);
  check_device(op, "absmax_code", w.absmax_code, device);
  check_dtype(op, "absmax_code", w.absmax_code, at::kFloat);
  check_numel(op, "absmax_code", w.absmax_code, 256);
  check_device(op, "absmax_offset", w.absmax_offset, device);
  check_dtype(op, "absmax_offset", w.absmax_offset, at::kFloat);
  check_numel(op, "absmax_offset", w.absmax_offset, 1);
}

at::Tensor contiguous(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.contiguous() : tensor;
}

}  // namespace

void check_blocksize(const char* op, int64_t blocksize) {
  LOWBIT_CHECK(is_valid_4bit_blocksize(blocksize), op, "blocksize",
               "a power of two from 32 to 4096", blocksize);
}

QuantType check_quant_type(const char* op, std::string_view quant_type) {
  LOWBIT_CHECK(quant_type == "nf4" || quant_type == "fp4", op, "quant_type", "\"nf4\" or \"fp4\"",
               c10::str('"', quant_type, '"'));
  return quant_type == "nf4" ? QuantType::kNF4 : QuantType::kFP4;
}

void check_storage(const char* op, at::ScalarType storage) {
  const bool ok = storage == at::kByte || storage == at::kChar || storage == at::kDouble ||
                  is_kernel_dtype(storage);
  LOWBIT_CHECK(ok, op, "quant_storage", "uint8, int8, float16, bfloat16, float32 or float64",
               dtype_name(storage));
}

int64_t check_shape(const char* op, const char* argument, at::IntArrayRef shape) {
  int64_t numel = 1;
  for (const int64_t size : shape) {
    LOWBIT_CHECK(size >= 0 && !__builtin_mul_overflow(numel, size, &numel), op, argument,
                 "non-negative sizes of at most 2^63 elements", shape);
  }
  return numel;
}

void check_packed(const char* op, const char* argument, const at::Tensor& packed, int64_t numel) {
  const int64_t bytes = (numel + 1) / 2;
  const int64_t itemsize = static_cast<int64_t>(packed.element_size());
  const int64_t got = packed.numel() * itemsize;
  LOWBIT_CHECK(got >= bytes && got - bytes < itemsize, op, argument,
               c10::str(bytes, " bytes long (two codes a byte, ", numel, " elements)"),
               c10::str(got, " bytes"));
}

Weight4bit make_weight_4bit(const char* op, const char* argument, const at::Tensor& packed,
                            at::IntArrayRef shape, const at::Tensor& absmax, int64_t blocksize,
                            QuantType quant_type, const at::Tensor& absmax_8bit,
                            const at::Tensor& absmax_code, const at::Tensor& absmax_offset) {
  LOWBIT_CHECK(shape.size() == 2, op, "shape", "[out_features, in_features]", shape);
  const int64_t numel = check_shape(op, "shape", shape);
  check_blocksize(op, blocksize);
  check_packed(op, argument, packed, numel);
  Weight4bit weight{contiguous(packed),
                    shape[0],
                    shape[1],
                    contiguous(absmax),
                    blocksize,
                    quant_type,
                    contiguous(absmax_8bit),
                    contiguous(absmax_code),
                    absmax_offset};
  check_statistics(op, weight, packed.device(), numel);
  return weight;
}

Weight4bit Weight4bit::make(const at::Tensor& packed, const QuantState& state) {
  constexpr const char* kOp = "lowbit::linear_4bit";
  LOWBIT_CHECK(state.quant_type.has_value(), kOp, "state", "a 4-bit state",
               "one without a quant_type");
  LOWBIT_CHECK(state.shape.has_value(), kOp, "state", "one with a shape", "no shape");
  if (!state.nested()) {
    return make_weight_4bit(kOp, "packed", packed, *state.shape, state.absmax, state.blocksize,
                            *state.quant_type, {}, {}, {});
  }
  LOWBIT_CHECK(state.state2->blocksize == kernels::kNestedBlocksize, kOp, "state.state2.blocksize",
               kernels::kNestedBlocksize, state.state2->blocksize,
               "Dequantize the statistics first: lowbit::dequantize_absmax.");
  return make_weight_4bit(kOp, "packed", packed, *state.shape, state.state2->absmax,
                          state.blocksize, *state.quant_type, state.absmax, state.state2->code,
                          state.offset);
}

Weight8bit make_weight_8bit(const char* op, const at::Tensor& q, const at::Tensor& stats) {
  check_dtype(op, "CB", q, at::kChar);
  check_rank(op, "CB", q, 2);
  check_dtype(op, "SCB", stats, at::kFloat);
  check_device(op, "SCB", stats, q.device());
  check_numel(op, "SCB", stats, q.size(0));
  return {q.contiguous(), stats.contiguous()};
}

at::Tensor checked_ids(const char* op, const at::Tensor& ids, int64_t rows) {
  const at::Tensor indices = ids.to(at::kLong).contiguous();
  if (!indices.is_cpu()) return indices;
  const auto* data = static_cast<const int64_t*>(indices.const_data_ptr());
  for (int64_t i = 0; i < indices.numel(); ++i) {
    LOWBIT_CHECK(data[i] >= 0 && data[i] < rows, op, "ids",
                 c10::str("in [0, ", rows, "), the rows of the table"), data[i]);
  }
  return indices;
}

void check_out(const char* op, const at::Tensor& out, c10::SymIntArrayRef sizes,
               at::ScalarType dtype, at::Device device) {
  check_device(op, "out", out, device);
  check_dtype(op, "out", out, dtype);
  LOWBIT_CHECK(out.sym_sizes() == sizes, op, "out", c10::str("of shape ", sizes),
               c10::str("shape ", out.sym_sizes()));
}

Weight8bit Weight8bit::make(const at::Tensor& q, const at::Tensor& stats) {
  return make_weight_8bit("lowbit::linear_8bit", q, stats);
}

}  // namespace lowbit::ops
