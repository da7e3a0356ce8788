// The public functions: states around ops.
#include "lowbit/functional.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <bit>

#include "ops/check.h"
#include "ops/dispatch.h"
#include "ops/grouped_mm.h"
#include "ops/maps.h"

namespace lowbit {
namespace {

const QuantType& type_of(const char* op, const QuantState& state) {
  LOWBIT_CHECK(state.quant_type.has_value() && state.shape.has_value(), op, "state",
               "a 4-bit state with a shape", "an 8-bit state",
               "8-bit codes are read by dequantize_blockwise.");
  return *state.quant_type;
}

/// The statistics as 8-bit codes of their distance to `offset`.
void nest(QuantState& state, int64_t blocksize) {
  const at::Tensor code = ops::shared_dynamic_map(state.absmax.device());
  // The mean is a reduction: its last bit is the library's and the device's, and files hold it.
  state.offset = state.absmax.mean();
  auto [codes, absmax] =
      ops::dispatch::quantize_blockwise(state.absmax - state.offset, code, blocksize);
  state.state2 = std::make_shared<const QuantState>(
      QuantState{.absmax = absmax, .code = code, .blocksize = blocksize, .dtype = at::kFloat});
  state.absmax = codes;
}

QuantState expanded(const QuantState& state) {
  QuantState plain = state;
  plain.absmax = dequantize_absmax(state);
  plain.state2 = nullptr;
  plain.offset = at::Tensor();
  return plain;
}

/// With statistics that the fused kernels read.
QuantState fusible(const QuantState& state) {
  const bool fused = !state.nested() || state.state2->blocksize == kernels::kNestedBlocksize;
  return fused ? state : expanded(state);
}

// Exponent bits all ones: NaN or infinite.
template <class Bits>
int64_t count_exponent(const at::Tensor& tensor, Bits exponent) {
  const auto* data = static_cast<const Bits*>(tensor.const_data_ptr());
  return at::parallel_reduce(
      0, tensor.numel(), 1 << 16, int64_t{0},
      [&](int64_t begin, int64_t end, int64_t count) {
        for (int64_t i = begin; i < end; ++i) count += (data[i] & exponent) == exponent;
        return count;
      },
      std::plus<>());
}

// The extremes are NaN when an element is. They need no memory, where a mask and its sum take
// several times the tensor's: a part at a time, and only when something is there to count.
int64_t count_on_device(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return 0;
  const auto [least, most] = at::aminmax(tensor);
  if (at::isfinite(at::stack({least, most})).all().item<bool>()) return 0;
  constexpr int64_t kAtOnce = int64_t{1} << 22;
  int64_t count = tensor.numel();
  for (const at::Tensor& part : tensor.reshape({-1}).split(kAtOnce)) {
    count -= at::isfinite(part).sum().item<int64_t>();
  }
  return count;
}

}  // namespace

std::tuple<at::Tensor, QuantState> quantize_4bit(const at::Tensor& A,
                                                 const Quantize4bitOptions& options) {
  const at::NoGradGuard no_grad;
  auto [packed, absmax] =
      ops::dispatch::quantize_4bit(A, options.blocksize, options.quant_type, options.quant_storage);
  QuantState state{.absmax = absmax,
                   .shape = A.sizes().vec(),
                   .code = ops::shared_4bit_table(options.quant_type, A.device()),
                   .blocksize = options.blocksize,
                   .quant_type = options.quant_type,
                   .dtype = A.scalar_type()};
  if (options.compress_statistics) nest(state, kernels::kNestedBlocksize);
  return {packed, state};
}

std::tuple<at::Tensor, QuantState> quantize_nf4(const at::Tensor& A,
                                                const QuantizeTypedOptions& options) {
  return quantize_4bit(A, {.blocksize = options.blocksize,
                           .compress_statistics = options.compress_statistics,
                           .quant_type = QuantType::kNF4,
                           .quant_storage = options.quant_storage});
}

std::tuple<at::Tensor, QuantState> quantize_fp4(const at::Tensor& A,
                                                const QuantizeTypedOptions& options) {
  return quantize_4bit(A, {.blocksize = options.blocksize,
                           .compress_statistics = options.compress_statistics,
                           .quant_type = QuantType::kFP4,
                           .quant_storage = options.quant_storage});
}

at::Tensor dequantize_absmax(const QuantState& state) {
  if (!state.nested()) return state.absmax;
  return ops::dispatch::dequantize_blockwise(state.absmax, state.state2->absmax, state.state2->code,
                                             state.state2->blocksize, at::kFloat) +
         state.offset;
}

at::Tensor dequantize_4bit(const at::Tensor& packed, const QuantState& state) {
  const QuantType type = type_of("lowbit::dequantize_4bit", state);
  const at::Tensor result = ops::dispatch::dequantize_4bit(
      packed, dequantize_absmax(state), state.blocksize, type, *state.shape, state.dtype);
  const bool transposed = packed.dim() == 2 && packed.size(0) == 1 && packed.size(1) > 1;
  return transposed && result.dim() == 2 ? result.t() : result;
}

at::Tensor matmul_4bit(const at::Tensor& x, const at::Tensor& packed, const QuantState& state,
                       const std::optional<at::Tensor>& bias) {
  constexpr const char* kOp = "lowbit::matmul_4bit";
  type_of(kOp, state);
  LOWBIT_CHECK(x.dim() >= 1, kOp, "x", "[..., K]", "a 0-dim tensor");
  const auto weight = ops::Weight4bit::make(packed, fusible(state));
  if (x.size(-1) != weight.cols && x.size(-1) == weight.rows) {
    const at::Tensor y = ops::linear_4bit_backward_input(x, weight);
    return bias.has_value() && bias->defined() ? y + bias->to(y.scalar_type()) : y;
  }
  return ops::linear_4bit(x, weight, bias.value_or(at::Tensor()));
}

at::Tensor grouped_mm_4bit(const at::Tensor& x, const at::Tensor& packed, const QuantState& state,
                           const at::Tensor& offs) {
  constexpr const char* kOp = "lowbit::grouped_mm_4bit";
  type_of(kOp, state);
  LOWBIT_CHECK(x.defined(), kOp, "x", "[M, K]", "an undefined tensor");
  LOWBIT_CHECK(offs.defined(), kOp, "offs", "int32 [experts]", "an undefined tensor");
  const auto [rows, cols] = ops::stack_shape(kOp, "state.shape", *state.shape);
  QuantState stack = fusible(state);
  stack.shape = {rows, cols};
  return ops::grouped_mm_4bit(x, {ops::Weight4bit::make(packed, stack), (*state.shape)[0]}, offs);
}

std::tuple<at::Tensor, QuantState> quantize_blockwise(const at::Tensor& A,
                                                      const QuantizeBlockwiseOptions& options) {
  const at::NoGradGuard no_grad;
  const at::Tensor code =
      options.code.defined() ? options.code.to(A.device()) : ops::shared_dynamic_map(A.device());
  auto [codes, absmax] = ops::dispatch::quantize_blockwise(A, code, options.blocksize);
  QuantState state{
      .absmax = absmax, .code = code, .blocksize = options.blocksize, .dtype = A.scalar_type()};
  if (options.nested) nest(state, options.blocksize);
  return {codes, state};
}

at::Tensor dequantize_blockwise(const at::Tensor& codes, const QuantState& state) {
  LOWBIT_CHECK(!state.quant_type.has_value(), "lowbit::dequantize_blockwise", "state",
               "an 8-bit state", "a 4-bit one", "4-bit codes are read by dequantize_4bit.");
  return ops::dispatch::dequantize_blockwise(codes, dequantize_absmax(state), state.code,
                                             state.blocksize, state.dtype);
}

std::tuple<at::Tensor, at::Tensor, std::optional<at::Tensor>> int8_vectorwise_quant(
    const at::Tensor& A, double threshold) {
  const auto [q, stats, mask] = ops::dispatch::int8_rowwise_quant(A, threshold);
  if (threshold == 0.0) return {q, stats, std::nullopt};
  return {q, stats, mask.nonzero().squeeze(1)};
}

at::Tensor int8_vectorwise_dequant(const at::Tensor& A, const at::Tensor& stats) {
  return ops::dispatch::int8_vectorwise_dequant(A, stats);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, std::optional<at::Tensor>>
int8_double_quant(const at::Tensor& A, double threshold) {
  auto [q_row, row_stats, outliers] = int8_vectorwise_quant(A, threshold);
  auto [q_col, col_stats] = ops::dispatch::int8_colwise_quant(A, threshold);
  return {q_row, q_col, row_stats, col_stats, outliers};
}

at::Tensor int8_linear_matmul(const at::Tensor& A, const at::Tensor& B) {
  return ops::dispatch::int8_linear_matmul(A, B);
}

at::Tensor int8_mm_dequant(const at::Tensor& A, const at::Tensor& row_stats,
                           const at::Tensor& col_stats, const std::optional<at::Tensor>& bias,
                           at::ScalarType dtype) {
  return ops::dispatch::int8_mm_dequant(A, row_stats, col_stats, dtype, bias);
}

at::Tensor matmul_8bit(const at::Tensor& x, const at::Tensor& CB, const at::Tensor& SCB,
                       const std::optional<at::Tensor>& bias, double threshold) {
  return ops::linear_8bit(x, ops::Weight8bit::make(CB, SCB), bias.value_or(at::Tensor()),
                          threshold);
}

int64_t count_nonfinite(const at::Tensor& tensor) {
  ops::check_float("lowbit::count_nonfinite", "tensor", tensor);
  if (!tensor.is_cpu()) return count_on_device(tensor);
  const at::Tensor dense = tensor.contiguous();
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return count_exponent<uint32_t>(dense, 0x7f800000u);
    case at::kHalf:
      return count_exponent<uint16_t>(dense, 0x7c00u);
    default:
      return count_exponent<uint16_t>(dense, 0x7f80u);
  }
}

}  // namespace lowbit
