// Products with quantized tensors through the ordinary operators, against the same operators on the
// dequantized weight. None of them may fall back.
#include <torch/nn/functional/linear.h>

#include <atomic>
#include <thread>

#include "support/random.h"
#include "support/tolerance.h"
#include "tensor/linear.h"
#include "tensor/schemes.h"

namespace lowbit::test {
namespace {

class ProductTest : public RandomTest {
 protected:
  ProductTest() { reset_fallback_count(); }
  ~ProductTest() override { EXPECT_EQ(fallback_count(), 0) << "fell back in " << last_fallback(); }

  static void expect_near(const at::Tensor& result, const at::Tensor& truth, double tolerance,
                          const std::string& what) {
    ASSERT_EQ(result.sizes(), truth.sizes()) << what;
    EXPECT_LE(relative_error(result, truth), tolerance) << what;
  }
};

TEST_F(ProductTest, LinearOfEveryRankWithAndWithoutBias) {
  constexpr int64_t kRows = 48, kCols = 64;
  const std::vector<std::vector<int64_t>> shapes = {{kCols},       {1, kCols},       {5, kCols},
                                                    {2, 3, kCols}, {2, 3, 4, kCols}, {0, kCols}};
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor w = normal({kRows, kCols}, dtype, 0.1), bias = normal({kRows}, dtype);
    for (const auto& [name, config] : all_schemes()) {
      const at::Tensor q = quantize(w, config);
      const at::Tensor exact = lowbit::dequantize(q, at::kDouble);
      for (const auto& shape : shapes) {
        const at::Tensor x = normal(shape, dtype);
        for (const at::Tensor& b : {at::Tensor(), bias}) {
          const std::string what =
              c10::str(name, ", ", dtype, ", ", x.sizes(), b.defined() ? ", bias" : "");
          const at::Tensor truth =
              at::linear(x.to(at::kDouble), exact, b.defined() ? b.to(at::kDouble) : at::Tensor());
          const double tolerance = product_tolerance(config, dtype);
          const at::Tensor y = at::linear(x, q, b);
          EXPECT_EQ(y.scalar_type(), dtype) << what;
          expect_near(y, truth, tolerance, what);
          // What torch::nn::Linear calls: addmm or matmul of weight.t().
          expect_near(torch::nn::functional::linear(x, q, b), truth, tolerance, what);
          expect_near(tensor::linear(x, q, b), truth, tolerance, what);
        }
      }
    }
  }
}

TEST_F(ProductTest, EitherSideEitherWay) {
  const at::Tensor w = normal({32, 64}, at::kFloat, 0.1);
  for (const auto& [name, config] : all_schemes()) {
    const at::Tensor q = quantize(w, config), exact = lowbit::dequantize(q);
    const double tolerance = product_tolerance(config, at::kFloat);
    const at::Tensor wide = normal({7, 64}), tall = normal({7, 32}), vector = normal({64});
    expect_near(at::mm(wide, q.t()), at::mm(wide, exact.t()), tolerance, name);
    expect_near(at::mm(tall, q), at::mm(tall, exact), tolerance, name);
    expect_near(at::mm(q, wide.t()), at::mm(exact, wide.t()), tolerance, name);
    expect_near(at::mm(q.t(), tall.t()), at::mm(exact.t(), tall.t()), tolerance, name);
    expect_near(at::matmul(q, vector), at::matmul(exact, vector), tolerance, name);
    expect_near(at::matmul(vector, q.transpose(0, 1)), at::matmul(vector, exact.t()), tolerance,
                name);
    expect_near(at::matmul(wide.view({1, 7, 64}), q.mT()),
                at::matmul(wide.view({1, 7, 64}), exact.t()), tolerance, name);
    const at::Tensor start = normal({7, 32});
    expect_near(at::addmm(start, wide, q.t(), 0.5, 2.0),
                at::addmm(start, wide, exact.t(), 0.5, 2.0), tolerance, name);
  }
}

TEST_F(ProductTest, GradientsReachInputAndBias) {
  const at::Tensor w = normal({32, 64}, at::kFloat, 0.1);
  for (const auto& [name, config] : all_schemes()) {
    const at::Tensor q = quantize(w, config), exact = lowbit::dequantize(q);
    for (const int64_t leading : {1, 2}) {  // addmm, matmul
      const at::Tensor data = leading == 1 ? normal({6, 64}) : normal({2, 3, 64});
      const at::Tensor x = data.clone().requires_grad_(true);
      const at::Tensor bias = normal({32}).requires_grad_(true);
      const at::Tensor y = torch::nn::functional::linear(x, q, bias);
      const at::Tensor grad = normal(y.sizes());
      y.backward(grad);
      ASSERT_TRUE(x.grad().defined()) << name;
      expect_near(x.grad(), grad.matmul(exact), 1e-5, name + ", input");
      expect_near(bias.grad(), grad.reshape({-1, 32}).sum(0), 1e-5, name + ", bias");
      EXPECT_FALSE(q.requires_grad());
    }
  }
}

TEST_F(ProductTest, ComputeDtypeIsUsedAndUndone) {
  const at::Tensor w = normal({32, 64}, at::kFloat, 0.1), x = normal({4, 64});
  const at::Tensor q = quantize(w, QuantizationConfig::nf4().compute_dtype(at::kBFloat16));
  EXPECT_EQ(compute_dtype(q), at::kBFloat16);
  const at::Tensor y = at::linear(x, q), truth = at::linear(x, lowbit::dequantize(q));
  EXPECT_EQ(y.scalar_type(), at::kFloat);
  EXPECT_LE(relative_error(y, truth), 6e-3);
  EXPECT_GT(relative_error(y, truth), 1e-4) << "computed in float32 after all";
}

TEST_F(ProductTest, EmbeddingReadsRows) {
  const at::Tensor table = normal({40, 64}, at::kBFloat16);
  const at::Tensor ids = integers(0, 40, {3, 5}, at::kLong);
  for (const auto& [name, config] : all_schemes()) {
    const at::Tensor q = quantize(table, config);
    const at::Tensor rows = at::embedding(q, ids);
    EXPECT_EQ(rows.scalar_type(), at::kBFloat16) << name;
    EXPECT_TRUE(at::equal(rows, at::embedding(lowbit::dequantize(q), ids))) << name;
  }
}

TEST_F(ProductTest, StackOfExperts) {
  constexpr int64_t kExperts = 3, kRows = 32, kCols = 64;
  const at::Tensor w = normal({kExperts, kRows, kCols}, at::kFloat, 0.1);
  const at::Tensor x = normal({kExperts, 5, kCols});
  for (const auto& [name, config] : all_schemes()) {
    const at::Tensor q = quantize(w, config), exact = lowbit::dequantize(q);
    ASSERT_EQ(q.sizes(), w.sizes()) << name;
    const double tolerance = product_tolerance(config, at::kFloat);
    expect_near(at::bmm(x, q.transpose(1, 2)), at::bmm(x, exact.transpose(1, 2)), tolerance, name);
    expect_near(at::matmul(x, q.mT()), at::bmm(x, exact.transpose(1, 2)), tolerance, name);
    for (int64_t e = -1; e < kExperts; ++e) {
      EXPECT_TRUE(is_quantized(q[e])) << name;
      EXPECT_TRUE(at::equal(lowbit::dequantize(q[e]), exact[e])) << name << ", expert " << e;
      expect_near(at::linear(x[0], q[e]), at::linear(x[0], exact[e]), tolerance, name);
    }
  }
}

TEST_F(ProductTest, ThreadsShareAWeight) {
  const at::Tensor q = quantize(normal({64, 64}), QuantizationConfig::nf4().double_quant(true));
  const at::Tensor x = normal({4, 64}), truth = at::linear(x, q);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 20; ++round) wrong += !at::equal(at::linear(x, q), truth);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace lowbit::test
