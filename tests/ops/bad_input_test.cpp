// What each op says to arguments that it cannot take.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "lowbit/functional.h"
#include "lowbit/version.h"
#include "ops/dispatch.h"
#include "ops/linear.h"
#include "support/error.h"

namespace lowbit {
namespace {

using test::message_of;

struct Quantized {
  at::Tensor packed;
  QuantState state;
};

Quantized weight(int64_t n = 32, int64_t k = 64) {
  auto [packed, state] = quantize_4bit(at::randn({n, k}), {.quant_type = QuantType::kNF4});
  return {packed, state};
}

TEST(BadInput, Quantize4bit) {
  EXPECT_EQ(message_of([] { quantize_4bit(at::ones({64}, at::kDouble)); }),
            "lowbit::quantize_4bit: `A` must be float32, float16 or bfloat16, got float64.");
  for (const int64_t blocksize : {0, -64, 16, 48, 8192}) {
    EXPECT_EQ(
        message_of([&] { quantize_4bit(at::ones({64}), {.blocksize = blocksize}); }),
        c10::str("lowbit::quantize_4bit: `blocksize` must be a power of two from 32 to 4096, got ",
                 blocksize, "."));
  }
  EXPECT_EQ(message_of([] { quantize_4bit(at::ones({64}), {.quant_storage = at::kComplexFloat}); }),
            "lowbit::quantize_4bit: `quant_storage` must be uint8, int8, float16, bfloat16, "
            "float32 or float64, got "
            "ComplexFloat.");
  const auto op = c10::Dispatcher::singleton()
                      .findSchemaOrThrow("lowbit::quantize_4bit", "")
                      .typed<std::tuple<at::Tensor, at::Tensor>(
                          const at::Tensor&, int64_t, std::string_view, at::ScalarType)>();
  EXPECT_EQ(message_of([&] { op.call(at::ones({64}), 64, "int4", at::kByte); }),
            "lowbit::quantize_4bit: `quant_type` must be \"nf4\" or \"fp4\", got \"int4\".");
  EXPECT_EQ(message_of([] { parse_quant_type("af4"); }),
            "lowbit: `quant_type` must be \"nf4\" or \"fp4\", got \"af4\".");
}

TEST(BadInput, Dequantize4bit) {
  const Quantized w = weight();
  QuantState state = w.state;
  EXPECT_EQ(message_of([&] { dequantize_4bit(w.packed.slice(0, 0, 1000), state); }),
            "lowbit::dequantize_4bit: `A` must be 1024 bytes long (two codes a byte, 2048 "
            "elements), got 1000 bytes.");
  state.absmax = w.state.absmax.slice(0, 1);
  EXPECT_EQ(message_of([&] { dequantize_4bit(w.packed, state); }),
            "lowbit::dequantize_4bit: `absmax` must be 32 elements long, got shape [31].");
  state.absmax = w.state.absmax.to(at::kHalf);
  EXPECT_EQ(message_of([&] { dequantize_4bit(w.packed, state); }),
            "lowbit::dequantize_4bit: `absmax` must be float32, got float16.");
  state = w.state;
  state.dtype = at::kDouble;
  EXPECT_EQ(message_of([&] { dequantize_4bit(w.packed, state); }),
            "lowbit::dequantize_4bit: `dtype` must be float32, float16 or bfloat16, got float64.");
  state = w.state;
  state.shape = {-1, 64};
  EXPECT_EQ(message_of([&] { dequantize_4bit(w.packed, state); }),
            "lowbit::dequantize_4bit: `shape` must be non-negative sizes of at most 2^63 elements, "
            "got [-1, 64].");
  const auto [codes, eight] = quantize_blockwise(at::randn({64}));
  EXPECT_EQ(message_of([&] { dequantize_4bit(codes, eight); }),
            "lowbit::dequantize_4bit: `state` must be a 4-bit state with a shape, got an 8-bit "
            "state. 8-bit codes are "
            "read by dequantize_blockwise.");
  EXPECT_EQ(message_of([&] { dequantize_blockwise(w.packed, w.state); }),
            "lowbit::dequantize_blockwise: `state` must be an 8-bit state, got a 4-bit one. 4-bit "
            "codes are read by "
            "dequantize_4bit.");
}

TEST(BadInput, Linear4bit) {
  const Quantized w = weight();
  const auto error = [&](const at::Tensor& x, const at::Tensor& bias = {}) {
    return message_of([&] { matmul_4bit(x, w.packed, w.state, bias); });
  };
  EXPECT_EQ(error(at::ones({2, 63})),
            "lowbit::linear_4bit: `input` must be [..., 64], got shape [2, 63].");
  EXPECT_EQ(error(at::ones({})), "lowbit::matmul_4bit: `x` must be [..., K], got a 0-dim tensor.");
  EXPECT_EQ(error(at::ones({2, 64}, at::kInt)),
            "lowbit::linear_4bit: `input` must be float32, float16 or bfloat16, got int32.");
  EXPECT_EQ(error(at::ones({2, 64}), at::ones({33})),
            "lowbit::linear_4bit: `bias` must be [32], got shape [33].");
  EXPECT_EQ(error(at::ones({2, 64}), at::ones({1, 32})),
            "lowbit::linear_4bit: `bias` must be [32], got shape [1, 32].");
  EXPECT_EQ(error(at::ones({2, 64}), at::ones({32}, at::kDouble)),
            "lowbit::linear_4bit: `bias` must be float32, float16 or bfloat16, got float64.");
  EXPECT_EQ(error(at::ones({2, 64}, at::kMeta)),
            "lowbit::linear_4bit: `input` must be on cpu, got meta.");
  QuantState state = w.state;
  state.shape = {2048};
  EXPECT_EQ(message_of([&] {
              matmul_4bit(at::ones({2, 64}), w.packed, state);
            }),
            "lowbit::linear_4bit: `shape` must be [out_features, in_features], got [2048].");
  const auto weight_4bit = ops::Weight4bit::make(w.packed, w.state);
  EXPECT_EQ(
      message_of([&] {
        ops::linear_4bit_backward_input(at::ones({2, 31}), weight_4bit);
      }),
      "lowbit::linear_4bit_backward_input: `grad_output` must be [..., 32], got shape [2, 31].");
}

TEST(BadInput, NestedStatistics) {
  auto [packed, state] = quantize_4bit(at::randn({32, 64}), {.compress_statistics = true});
  const auto weight = ops::Weight4bit::make(packed, state);
  const auto error = [&](const std::function<void(ops::Weight4bit&)>& change) {
    ops::Weight4bit changed = weight;
    change(changed);
    return message_of([&] { ops::dispatch::linear_4bit(at::ones({1, 64}), changed, {}); });
  };
  EXPECT_EQ(error([](ops::Weight4bit& w) { w.absmax_code = at::Tensor(); }),
            "lowbit::linear_4bit: `absmax_code` must be given with absmax_8bit, got None.");
  EXPECT_EQ(error([](ops::Weight4bit& w) { w.absmax_offset = at::zeros({2}); }),
            "lowbit::linear_4bit: `absmax_offset` must be 1 elements long, got shape [2].");
  EXPECT_EQ(error([](ops::Weight4bit& w) { w.absmax_8bit = w.absmax_8bit.to(at::kInt); }),
            "lowbit::linear_4bit: `absmax_8bit` must be uint8, got int32.");
  EXPECT_EQ(error([](ops::Weight4bit& w) { w.absmax = at::zeros({32}); }),
            "lowbit::linear_4bit: `absmax` must be 1 elements long, got shape [32].");
}

TEST(BadInput, Embeddings) {
  const Quantized w = weight();
  const auto table = ops::Weight4bit::make(w.packed, w.state);
  EXPECT_EQ(message_of([&] {
              ops::embedding_4bit(at::tensor({0, 32}), table, at::kFloat);
            }),
            "lowbit::embedding_4bit: `ids` must be in [0, 32), the rows of the table, got 32.");
  EXPECT_EQ(message_of([&] { ops::embedding_4bit(at::tensor({-1}), table, at::kFloat); }),
            "lowbit::embedding_4bit: `ids` must be in [0, 32), the rows of the table, got -1.");
  EXPECT_EQ(message_of([&] { ops::embedding_4bit(at::tensor({1.0f}), table, at::kFloat); }),
            "lowbit::embedding_4bit: `ids` must be int64 or int32, got float32.");
  const auto eight = ops::Weight8bit::make(at::zeros({5, 8}, at::kChar), at::ones({5}));
  EXPECT_EQ(message_of([&] { ops::embedding_8bit(at::tensor({5}), eight, at::kFloat); }),
            "lowbit::embedding_8bit: `ids` must be in [0, 5), the rows of the table, got 5.");
  EXPECT_EQ(message_of([&] { ops::embedding_8bit(at::tensor({1}), eight, at::kLong); }),
            "lowbit::embedding_8bit: `dtype` must be float32, float16 or bfloat16, got int64.");
}

TEST(BadInput, Blockwise) {
  EXPECT_EQ(message_of([] { quantize_blockwise(at::ones({64}, at::kLong)); }),
            "lowbit::quantize_blockwise: `A` must be float32, float16 or bfloat16, got int64.");
  EXPECT_EQ(message_of([] { quantize_blockwise(at::ones({64}), {.blocksize = 0}); }),
            "lowbit::quantize_blockwise: `blocksize` must be positive, got 0.");
  EXPECT_EQ(message_of([] { quantize_blockwise(at::ones({64}), {.code = at::ones({16})}); }),
            "lowbit::quantize_blockwise: `code` must be 256 elements long, got shape [16].");
  EXPECT_EQ(
      message_of([] { quantize_blockwise(at::ones({64}), {.code = at::ones({256}, at::kHalf)}); }),
      "lowbit::quantize_blockwise: `code` must be float32, got float16.");
  auto [codes, state] = quantize_blockwise(at::ones({64}), {.blocksize = 32});
  EXPECT_EQ(message_of([&] { dequantize_blockwise(codes.to(at::kInt), state); }),
            "lowbit::dequantize_blockwise: `A` must be uint8, got int32.");
  state.absmax = at::ones({3});
  EXPECT_EQ(message_of([&] { dequantize_blockwise(codes, state); }),
            "lowbit::dequantize_blockwise: `absmax` must be 2 elements long, got shape [3].");
}

TEST(BadInput, Int8) {
  const at::Tensor q = at::zeros({4, 8}, at::kChar), s = at::ones({4});
  EXPECT_EQ(message_of([] {
              int8_vectorwise_quant(at::ones({4, 8}), -1.0);
            }),
            "lowbit::int8_rowwise_quant: `threshold` must be 0 (no outliers) or positive, got -1.");
  EXPECT_EQ(
      message_of([] {
        int8_vectorwise_quant(at::ones({4, 8}), NAN);
      }),
      "lowbit::int8_rowwise_quant: `threshold` must be 0 (no outliers) or positive, got nan.");
  EXPECT_EQ(message_of([] {
              int8_double_quant(at::ones({4, 8}, at::kInt));
            }),
            "lowbit::int8_rowwise_quant: `A` must be float32, float16 or bfloat16, got int32.");
  EXPECT_EQ(message_of([&] { int8_vectorwise_dequant(q, at::ones({8})); }),
            "lowbit::int8_vectorwise_dequant: `stats` must be 4 elements long, got shape [8].");
  EXPECT_EQ(message_of([&] {
              int8_linear_matmul(q, at::zeros({8, 4}, at::kChar));
            }),
            "lowbit::int8_linear_matmul: `A` must be [..., 4] (B is [8, 4]), got shape [4, 8].");
  EXPECT_EQ(message_of([&] { int8_linear_matmul(q.to(at::kInt), q); }),
            "lowbit::int8_linear_matmul: `A` must be int8, got int32.");
  EXPECT_EQ(message_of([&] {
              int8_linear_matmul(q, q.view({1, 4, 8}));
            }),
            "lowbit::int8_linear_matmul: `B` must be 2-D, got shape [1, 4, 8].");
  EXPECT_EQ(message_of([&] {
              int8_mm_dequant(at::zeros({4, 8}, at::kInt), s, s);
            }),
            "lowbit::int8_mm_dequant: `col_stats` must be 8 elements long, got shape [4].");
  EXPECT_EQ(message_of([&] {
              matmul_8bit(at::ones({2, 7}), q, s);
            }),
            "lowbit::linear_8bit: `input` must be [..., 8], got shape [2, 7].");
  EXPECT_EQ(message_of([&] {
              matmul_8bit(at::ones({2, 8}), q, at::ones({3}));
            }),
            "lowbit::linear_8bit: `SCB` must be 4 elements long, got shape [3].");
  EXPECT_EQ(message_of([&] {
              matmul_8bit(at::ones({2, 8}), q.to(at::kByte), s);
            }),
            "lowbit::linear_8bit: `CB` must be int8, got uint8.");
  const auto w = ops::Weight8bit::make(q, s);
  EXPECT_EQ(message_of([&] {
              ops::linear_8bit_weight_only(at::ones({2, 9}), w);
            }),
            "lowbit::linear_8bit_weight_only: `input` must be [..., 8], got shape [2, 9].");
  EXPECT_EQ(
      message_of([&] {
        ops::linear_8bit_backward_input(at::ones({2, 9}), w);
      }),
      "lowbit::linear_8bit_backward_input: `grad_output` must be [..., 4], got shape [2, 9].");
}

TEST(BadInput, OutTensors) {
  const auto op = c10::Dispatcher::singleton()
                      .findSchemaOrThrow("lowbit::int8_linear_matmul", "out")
                      .typed<void(const at::Tensor&, const at::Tensor&, const at::Tensor&)>();
  const at::Tensor q = at::zeros({4, 8}, at::kChar);
  EXPECT_EQ(message_of([&] {
              op.call(q, q, at::zeros({4, 5}, at::kInt));
            }),
            "lowbit::int8_linear_matmul: `out` must be of shape [4, 4], got shape [4, 5].");
  EXPECT_EQ(message_of([&] {
              op.call(q, q, at::zeros({4, 4}));
            }),
            "lowbit::int8_linear_matmul: `out` must be int32, got float32.");
}

TEST(BadInput, MapsAndTables) {
  EXPECT_NE(message_of([] { create_dynamic_map(true, 9); }), "(nothing was thrown)");
  EXPECT_NE(message_of([] { create_linear_map(true, 9); }), "(nothing was thrown)");
  EXPECT_NE(message_of([] { create_fp8_map(true, 5, 5); }), "(nothing was thrown)");
  EXPECT_NE(message_of([] { create_normal_map(1.5); }), "(nothing was thrown)");
  EXPECT_EQ(
      message_of([] { get_4bit_type("nf5"); }),
      "lowbit::get_4bit_type: `name` must be \"nf4\", \"fp4\", \"int4\" or \"af4\", got \"nf5\".");
  EXPECT_EQ(message_of([] { get_4bit_type("af4", at::kCPU, 128); }),
            "lowbit::get_4bit_type: `blocksize` must be 64 for \"af4\", got 128.");
  EXPECT_EQ(message_of([] { count_nonfinite(at::ones({2}, at::kInt)); }),
            "lowbit::count_nonfinite: `tensor` must be float32, float16 or bfloat16, got int32.");
}

#ifndef LOWBIT_HAS_CUDA
// Kernels for CUDA tensors are asked for by dispatch key: no device is needed to see the answer.
TEST(BadInput, CudaWithoutKernels) {
  const auto call = [](const char* name, const char* overload, std::vector<c10::IValue> stack) {
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
    return message_of(
        [&] { op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CUDA), &stack); });
  };
  const at::Tensor x = at::empty({2, 64}, at::kMeta);
  EXPECT_EQ(
      call("lowbit::quantize_4bit", "", {x, 64, "nf4", static_cast<int64_t>(at::kByte)}),
      "lowbit::quantize_4bit: `A` must be a CPU tensor, got meta. This build has no CUDA kernels.");
  EXPECT_EQ(call("lowbit::int8_linear_matmul", "out", {at::zeros({1, 1}), x, x}),
            "lowbit::int8_linear_matmul: `B` must be a CPU tensor, got meta. This build has no "
            "CUDA kernels.");
}
#endif

TEST(BadInput, UndifferentiableOpsSayThatInBackward) {
  const at::Tensor stats = at::ones({4}).requires_grad_();
  const at::Tensor y = int8_vectorwise_dequant(at::zeros({4, 8}, at::kChar), stats);
  EXPECT_NE(message_of([&] { y.sum().backward(); }).find("int8_vectorwise_dequant"),
            std::string::npos);
  // Quantizers give constants.
  const auto [packed, state] = quantize_4bit(at::randn({64}).requires_grad_());
  EXPECT_FALSE(state.absmax.requires_grad());
}

}  // namespace
}  // namespace lowbit
