// Operators that do not know quantized tensors: right, counted, and never written through.
#include <ATen/ATen.h>

#include <sstream>

#include "support/error.h"
#include "support/random.h"
#include "tensor/schemes.h"

namespace lowbit::test {
namespace {

class FallbackTest : public RandomTest {
 protected:
  FallbackTest() { reset_fallback_count(); }
};

TEST_F(FallbackTest, AnyOperatorWorksAndIsCounted) {
  for (const auto& [name, config] : all_schemes()) {
    const at::Tensor q = quantize(normal({32, 64}), config), exact = lowbit::dequantize(q);
    reset_fallback_count();
    EXPECT_TRUE(at::equal(q + 1, exact + 1)) << name;
    EXPECT_EQ(fallback_count(), 1) << name;
    EXPECT_EQ(last_fallback().rfind("aten::add", 0), 0u) << last_fallback();
    EXPECT_TRUE(at::equal(q.reshape({64, 32}), exact.reshape({64, 32}))) << name;
    EXPECT_TRUE(at::equal(q.t().flatten(), exact.t().flatten())) << name;
    EXPECT_TRUE(at::equal(q.t().unsqueeze(1).expand({64, 3, 32}),
                          exact.t().unsqueeze(1).expand({64, 3, 32})));
    EXPECT_TRUE(at::equal(at::cat({q, q}), at::cat({exact, exact}))) << name;
    EXPECT_TRUE(at::equal(q.slice(0, 3, 9), exact.slice(0, 3, 9))) << name;
    EXPECT_TRUE(at::equal(q.view({64, 32}), exact.view({64, 32}))) << name;
    EXPECT_TRUE(at::equal(q.abs().sum(), exact.abs().sum())) << name;
    EXPECT_GE(fallback_count(), 5) << name;
  }
}

TEST_F(FallbackTest, GradientsFlowThroughIt) {
  const at::Tensor q = quantize(normal({32, 64}), QuantizationConfig::nf4());
  const at::Tensor x = normal({32, 64}).requires_grad_(true);
  (x * q).sum().backward();
  EXPECT_TRUE(at::equal(x.grad(), lowbit::dequantize(q)));
}

TEST_F(FallbackTest, WritingIntoAQuantizedWeightIsRefused) {
  at::Tensor q = quantize(normal({32, 64}), QuantizationConfig::nf4());
  const at::Tensor before = lowbit::dequantize(q);
  EXPECT_NE(message_of([&] { q.add_(1); })
                .find("must be a dense tensor, got a quantized one. A quantized weight cannot be "
                      "changed in place: lowbit::dequantize it, change that, quantize it again."),
            std::string::npos);
  EXPECT_NE(message_of([&] { q.zero_(); }), "(nothing was thrown)");
  EXPECT_TRUE(at::equal(lowbit::dequantize(q), before));
}

TEST_F(FallbackTest, ItNeverRequiresGrad) {
  at::Tensor q = quantize(normal({32, 64}).requires_grad_(true), QuantizationConfig::nf4());
  EXPECT_FALSE(q.requires_grad());
}

TEST_F(FallbackTest, PrintsTheValuesItStandsFor) {
  const at::Tensor q = quantize(normal({2, 64}), QuantizationConfig::nf4());
  std::ostringstream quantized, dense;
  quantized << q;
  dense << lowbit::dequantize(q);
  EXPECT_EQ(quantized.str(), dense.str());
}

}  // namespace
}  // namespace lowbit::test
