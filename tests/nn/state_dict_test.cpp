// State dicts of whole modules.
#include "lowbit/nn/state_dict.h"

#include <torch/nn.h>

#include "lowbit/quantize.h"
#include "support/error.h"
#include "support/golden.h"
#include "support/random.h"
#include "support/tolerance.h"

namespace lowbit::test {
namespace {

class StateDictTest : public RandomTest {
 protected:
  static torch::nn::Sequential net() {
    torch::nn::Sequential result(torch::nn::Linear(64, 32),
                                 torch::nn::BatchNorm1d(torch::nn::BatchNormOptions(32)),
                                 torch::nn::Linear(32, 16));
    result->to(device());
    return result;
  }
};

TEST_F(StateDictTest, HasTheEcosystemsKeys) {
  auto module = net();
  quantize_(*module,
            QuantizationConfig::nf4().double_quant(true).override("2", QuantizationConfig::int8()));
  std::vector<std::string> keys;
  for (const auto& [key, tensor] : nn::state_dict(*module)) keys.push_back(key);
  EXPECT_EQ(keys, (std::vector<std::string>{
                      "0.bias", "0.weight", "0.weight.absmax", "0.weight.nested_absmax",
                      "0.weight.nested_quant_map", "0.weight.quant_map",
                      "0.weight.quant_state.bitsandbytes__nf4", "1.bias", "1.num_batches_tracked",
                      "1.running_mean", "1.running_var", "1.weight", "2.SCB", "2.bias", "2.weight",
                      "2.weight_format"}));
}

TEST_F(StateDictTest, QuantizedIntoFloatIntoQuantized) {
  auto source = net();
  quantize_(*source, QuantizationConfig::nf4().double_quant(true));
  const auto entries = nn::state_dict(*source);
  const at::Tensor x = normal({5, 64});
  source->eval();
  const at::Tensor expected = source->forward(x);
  for (const bool quantize_first : {false, true}) {
    auto target = net();
    target->eval();
    if (quantize_first) quantize_(*target, QuantizationConfig::fp4());
    const auto report = nn::load_state_dict(*target, entries);
    EXPECT_TRUE(report.missing.empty() && report.unexpected.empty());
    EXPECT_TRUE(at::equal(target->forward(x), expected));
    EXPECT_TRUE(is_quantized(target[0]->as<torch::nn::Linear>()->weight));
  }
}

TEST_F(StateDictTest, FloatsIntoQuantizedAreQuantizedAsItWas) {
  auto floats = net(), target = net();
  quantize_(*target, QuantizationConfig::fp4().blocksize(128));
  nn::load_state_dict(*target, nn::state_dict(*floats));
  const at::Tensor& weight = target[0]->as<torch::nn::Linear>()->weight;
  ASSERT_TRUE(is_quantized(weight));
  const at::Tensor expected = quantize(floats[0]->as<torch::nn::Linear>()->weight,
                                       QuantizationConfig::fp4().blocksize(128));
  EXPECT_TRUE(same_bytes(packed_weight(weight), packed_weight(expected)));
}

TEST_F(StateDictTest, OnAnErrorNothingHasChanged) {
  auto module = net();
  quantize_(*module, QuantizationConfig::nf4());
  const auto& weight = module[0]->as<torch::nn::Linear>()->weight;
  const at::Tensor before = packed_weight(weight).clone();
  const at::Tensor bias = module[0]->as<torch::nn::Linear>()->bias.clone();
  const auto expect_refused = [&](nn::StateDict entries, const std::string& expected) {
    if (entries.count("0.bias") != 0) entries["0.bias"] = at::zeros({32});
    const std::string message = message_of([&] { nn::load_state_dict(*module, entries); });
    EXPECT_NE(message.find(expected), std::string::npos) << message;
    EXPECT_TRUE(same_bytes(packed_weight(weight), before));
    EXPECT_TRUE(at::equal(module[0]->as<torch::nn::Linear>()->bias, bias));
  };
  const auto good = nn::state_dict(*module);
  auto entries = good;
  entries.erase("2.bias");
  expect_refused(entries, "`entries` must be complete, got nothing for 2.bias");
  entries = good;
  entries["extra"] = at::zeros({1});
  expect_refused(entries, "`entries` must be the module's, got also extra");
  entries = good;
  entries["2.bias"] = at::zeros({17});
  expect_refused(entries, "`2.bias` must be of shape [16], got shape [17]");
  entries = good;
  entries["0.weight.absmax"] = at::zeros({3});
  expect_refused(entries, "absmax");
  entries = good;
  for (auto it = entries.begin(); it != entries.end();) {
    it = it->first.rfind("0.weight.", 0) == 0 ? entries.erase(it) : std::next(it);
  }
  entries["0.weight"] = at::full({32, 64}, NAN);
  expect_refused(entries, "`0.weight` must be finite, got 2048 NaN or infinite elements");

  entries = good;
  entries["extra"] = at::zeros({1});
  entries.erase("2.bias");
  const auto report = nn::load_state_dict(*module, entries, /*strict=*/false);
  EXPECT_EQ(report.missing, std::vector<std::string>{"2.bias"});
  EXPECT_EQ(report.unexpected, std::vector<std::string>{"extra"});
}

TEST_F(StateDictTest, AGoldenLayerLoadsIntoTorchsLinear) {
  const Golden golden("modules.safetensors");
  torch::nn::Linear linear(256, 128);
  linear->to(device(), at::kBFloat16);
  nn::load_state_dict(*linear, golden.with_prefix("l4.nf4.1.bf16.sd."));
  const at::Tensor y = linear->forward(golden["x5"].to(at::kBFloat16));
  EXPECT_TRUE(is_near(y, golden["l4.nf4.1.bf16.y5"], kMatmulGolden));
}

}  // namespace
}  // namespace lowbit::test
