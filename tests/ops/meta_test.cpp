// Shapes without data: every op on the meta device, and sizes beyond 2^31 elements.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "lowbit/functional.h"
#include "ops/dispatch.h"
#include "ops/linear.h"

namespace lowbit {
namespace {

at::Tensor meta(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) {
  return at::empty(sizes, at::TensorOptions().device(at::kMeta).dtype(dtype));
}

constexpr int64_t kRows = int64_t{1} << 20, kCols = 5000;  // 5.2e9 elements

TEST(Meta, SizesBeyond32Bits) {
  const int64_t numel = kRows * kCols;
  const auto [packed, absmax] =
      ops::dispatch::quantize_4bit(meta({kRows, kCols}), 64, QuantType::kNF4, at::kBFloat16);
  EXPECT_EQ(packed.sizes(), at::IntArrayRef({numel / 4, 1}));
  EXPECT_EQ(absmax.numel(), numel / 64);
  EXPECT_EQ(
      ops::dispatch::dequantize_4bit(packed, absmax, 64, QuantType::kNF4, {kRows, kCols}, at::kHalf)
          .numel(),
      numel);
  const ops::Weight4bit weight{.packed = packed, .rows = kRows, .cols = kCols, .absmax = absmax};
  EXPECT_EQ(ops::linear_4bit(meta({3, kCols}), weight).sizes(), at::IntArrayRef({3, kRows}));
  EXPECT_EQ(ops::linear_4bit_backward_input(meta({3, kRows}), weight).sizes(),
            at::IntArrayRef({3, kCols}));
  EXPECT_EQ(ops::embedding_4bit(meta({7, 2}, at::kLong), weight, at::kHalf).sizes(),
            at::IntArrayRef({7, 2, kCols}));
  const auto [codes, scales] =
      ops::dispatch::quantize_blockwise(meta({kRows, kCols}), meta({256}), 100);
  EXPECT_EQ(codes.sizes(), at::IntArrayRef({kRows, kCols}));
  EXPECT_EQ(scales.numel(), (numel + 99) / 100);
  EXPECT_EQ(
      ops::dispatch::dequantize_blockwise(codes, scales, meta({256}), 100, at::kFloat).numel(),
      numel);
}

TEST(Meta, OddSizesRoundUp) {
  const auto [packed, absmax] =
      ops::dispatch::quantize_4bit(meta({7, 19}), 32, QuantType::kFP4, at::kFloat);
  EXPECT_EQ(packed.sizes(), at::IntArrayRef({17, 1}));  // 133 codes, 67 bytes
  EXPECT_EQ(packed.scalar_type(), at::kFloat);
  EXPECT_EQ(absmax.sizes(), at::IntArrayRef({5}));
}

TEST(Meta, Int8Shapes) {
  const at::Tensor x = meta({2, 3, 16}, at::kHalf), CB = meta({5, 16}, at::kChar), SCB = meta({5});
  const auto [q, stats, mask] = ops::dispatch::int8_rowwise_quant(x, 6.0);
  EXPECT_EQ(q.sizes(), x.sizes());
  EXPECT_EQ(stats.sizes(), at::IntArrayRef({6}));
  EXPECT_EQ(mask.sizes(), at::IntArrayRef({16}));
  const auto [q_col, col_stats] = ops::dispatch::int8_colwise_quant(x, 6.0);
  EXPECT_EQ(q_col.sizes(), x.sizes());
  EXPECT_EQ(col_stats.sizes(), at::IntArrayRef({16}));
  EXPECT_EQ(ops::dispatch::int8_vectorwise_dequant(q, stats).scalar_type(), at::kFloat);
  const at::Tensor i32 = ops::dispatch::int8_linear_matmul(q, CB);
  EXPECT_EQ(i32.sizes(), at::IntArrayRef({2, 3, 5}));
  EXPECT_EQ(i32.scalar_type(), at::kInt);
  EXPECT_EQ(
      ops::dispatch::int8_mm_dequant(i32, stats, SCB, std::nullopt, std::nullopt).scalar_type(),
      at::kHalf);
  const at::Tensor y =
      ops::dispatch::int8_scaled_mm(q, CB, stats, SCB, std::nullopt, at::kBFloat16);
  EXPECT_EQ(y.sizes(), at::IntArrayRef({2, 3, 5}));
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  const auto weight = ops::Weight8bit::make(CB, SCB);
  EXPECT_EQ(ops::linear_8bit(x, weight, {}, 6.0).sizes(), at::IntArrayRef({2, 3, 5}));
  EXPECT_EQ(ops::linear_8bit_weight_only(x, weight).sizes(), at::IntArrayRef({2, 3, 5}));
  EXPECT_EQ(ops::linear_8bit_backward_input(y, weight).sizes(), at::IntArrayRef({2, 3, 16}));
  EXPECT_EQ(ops::embedding_8bit(meta({4}, at::kInt), weight, at::kHalf).sizes(),
            at::IntArrayRef({4, 16}));
}

TEST(Meta, FunctionalApi) {
  const at::Tensor w = meta({40, 64}, at::kBFloat16);
  const auto [packed, state] =
      quantize_4bit(w, {.compress_statistics = true, .quant_type = QuantType::kNF4});
  EXPECT_TRUE(packed.is_meta());
  EXPECT_TRUE(state.absmax.is_meta() && state.code.is_meta() && state.offset.is_meta());
  EXPECT_EQ(dequantize_4bit(packed, state).sizes(), w.sizes());
  const at::Tensor x = meta({2, 64}, at::kBFloat16).requires_grad_();
  const at::Tensor y = matmul_4bit(x, packed, state);
  EXPECT_EQ(y.sizes(), at::IntArrayRef({2, 40}));
  EXPECT_TRUE(y.requires_grad());
  y.sum().backward();
  EXPECT_EQ(x.grad().sizes(), x.sizes());
}

TEST(CpuIsa, IsNamed) {
  const std::string isa = cpu_isa();
  EXPECT_TRUE(isa == "scalar" || isa == "avx2" || isa == "avx512") << isa;
}

}  // namespace
}  // namespace lowbit
