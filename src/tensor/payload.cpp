#include "tensor/payload.h"

#include <ATen/ATen.h>
#include <c10/util/accumulate.h>

#include <utility>

#include "lowbit/functional.h"
#include "lowbit/kernels/fourbit.h"
#include "ops/check.h"
#include "tensor/archive.h"

namespace lowbit::tensor {
namespace {

/// The shape as the kernels see it: rows of the last dimension.
std::vector<int64_t> as_matrix(const std::vector<int64_t>& shape) {
  const int64_t cols = shape.back();
  return {c10::multiply_integers(shape.begin(), shape.end() - 1), cols};
}

template <class Product>
at::Tensor in_compute_dtype(const Payload& payload, const at::Tensor& x, const Product& product) {
  if (!payload.compute_dtype.has_value() || *payload.compute_dtype == x.scalar_type()) {
    return product(x);
  }
  return product(x.to(*payload.compute_dtype)).to(x.scalar_type());
}

void check_matrix(const char* op, const Payload& payload) {
  LOWBIT_CHECK(payload.shape.size() == 2, op, "weight", "a matrix [out_features, in_features]",
               c10::str("shape ", payload.shape));
}

}  // namespace

int64_t Payload::numel() const noexcept {
  return c10::multiply_integers(shape.begin(), shape.end());
}

int64_t Payload::nbytes() const {
  const auto bytes = [](const at::Tensor& t) {
    return t.defined() ? static_cast<int64_t>(t.nbytes()) : 0;
  };
  if (!is_4bit()) return bytes(codes) + bytes(rows);
  int64_t sum = bytes(codes) + bytes(state.absmax) + bytes(state.code);
  if (state.nested()) {
    sum += bytes(state.state2->absmax) + bytes(state.state2->code) + bytes(state.offset);
  }
  return sum;
}

at::Tensor Payload::linear(const at::Tensor& x, const at::Tensor& bias) const {
  check_matrix("lowbit::linear", *this);
  return in_compute_dtype(*this, x, [&](const at::Tensor& input) {
    switch (scheme) {
      case QuantScheme::kInt8:
        return ops::linear_8bit(input, weight_8bit, bias, threshold);
      case QuantScheme::kInt8WeightOnly:
        return ops::linear_8bit_weight_only(input, weight_8bit, bias);
      default:
        return ops::linear_4bit(input, weight_4bit, bias);
    }
  });
}

at::Tensor Payload::product(const at::Tensor& x) const {
  check_matrix("lowbit::matmul", *this);
  return in_compute_dtype(*this, x, [&](const at::Tensor& input) {
    return is_4bit() ? ops::linear_4bit_backward_input(input, weight_4bit)
                     : ops::linear_8bit_backward_input(input, weight_8bit);
  });
}

at::Tensor Payload::embedding(const at::Tensor& ids, at::ScalarType dtype) const {
  check_matrix("lowbit::embedding", *this);
  return is_4bit() ? ops::embedding_4bit(ids, weight_4bit, dtype)
                   : ops::embedding_8bit(ids, weight_8bit, dtype);
}

at::Tensor Payload::dequantize(at::ScalarType dtype) const {
  return (is_4bit() ? ops::dequantize_4bit(weight_4bit, dtype)
                    : ops::dequantize_8bit(weight_8bit, dtype))
      .view(shape);
}

PayloadPtr make_4bit(const at::Tensor& packed, QuantState state,
                     std::optional<at::ScalarType> compute_dtype) {
  constexpr const char* kOp = "lowbit::quantized_from_4bit";
  LOWBIT_CHECK(packed.defined(), kOp, "packed", "a tensor", "an undefined one");
  LOWBIT_CHECK(state.quant_type.has_value(), kOp, "state", "a 4-bit state",
               "one without a quant_type");
  LOWBIT_CHECK(state.shape.has_value() && !state.shape->empty(), kOp, "state.shape", "at least 1-D",
               state.shape.has_value() ? "a 0-dim shape" : "none");
  ops::check_float(kOp, "state.dtype", state.dtype);
  if (compute_dtype) ops::check_float(kOp, "compute_dtype", *compute_dtype);

  auto payload = std::make_shared<Payload>();
  payload->scheme = *state.quant_type == QuantType::kNF4 ? QuantScheme::kNF4 : QuantScheme::kFP4;
  payload->shape = *state.shape;
  payload->compute_dtype = compute_dtype;
  payload->codes = packed;
  QuantState matrix = state;
  matrix.shape = as_matrix(*state.shape);
  if (state.nested() && state.state2->blocksize != kernels::kNestedBlocksize) {
    matrix.absmax = dequantize_absmax(state);
    matrix.state2 = nullptr;
  }
  payload->weight_4bit = ops::Weight4bit::make(packed, matrix);
  payload->state = std::move(state);
  return payload;
}

PayloadPtr make_int8(const at::Tensor& CB, const at::Tensor& SCB, double threshold,
                     bool weight_only, std::optional<at::ScalarType> compute_dtype) {
  constexpr const char* kOp = "lowbit::quantized_from_int8";
  LOWBIT_CHECK(CB.defined() && CB.dim() >= 2, kOp, "CB", "at least 2-D",
               CB.defined() ? c10::str("shape ", CB.sizes()) : "an undefined tensor");
  LOWBIT_CHECK(SCB.defined(), kOp, "SCB", "a tensor", "an undefined one");
  LOWBIT_CHECK(threshold >= 0.0, kOp, "threshold", "0 or more", threshold);
  if (compute_dtype) ops::check_float(kOp, "compute_dtype", *compute_dtype);
  auto payload = std::make_shared<Payload>();
  payload->scheme = weight_only ? QuantScheme::kInt8WeightOnly : QuantScheme::kInt8;
  payload->shape = CB.sizes().vec();
  payload->compute_dtype = compute_dtype;
  payload->codes = CB.contiguous();
  payload->rows = SCB.contiguous();
  payload->threshold = weight_only ? 0.0 : threshold;
  payload->weight_8bit =
      ops::Weight8bit::make(payload->codes.view(as_matrix(payload->shape)), payload->rows.view(-1));
  return payload;
}

PayloadPtr to_device(const PayloadPtr& payload, at::Device device, bool non_blocking) {
  if (payload->device() == device) return payload;
  const at::Tensor codes = payload->codes.to(device, non_blocking);
  if (payload->is_4bit()) {
    return make_4bit(codes, payload->state.to(device, non_blocking), payload->compute_dtype);
  }
  return make_int8(codes, payload->rows.to(device, non_blocking), payload->threshold,
                   payload->scheme == QuantScheme::kInt8WeightOnly, payload->compute_dtype);
}

PayloadPtr compact(const Payload& payload) {
  if (payload.device().is_cpu()) return read_archive(write_archive(payload));
  if (payload.is_4bit()) {
    return make_4bit(payload.codes.clone(), payload.state.clone(), payload.compute_dtype);
  }
  return make_int8(payload.codes.clone(), payload.rows.clone(), payload.threshold,
                   payload.scheme == QuantScheme::kInt8WeightOnly, payload.compute_dtype);
}

PayloadPtr select(const Payload& payload, int64_t index) {
  const std::vector<int64_t> shape(payload.shape.begin() + 1, payload.shape.end());
  const int64_t numel = c10::multiply_integers(shape.begin(), shape.end());
  if (!payload.is_4bit()) {
    const int64_t rows = numel / shape.back();
    return make_int8(payload.codes.select(0, index),
                     payload.rows.view(-1).narrow(0, index * rows, rows), payload.threshold,
                     payload.scheme == QuantScheme::kInt8WeightOnly, payload.compute_dtype);
  }
  const QuantState& whole = payload.state;
  if (numel % whole.blocksize != 0) return nullptr;
  const int64_t blocks = numel / whole.blocksize;
  QuantState state = whole;
  state.shape = shape;
  if (whole.nested()) {
    const int64_t nested_blocksize = whole.state2->blocksize;
    if (index * blocks % nested_blocksize == 0) {
      QuantState second = *whole.state2;
      second.absmax = second.absmax.narrow(0, index * blocks / nested_blocksize,
                                           kernels::ceil_div(blocks, nested_blocksize));
      state.state2 = std::make_shared<const QuantState>(std::move(second));
    } else {
      state.absmax = dequantize_absmax(whole);
      state.state2 = nullptr;
      state.offset = at::Tensor();
    }
  }
  state.absmax = state.absmax.narrow(0, index * blocks, blocks);
  const at::Tensor bytes = payload.codes.flatten().view(at::kByte);
  return make_4bit(bytes.narrow(0, index * numel / 2, numel / 2).unsqueeze(1), std::move(state),
                   payload.compute_dtype);
}

}  // namespace lowbit::tensor
