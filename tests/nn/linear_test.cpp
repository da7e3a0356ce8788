// Linear4bit, LinearNF4, LinearFP4 and Linear8bitLt.
#include "lowbit/nn/linear.h"

#include <torch/nn/modules/container/sequential.h>
#include <torch/serialize.h>

#include <sstream>

#include "lowbit/functional.h"
#include "support/error.h"
#include "support/golden.h"
#include "support/random.h"
#include "support/tolerance.h"

namespace lowbit::test {
namespace {

using nn::Linear4bit;
using nn::Linear4bitOptions;
using nn::Linear8bitLt;
using nn::Linear8bitLtOptions;

class LayerTest : public RandomTest {
 protected:
  LayerTest() { reset_fallback_count(); }
  ~LayerTest() override { EXPECT_EQ(fallback_count(), 0) << last_fallback(); }
};

torch::nn::Linear golden_linear(const Golden& golden, at::ScalarType dtype) {
  torch::nn::Linear linear(256, 128);
  linear->weight.set_data(golden["w"].to(dtype));
  linear->bias.set_data(golden["b"]);
  return linear;
}

TEST_F(LayerTest, GoldenLinear4bit) {
  const Golden golden("modules.safetensors");
  const std::pair<const char*, at::ScalarType> dtypes[] = {
      {"fp32", at::kFloat}, {"bf16", at::kBFloat16}, {"fp16", at::kHalf}};
  for (const char* type : {"nf4", "fp4"}) {
    for (const bool nested : {false, true}) {
      for (const auto& [dtype_name, dtype] : dtypes) {
        const std::string prefix = c10::str("l4.", type, ".", nested ? 1 : 0, ".", dtype_name, ".");
        Linear4bit layer =
            Linear4bit::from(golden_linear(golden, dtype),
                             Linear4bitOptions(0, 0).quant_type(type).double_quant(nested));
        const auto expected = golden.with_prefix(prefix + "sd.");
        const auto entries = layer->state_dict();
        ASSERT_EQ(entries.size(), expected.size()) << prefix;
        for (const auto& [key, tensor] : expected) {
          ASSERT_EQ(entries.count(key), 1u) << prefix << key;
          // FP4 codes of 16-bit weights depend on the device's reciprocal, and the nested offset on
          // the device's order of summation.
          if (key == "weight" && std::string(type) == "fp4" && dtype != at::kFloat) continue;
          if (nested && key.find("quant_state") != std::string::npos) continue;
          if (nested && (key == "weight.absmax" || key == "weight.nested_absmax")) continue;
          EXPECT_TRUE(same_bytes(entries.at(key), tensor)) << prefix << key;
        }
        // The recorded weights through the layer give the recorded outputs.
        layer->load_state_dict(expected);
        for (const int m : {1, 2, 5, 16, 64}) {
          const at::Tensor x = golden[c10::str("x", m)].to(dtype);
          const at::Tensor y = layer->forward(x);
          EXPECT_EQ(y.scalar_type(), dtype);
          EXPECT_TRUE(is_near(y, golden[c10::str(prefix, "y", m)], kMatmulGolden)) << prefix << m;
        }
        const at::Tensor x = golden["x16"].to(dtype).requires_grad_(true);
        layer->forward(x).sum().backward();
        EXPECT_TRUE(is_near(x.grad(), golden[prefix + "gx"], kRoundedWeights)) << prefix;
        EXPECT_EQ(layer->bias.scalar_type(), at::kFloat) << "forward must not cast the bias";
      }
    }
  }
}

TEST_F(LayerTest, GoldenLinear8bitLt) {
  const Golden golden("modules.safetensors");
  for (const char* threshold : {"0.0", "6.0"}) {
    const std::string prefix = c10::str("l8.", threshold, ".");
    Linear8bitLt layer = Linear8bitLt::from(
        golden_linear(golden, at::kHalf),
        Linear8bitLtOptions(0, 0).has_fp16_weights(false).threshold(std::stod(threshold)));
    const auto expected = golden.with_prefix(prefix + "sd.");
    const auto entries = layer->state_dict();
    ASSERT_EQ(entries.size(), expected.size()) << prefix;
    for (const auto& [key, tensor] : expected) {
      ASSERT_EQ(entries.count(key), 1u) << prefix << key;
      // Codes on a rounding tie, which CUDA's approximate reciprocal decides the other way.
      const int64_t ties = key == "weight" ? 2 : 0;
      EXPECT_LE(entries.at(key).ne(tensor).sum().item<int64_t>(), ties) << prefix << key;
    }
    layer->load_state_dict(expected);
    const std::pair<const char*, at::ScalarType> dtypes[] = {{"bf16", at::kBFloat16},
                                                             {"fp16", at::kHalf}};
    for (const auto& [dtype_name, dtype] : dtypes) {
      const at::Tensor x = golden["x16o"].to(dtype).requires_grad_(true);
      const at::Tensor y = layer->forward(x);
      EXPECT_TRUE(is_near(y, golden[c10::str(prefix, dtype_name, ".y")], kInt8Golden)) << prefix;
      y.sum().backward();
      EXPECT_TRUE(is_near(x.grad(), golden[c10::str(prefix, dtype_name, ".gx")], kRoundedWeights))
          << prefix;
    }
  }
}

TEST_F(LayerTest, DefaultsAreTheEcosystems) {
  Linear4bit layer(64, 32);
  EXPECT_EQ(quant_scheme(layer->weight), QuantScheme::kFP4);
  EXPECT_TRUE(quant_state(layer->weight).nested());
  EXPECT_EQ(quant_state(layer->weight).blocksize, 64);
  EXPECT_FALSE(layer->weight.requires_grad());
  EXPECT_TRUE(layer->bias.requires_grad());
  EXPECT_EQ(quant_scheme(nn::LinearNF4(64, 32)->weight), QuantScheme::kNF4);
  EXPECT_EQ(quant_scheme(nn::LinearFP4(64, 32)->weight), QuantScheme::kFP4);
  Linear8bitLt layer8(64, 32);
  EXPECT_TRUE(layer8->options.has_fp16_weights());
  EXPECT_TRUE(layer8->weight.requires_grad());
  Linear4bit chosen(
      Linear4bitOptions(64, 32).bias(false).blocksize(128).quant_storage(at::kBFloat16));
  EXPECT_FALSE(chosen->bias.defined());
  EXPECT_EQ(quant_state(chosen->weight).blocksize, 128);
  EXPECT_EQ(packed_weight(chosen->weight).scalar_type(), at::kBFloat16);
}

TEST_F(LayerTest, ComputeDtypeSticksToTheFirstInput) {
  const at::Tensor x = normal({4, 64});
  Linear4bit layer(Linear4bitOptions(64, 32).quant_type("nf4"));
  layer->to(device());
  layer->forward(x.to(at::kHalf));  // leaves it free
  const at::Tensor exact = at::linear(x, lowbit::dequantize(layer->weight), layer->bias);
  EXPECT_LT(relative_error(layer->forward(x), exact), 1e-5);
  EXPECT_LT(relative_error(layer->forward(x.to(at::kBFloat16)), layer->forward(x)), 1e-2);

  Linear4bit first(Linear4bitOptions(64, 32).quant_type("nf4"));
  first->to(device());
  first->forward(x.to(at::kBFloat16));
  const at::Tensor y = first->forward(x);
  const at::Tensor truth = at::linear(x, lowbit::dequantize(first->weight), first->bias);
  EXPECT_EQ(y.scalar_type(), at::kFloat);
  EXPECT_GT(relative_error(y, truth), 1e-4);
  EXPECT_LT(relative_error(y, truth), 1e-2);
}

TEST_F(LayerTest, WorksInSequentialSavesLoadsAndClones) {
  torch::nn::Sequential net(nn::LinearNF4(64, 32), torch::nn::ReLU(),
                            Linear8bitLt(Linear8bitLtOptions(32, 16).has_fp16_weights(false)));
  torch::nn::Sequential other(nn::LinearNF4(64, 32), torch::nn::ReLU(),
                              Linear8bitLt(Linear8bitLtOptions(32, 16).has_fp16_weights(false)));
  const at::Tensor x = normal({3, 64});
  const at::Tensor y = net->forward(x);
  std::stringstream file;
  torch::save(net, file);
  torch::load(other, file);
  EXPECT_TRUE(at::equal(other->forward(x), y));
  auto copy = std::dynamic_pointer_cast<nn::LinearNF4Impl>(net->ptr(0)->clone());
  ASSERT_NE(copy, nullptr);
  EXPECT_TRUE(same_bytes(packed_weight(copy->weight),
                         packed_weight(net->ptr(0)->as<nn::LinearNF4>()->weight)));
  std::ostringstream text;
  text << *net->ptr(0);
  EXPECT_EQ(text.str(),
            "lowbit::nn::LinearNF4(in_features=64, out_features=32, bias=true, nf4, blocksize 64, "
            "double quant)");
  net->to(at::kBFloat16);
  EXPECT_EQ(net->forward(x.to(at::kBFloat16)).scalar_type(), at::kBFloat16);
}

TEST_F(LayerTest, DequantizedLayersWorkAndQuantizeAgain) {
  Linear4bit layer(Linear4bitOptions(64, 32).quant_type("nf4"));
  layer->to(device());
  const at::Tensor x = normal({3, 64}), y = layer->forward(x);
  dequantize_(*layer);
  EXPECT_FALSE(is_quantized(layer->weight));
  EXPECT_LT(relative_error(layer->forward(x), y), 1e-5);
  layer->quantize();
  EXPECT_TRUE(is_quantized(layer->weight));
  const at::Tensor w = normal({32, 64});
  layer->quantize(w);
  EXPECT_LT(relative_error(lowbit::dequantize(layer->weight), w), 0.13);
}

TEST_F(LayerTest, Fp16WeightsTrain) {
  for (const double threshold : {0.0, 3.0}) {
    Linear8bitLt layer(Linear8bitLtOptions(64, 32).threshold(threshold));
    layer->to(device());
    const at::Tensor x = normal({2, 9, 64}).requires_grad_(true);
    const at::Tensor y = layer->forward(x);
    EXPECT_LT(relative_error(y, at::linear(x, layer->weight, layer->bias)), 0.02);
    const at::Tensor grad = normal({2, 9, 32});
    y.backward(grad);
    const at::Tensor rows = grad.reshape({-1, 32}), inputs = x.detach().reshape({-1, 64});
    EXPECT_LT(relative_error(layer->weight.grad(), rows.t().mm(inputs)), 1e-5);
    EXPECT_LT(relative_error(layer->bias.grad(), rows.sum(0)), 1e-5);
    EXPECT_LT(relative_error(x.grad(), grad.matmul(layer->weight)), 0.012);
    {
      const torch::NoGradGuard no_grad;
      layer->weight.mul_(-1);
    }
    layer->eval();
    const at::Tensor flipped = layer->forward(x) - layer->bias;
    EXPECT_LT(relative_error(flipped, -(y - layer->bias)), 1e-5) << "a stale quantized weight";
  }
}

TEST_F(LayerTest, BadInput) {
  EXPECT_EQ(message_of([] { Linear4bit(0, 4); }),
            "lowbit::nn::Linear4bit: `in_features` must be positive, got 0.");
  EXPECT_EQ(message_of([] { Linear4bit(Linear4bitOptions(64, 4).quant_type("int4")); }),
            "lowbit: `quant_type` must be \"nf4\" or \"fp4\", got \"int4\".");
  EXPECT_EQ(message_of([] { Linear4bit(Linear4bitOptions(64, 4).blocksize(33)); }),
            "lowbit::nn::Linear4bit: `blocksize` must be a power of two from 32 to 4096, got 33.");
  Linear4bit layer(64, 32);
  EXPECT_EQ(message_of([&] {
              layer->quantize(normal({4, 4}));
            }),
            "lowbit::nn::Linear4bit: `weight` must be [32, 64], got shape [4, 4].");
  EXPECT_NE(message_of([&] {
              layer->forward(normal({2, 63}));
            }).find("`input` must be [..., 64]"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              layer->forward(at::zeros({2, 64}, at::kInt));
            }).find("`input` must be of a floating-point dtype, got int32"),
            std::string::npos);
  // Neither has decided what the layer computes in.
  const at::Tensor x = normal({2, 64});
  EXPECT_EQ(layer->forward(x.to(at::kBFloat16)).scalar_type(), at::kBFloat16);
  EXPECT_GT(relative_error(layer->forward(x),
                           at::linear(x, lowbit::dequantize(layer->weight), layer->bias)),
            1e-4);
}

}  // namespace
}  // namespace lowbit::test
