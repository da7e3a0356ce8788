// LLM.int8(): int8_vectorwise_quant, int8_double_quant, int8_linear_matmul, int8_mm_dequant,
// int8_scaled_mm, int8_mixed_scaled_mm, linear_8bit, linear_8bit_weight_only, embedding_8bit.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "lowbit/functional.h"
#include "ops/dispatch.h"
#include "ops/linear.h"
#include "support/golden.h"
#include "support/random.h"
#include "support/tolerance.h"

namespace lowbit {
namespace {

using test::Golden;
using test::is_near;
using test::same_bytes;

const std::vector<std::pair<std::string, at::ScalarType>> kDtypes = {
    {"fp32", at::kFloat}, {"bf16", at::kBFloat16}, {"fp16", at::kHalf}};

using Mixed = std::tuple<at::Tensor, std::optional<at::Tensor>>;

Mixed int8_mixed_scaled_mm(const at::Tensor& A, const at::Tensor& CA, const at::Tensor& CB,
                           const at::Tensor& SCA, const at::Tensor& SCB,
                           const std::optional<at::Tensor>& columns,
                           const std::optional<at::Tensor>& bias) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow("lowbit::int8_mixed_scaled_mm", "")
      .typed<Mixed(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                   const at::Tensor&, const std::optional<at::Tensor>&,
                   const std::optional<at::Tensor>&)>()
      .call(A, CA, CB, SCA, SCB, columns, bias);
}

class Int8Test : public test::RandomTest {
 protected:
  ops::Weight8bit weight(int64_t n, int64_t k) {
    const auto [q, stats, outliers] = int8_vectorwise_quant(normal({n, k}));
    return ops::Weight8bit::make(q, stats);
  }
  static at::Tensor truth(const ops::Weight8bit& w) {
    return w.q.to(at::kDouble) * w.stats.to(at::kDouble).unsqueeze(1) / 127.0;
  }
};

TEST(Int8Golden, QuantizationToTheBit) {
  const Golden golden("int8.safetensors");
  const auto [CB, SCB, none] = int8_vectorwise_quant(golden["W"]);
  EXPECT_TRUE(same_bytes(CB, golden["cuda.CB"]));
  EXPECT_TRUE(same_bytes(SCB, golden["cuda.SCB"]));
  EXPECT_FALSE(none.has_value());
  for (const double threshold : {0.0, 6.0}) {
    const std::string suffix = threshold == 0.0 ? "0.0" : "6.0";
    const auto [q, stats, outliers] = int8_vectorwise_quant(golden["A"], threshold);
    // One element of the recorded data sits on a rounding tie that CUDA's reciprocal moves.
    const int64_t ties = test::on_cuda() ? 0 : 1;
    EXPECT_LE(
        (q.to(at::kInt) - golden["cuda.q." + suffix].to(at::kInt)).ne(0).sum().item<int64_t>(),
        ties);
    EXPECT_TRUE(same_bytes(stats, golden["cuda.s." + suffix]));
    EXPECT_EQ(outliers.has_value(), threshold > 0.0);
    EXPECT_TRUE(!outliers.has_value() || at::equal(*outliers, golden["cuda.oc.6.0"]));

    const auto [q_row, q_col, s_row, s_col, columns] = int8_double_quant(golden["A"], threshold);
    EXPECT_LE((q_row.to(at::kInt) - golden["cuda.dq.row." + suffix].to(at::kInt))
                  .ne(0)
                  .sum()
                  .item<int64_t>(),
              ties);
    EXPECT_TRUE(same_bytes(q_col, golden["cuda.dq.col." + suffix]));
    EXPECT_TRUE(same_bytes(s_row, golden["cuda.dq.srow." + suffix]));
    EXPECT_TRUE(same_bytes(s_col, golden["cuda.dq.scol." + suffix]));
    EXPECT_TRUE(!columns.has_value() || at::equal(*columns, golden["cuda.dq.oc.6.0"]));
  }
  EXPECT_TRUE(same_bytes(int8_vectorwise_dequant(golden["cuda.CB"], golden["cuda.SCB"]),
                         golden["cuda.vdq"]));
  const auto [q, s, outliers] = int8_vectorwise_quant(golden["R"]);
  EXPECT_TRUE(same_bytes(q, golden["cuda.R.q"]));
  EXPECT_TRUE(at::equal(s, golden["cuda.R.s"]));
}

TEST(Int8Golden, MatmulsOfTheReference) {
  const Golden golden("int8.safetensors");
  const at::Tensor CB = golden["cuda.CB"], SCB = golden["cuda.SCB"];
  for (const std::string suffix : {"0.0", "6.0"}) {
    const double threshold = std::stod(suffix);
    const at::Tensor q = golden["cuda.q." + suffix], s = golden["cuda.s." + suffix];
    const at::Tensor i32 = int8_linear_matmul(q, CB);
    EXPECT_TRUE(same_bytes(i32, golden["cuda.i32." + suffix]));
    for (const bool with_bias : {false, true}) {
      const std::string key = c10::str(with_bias ? "bias." : "nobias.", suffix);
      const auto bias = with_bias ? std::optional(golden["bias"]) : std::nullopt;
      EXPECT_TRUE(is_near(int8_mm_dequant(i32, s, SCB, bias), golden["cuda.mmdq." + key],
                          test::kInt8Golden))
          << key;
      for (const auto& [name, dtype] : kDtypes) {
        const at::Tensor x = golden["A"].to(dtype);
        const at::Tensor recorded = golden[c10::str("cuda.matmul.", name, ".", key)];
        EXPECT_TRUE(is_near(matmul_8bit(x, CB, SCB, bias, threshold), recorded, test::kInt8Golden))
            << name << key;
        const auto columns = threshold > 0 ? std::optional(golden["cuda.oc.6.0"]) : std::nullopt;
        // The recorded codes are those of the float16 activations.
        const auto [codes, stats, own] = int8_vectorwise_quant(x, threshold);
        const auto [mixed, sub_a] = int8_mixed_scaled_mm(x, codes, CB, stats, SCB, columns, bias);
        EXPECT_TRUE(is_near(mixed, recorded, test::kInt8Golden)) << name << key;
        ASSERT_TRUE(sub_a.has_value());
        if (columns.has_value()) {
          EXPECT_TRUE(at::equal(*sub_a, x.index_select(1, *columns)));
        } else {
          EXPECT_EQ(sub_a->numel(), 0);
        }
      }
    }
  }
  const at::Tensor a = at::arange(-7, 7).to(test::device(), at::kChar).view({2, 7}),
                   b = at::arange(-10, 11).to(test::device(), at::kChar).view({3, 7});
  EXPECT_TRUE(same_bytes(int8_linear_matmul(a, b), golden["cuda.i32.k7"]));
}

TEST(Int8Golden, Linear8bitLayerOutputsAndGradients) {
  const Golden golden("modules.safetensors");
  for (const std::string threshold : {"0.0", "6.0"}) {
    const at::Tensor CB = golden["l8." + threshold + ".sd.weight"],
                     SCB = golden["l8." + threshold + ".sd.SCB"];
    const at::Tensor bias = golden["l8." + threshold + ".sd.bias"];
    for (const auto& [name, dtype] : kDtypes) {
      const std::string key = "l8." + threshold + "." + name + ".";
      if (!golden.contains(key + "y")) continue;
      const at::Tensor x = golden["x16o"].to(dtype).requires_grad_();
      const at::Tensor y = matmul_8bit(x, CB, SCB, bias.to(dtype), std::stod(threshold));
      EXPECT_TRUE(is_near(y.detach(), golden[key + "y"], test::kInt8Golden)) << key;
      y.sum().backward();
      EXPECT_TRUE(is_near(x.grad(), golden[key + "gx"], test::kRoundedWeights)) << key;
    }
  }
}

TEST_F(Int8Test, MatmulIsExactForAnyInnerSize) {
  // Sums up to 127 * 127 * 5001 need 27 bits: a float32 product would lose them.
  for (const int64_t k : {1, 3, 7, 64, 1041, 5001}) {
    at::Tensor a = integers(-127, 128, {5, k}, at::kChar),
               b = integers(-127, 128, {9, k}, at::kChar);
    a[0].fill_(127);
    b[0].fill_(127);
    const at::Tensor truth = at::matmul(a.to(at::kDouble), b.to(at::kDouble).t());
    EXPECT_TRUE(at::equal(int8_linear_matmul(a, b).to(at::kDouble), truth)) << k;
  }
}

TEST_F(Int8Test, MatmulReadsStridesAndAnyRank) {
  const at::Tensor a = integers(-127, 128, {20, 6, 2}, at::kChar),
                   b = integers(-127, 128, {20, 11}, at::kChar);
  const at::Tensor x = a.permute({2, 1, 0});
  const at::Tensor truth = at::matmul(x.to(at::kDouble), b.to(at::kDouble));
  EXPECT_TRUE(at::equal(int8_linear_matmul(x, b.t()).to(at::kDouble), truth));
  const auto out_op = c10::Dispatcher::singleton()
                          .findSchemaOrThrow("lowbit::int8_linear_matmul", "out")
                          .typed<void(const at::Tensor&, const at::Tensor&, const at::Tensor&)>();
  at::Tensor out = test::full({2, 11, 6}, -1, at::kInt).transpose(1, 2);
  out_op.call(x, b.t(), out);
  EXPECT_TRUE(at::equal(out.to(at::kDouble), truth));
  EXPECT_EQ(int8_linear_matmul(test::empty({0, 20}, at::kChar), b.t()).sizes(),
            at::IntArrayRef({0, 11}));
  EXPECT_TRUE(
      at::equal(int8_linear_matmul(test::empty({2, 0}, at::kChar), test::empty({3, 0}, at::kChar)),
                test::zeros({2, 3}, at::kInt)));
}

TEST_F(Int8Test, EpilogueComputesInFloat32AndRoundsOnce) {
  const at::Tensor a = integers(-2000000, 2000000, {4, 30}, at::kInt);
  const at::Tensor row = normal({4}).abs() * 40, col = normal({30}).abs() * 40,
                   bias = normal({30}) * 1000;
  const at::Tensor truth =
      a.to(at::kDouble) * row.to(at::kDouble).unsqueeze(1) * col.to(at::kDouble) / (127.0 * 127.0);
  for (const auto& [name, dtype] : kDtypes) {
    if (dtype == at::kHalf)
      continue;  // values beyond 65504 on purpose: they must not pass through float16
    EXPECT_TRUE(
        is_near(int8_mm_dequant(a, row, col, bias, dtype), truth + bias, test::kInt8Epilogue))
        << name;
  }
  EXPECT_GT(truth.abs().max().item<double>(), 65504.0);
  const at::Tensor q = integers(-127, 128, {4, 16}, at::kChar),
                   w = integers(-127, 128, {30, 16}, at::kChar);
  EXPECT_TRUE(same_bytes(ops::dispatch::int8_scaled_mm(q, w, row, col, bias, at::kFloat),
                         int8_mm_dequant(int8_linear_matmul(q, w), row, col, bias, at::kFloat)));
}

TEST_F(Int8Test, OutliersKeepTheirValues) {
  at::Tensor x = normal({9, 128});
  x.select(1, 5).mul_(60);
  x[3][77] = -200;
  const ops::Weight8bit w = weight(40, 128);
  const at::Tensor exact = at::matmul(x.to(at::kDouble), truth(w).t());
  const double with = test::relative_error(ops::linear_8bit(x, w, {}, 6.0), exact);
  const double without = test::relative_error(ops::linear_8bit(x, w), exact);
  EXPECT_LT(with, 0.006);
  EXPECT_GT(without, 2 * with);
  const auto [q, stats, columns] = int8_vectorwise_quant(x, 6.0);
  EXPECT_EQ(q.index_select(1, *columns).abs().sum().item<int64_t>(), 0);
  // The fused layer is the composition of the ops.
  const auto [mixed, sub_a] =
      int8_mixed_scaled_mm(x, q, w.q, stats, w.stats, columns, std::nullopt);
  EXPECT_TRUE(is_near(ops::linear_8bit(x, w, {}, 6.0), mixed, test::kInt8Epilogue));
  // Without any outlier, a threshold changes nothing.
  const at::Tensor small = normal({9, 128}) * 0.1;
  EXPECT_TRUE(same_bytes(ops::linear_8bit(small, w, {}, 6.0), ops::linear_8bit(small, w)));
}

TEST_F(Int8Test, LinearLayersOfAnyRankLayoutAndDtype) {
  const ops::Weight8bit w = weight(24, 80);
  const at::Tensor bias = normal({24});
  for (const auto& [name, dtype] : kDtypes) {
    for (const at::Tensor& x :
         {normal({80}, dtype), normal({3, 80}, dtype), normal({2, 3, 80}, dtype),
          normal({2, 1, 3, 2, 80}, dtype), normal({80, 5}, dtype).t(), normal({0, 80}, dtype),
          normal({4, 200}, dtype).slice(1, 7, 87)}) {
      const at::Tensor exact = at::matmul(x.to(at::kDouble), truth(w).t()) + bias.to(at::kDouble);
      // A GPU rounds the weights before a library's product with more than eight rows.
      EXPECT_TRUE(is_near(ops::linear_8bit_weight_only(x, w, bias), exact,
                          test::on_cuda() ? test::kRoundedWeights : test::kMatmul))
          << name << x.sizes();
      const at::Tensor y = ops::linear_8bit(x, w, bias);
      ASSERT_EQ(y.sizes(), exact.sizes());
      EXPECT_LE(test::relative_error(y, exact), 0.02) << name << x.sizes();
      EXPECT_TRUE(same_bytes(y, ops::dispatch::linear_8bit(x, w, bias, 0.0)));
    }
  }
}

TEST_F(Int8Test, GradientsOfInputAndBias) {
  const ops::Weight8bit w = weight(24, 80);
  for (const auto& [name, dtype] : kDtypes) {
    for (const bool weight_only : {false, true}) {
      const at::Tensor x = normal({2, 3, 80}, dtype).requires_grad_(),
                       bias = normal({24}, dtype).requires_grad_();
      const at::Tensor y = weight_only ? ops::linear_8bit_weight_only(x, w, bias)
                                       : ops::linear_8bit(x, w, bias, 6.0);
      const at::Tensor g = normal(y.sizes(), dtype);
      y.backward(g);
      EXPECT_TRUE(is_near(x.grad(), at::matmul(g.to(at::kDouble), truth(w)), test::kRoundedWeights))
          << name;
      EXPECT_TRUE(is_near(bias.grad(), g.to(at::kDouble).view({-1, 24}).sum(0), test::kMatmul))
          << name;
    }
  }
  const at::Tensor x = normal({3, 80}).requires_grad_();
  const at::Tensor g = torch::autograd::grad({ops::linear_8bit_weight_only(x, w).pow(2).sum()}, {x},
                                             {}, true, true)[0];
  const at::Tensor gg = torch::autograd::grad({g.sum()}, {x})[0];
  const at::Tensor ones = test::ones({3, 80}, at::kDouble);
  EXPECT_TRUE(is_near(gg, 2 * at::matmul(at::matmul(ones, truth(w).t()), truth(w)), test::kMatmul));
}

TEST_F(Int8Test, EmbeddingGathersDequantizedRows) {
  const ops::Weight8bit w = weight(30, 17);
  const at::Tensor ids = integers(0, 30, {4, 3}, at::kInt).t();
  for (const auto& [name, dtype] : kDtypes) {
    const at::Tensor rows = at::embedding(ops::dequantize_8bit(w, dtype), ids.to(at::kLong));
    EXPECT_TRUE(same_bytes(ops::embedding_8bit(ids, w, dtype), rows)) << name;
    EXPECT_TRUE(same_bytes(ops::dispatch::embedding_8bit(ids, w, dtype), rows)) << name;
  }
  EXPECT_TRUE(
      same_bytes(ops::dequantize_8bit(w, at::kFloat), int8_vectorwise_dequant(w.q, w.stats)));
}

}  // namespace
}  // namespace lowbit
