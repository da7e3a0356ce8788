// quantize_ and dequantize_ on torch::nn modules.
#include <torch/nn.h>

#include <sstream>

#include "lowbit/quantize.h"
#include "support/error.h"
#include "support/golden.h"
#include "support/random.h"
#include "support/tolerance.h"

namespace lowbit::test {
namespace {

namespace nn = torch::nn;

class QuantizeModuleTest : public RandomTest {
 protected:
  QuantizeModuleTest() {
    torch::manual_seed(seed());
    reset_fallback_count();
  }
  ~QuantizeModuleTest() override {
    EXPECT_EQ(fallback_count(), 0) << "fell back in " << last_fallback();
  }
};

/// Attention and MLP, as models of any origin write them.
struct BlockImpl : nn::Module {
  explicit BlockImpl(int64_t dim) {
    norm = register_module("norm", nn::LayerNorm(nn::LayerNormOptions({dim})));
    qkv = register_module("qkv", nn::Linear(dim, 3 * dim));
    out = register_module("out", nn::Linear(nn::LinearOptions(dim, dim).bias(false)));
    mlp = register_module(
        "mlp", nn::Sequential(nn::Linear(dim, 2 * dim), nn::GELU(), nn::Linear(2 * dim, dim)));
  }
  at::Tensor forward(at::Tensor x) {
    const auto parts = qkv->forward(norm->forward(x)).chunk(3, -1);
    x = x + out->forward(at::scaled_dot_product_attention(parts[0], parts[1], parts[2]));
    return x + mlp->forward(norm->forward(x));
  }
  nn::LayerNorm norm{nullptr};
  nn::Linear qkv{nullptr}, out{nullptr};
  nn::Sequential mlp{nullptr};
};
TORCH_MODULE(Block);

struct ModelImpl : nn::Module {
  ModelImpl() {
    embed = register_module("embed", nn::Embedding(50, 64));
    blocks = register_module("blocks", nn::ModuleList());
    for (int i = 0; i < 2; ++i) blocks->push_back(Block(64));
    head = register_module("head", nn::Linear(nn::LinearOptions(64, 50).bias(false)));
    to(device());
  }
  at::Tensor forward(const at::Tensor& ids) {
    at::Tensor x = embed->forward(ids);
    for (const auto& block : *blocks) x = block->as<Block>()->forward(x);
    return head->forward(x);
  }
  nn::Embedding embed{nullptr};
  nn::ModuleList blocks{nullptr};
  nn::Linear head{nullptr};
};
TORCH_MODULE(Model);

struct ExpertsImpl : nn::Module {
  ExpertsImpl() {
    stack = register_parameter("stack", at::randn({4, 32, 64}) * 0.1);
    positions = register_parameter("positions", at::randn({1, 16, 64}));
    to(device());
  }
  at::Tensor forward(const at::Tensor& x, int64_t expert) { return at::linear(x, stack[expert]); }
  at::Tensor stack, positions;
};
TORCH_MODULE(Experts);

TEST_F(QuantizeModuleTest, AWholeModelInPlace) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    Model model;
    model->to(dtype);
    const at::Tensor ids = integers(0, 50, {2, 7}, at::kLong);
    const at::Tensor before = model->forward(ids).detach();
    const auto report = quantize_(*model, QuantizationConfig::int8(6.0));
    EXPECT_EQ(report.layers.size(), 9u);
    EXPECT_TRUE(is_quantized(model->head->weight)) << "members see the quantized weight";
    EXPECT_FALSE(model->head->weight.requires_grad());
    EXPECT_FALSE(is_quantized(model->embed->weight));
    const at::Tensor after = model->forward(ids);
    EXPECT_LT(relative_error(after, before), 0.05);
    EXPECT_GT(relative_error(after, before), 0.0);

    // The same numbers as the dequantized model's, without a fallback.
    quantize_(*model, QuantizationConfig::nf4());
    dequantize_(*model);
    quantize_(*model, QuantizationConfig::nf4().double_quant(true));
    const at::Tensor fused = model->forward(ids);
    EXPECT_EQ(dequantize_(*model), 9);
    EXPECT_FALSE(is_quantized(model->head->weight));
    EXPECT_LT(relative_error(fused, model->forward(ids)), dtype == at::kFloat ? 1e-5 : 2e-2);
  }
}

TEST_F(QuantizeModuleTest, MovesCopiesAndModesKeepThePayload) {
  Model model;
  quantize_(*model, QuantizationConfig::nf4().double_quant(true));
  const at::Tensor weight = model->head->weight;
  const at::Tensor codes = packed_weight(weight).clone();
  model->to(at::kHalf);
  model->to(at::kCPU);
  model->to(device());
  model->to(at::kBFloat16);
  model->eval();
  model->train();
  EXPECT_EQ(weight.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(same_bytes(packed_weight(model->head->weight), codes));
  int64_t quantized = 0;
  for (const at::Tensor& parameter : model->parameters()) quantized += is_quantized(parameter);
  EXPECT_EQ(quantized, 9);
  EXPECT_EQ(model->buffers().size(), 0u);
  const at::Tensor ids = integers(0, 50, {1, 3}, at::kLong);
  EXPECT_EQ(model->forward(ids).scalar_type(), at::kBFloat16);
}

TEST_F(QuantizeModuleTest, CloneIsDeep) {
  nn::Sequential net(nn::Linear(64, 32), nn::ReLU(), nn::Linear(32, 16));
  net->to(device());
  quantize_(*net, QuantizationConfig::nf4());
  auto copy = std::dynamic_pointer_cast<nn::SequentialImpl>(net->clone());
  const at::Tensor& mine = net[0]->as<nn::Linear>()->weight;
  const at::Tensor& its = copy->ptr(0)->as<nn::Linear>()->weight;
  ASSERT_TRUE(is_quantized(its));
  EXPECT_FALSE(its.requires_grad());
  EXPECT_NE(packed_weight(its).const_data_ptr(), packed_weight(mine).const_data_ptr());
  const at::Tensor x = normal({3, 64});
  EXPECT_TRUE(at::equal(copy->forward(x), net->forward(x)));
}

TEST_F(QuantizeModuleTest, OnTheStackAndAsARootLinear) {
  nn::LinearImpl linear(64, 32);
  linear.to(device());
  const auto report = quantize_(linear, QuantizationConfig::nf4());
  ASSERT_EQ(report.layers.size(), 1u);
  EXPECT_EQ(report.layers[0].name, "weight");
  EXPECT_TRUE(is_quantized(linear.weight));
}

TEST_F(QuantizeModuleTest, GradientsFlowToInputsAndOtherParameters) {
  nn::Sequential net(nn::Linear(64, 32), nn::SiLU(), nn::Linear(32, 8));
  net->to(device());
  quantize_(*net, QuantizationConfig::nf4());
  const at::Tensor x = normal({5, 64}).requires_grad_(true);
  net->forward(x).sum().backward();
  EXPECT_TRUE(x.grad().defined());
  EXPECT_TRUE(net[0]->as<nn::Linear>()->bias.grad().defined());
  EXPECT_FALSE(net[0]->as<nn::Linear>()->weight.grad().defined());
}

TEST_F(QuantizeModuleTest, TiedWeightsAreQuantizedOnceAndStayTied) {
  Model model;
  model->head->register_parameter("tied", model->embed->weight);
  auto report = quantize_(
      *model, QuantizationConfig::nf4().quantize_embeddings(true).only({"embed", "tied"}));
  EXPECT_TRUE(report.layers.empty()) << "tied to a parameter that is left alone";
  EXPECT_FALSE(is_quantized(model->embed->weight));

  nn::Sequential twice;
  nn::Linear shared(32, 32);
  twice->push_back(shared);
  twice->push_back(nn::ReLU());
  twice->push_back(shared);
  report = quantize_(*twice, QuantizationConfig::nf4());
  ASSERT_EQ(report.layers.size(), 1u);
  EXPECT_EQ(report.layers[0].tied, std::vector<std::string>{"2.weight"});
  EXPECT_TRUE(is_quantized(shared->weight));

  // Two tensors of one memory.
  nn::Linear a(32, 32), b(32, 32);
  b->weight.set_data(a->weight.detach());
  nn::Sequential pair(a, b);
  report = quantize_(*pair, QuantizationConfig::nf4());
  ASSERT_EQ(report.layers.size(), 1u);
  EXPECT_EQ(packed_weight(a->weight).const_data_ptr(), packed_weight(b->weight).const_data_ptr());
  dequantize_(*pair);
  EXPECT_EQ(a->weight.const_data_ptr(), b->weight.const_data_ptr());
}

TEST_F(QuantizeModuleTest, ExpertStacksAreQuantizedAndTablesAreNot) {
  Experts experts;
  const at::Tensor x = normal({3, 64});
  const at::Tensor before = experts->forward(x, 2).detach();
  const auto report = quantize_(*experts, QuantizationConfig::nf4().double_quant(true));
  ASSERT_EQ(report.layers.size(), 1u);
  EXPECT_EQ(report.layers[0].name, "stack");
  EXPECT_TRUE(is_quantized(experts->stack));
  EXPECT_LT(relative_error(experts->forward(x, 2), before), 0.13);
  nn::Sequential convolution(nn::Conv1d(64, 32, 16));
  EXPECT_TRUE(quantize_(*convolution, QuantizationConfig::nf4()).layers.empty());
}

TEST_F(QuantizeModuleTest, SkipOnlyFilterOverrideAndEmbeddings) {
  using Config = QuantizationConfig;
  const auto names = [](const Config& config) {
    Model model;
    std::vector<std::string> result;
    for (const auto& layer : quantize_(*model, config).layers) result.push_back(layer.name);
    return result;
  };
  EXPECT_EQ(names(Config::nf4().only({"head"})), std::vector<std::string>{"head.weight"});
  EXPECT_EQ(names(Config::nf4().only({"blocks.*.out"})),
            (std::vector<std::string>{"blocks.0.out.weight", "blocks.1.out.weight"}));
  EXPECT_EQ(names(Config::nf4().skip({"blocks"})), std::vector<std::string>{"head.weight"});
  EXPECT_EQ(names(Config::nf4().skip({"blocks.1"})).size(), 5u);
  EXPECT_EQ(names(Config::nf4().quantize_embeddings(true).only({"embed"})),
            std::vector<std::string>{"embed.weight"});
  EXPECT_EQ(names(Config::nf4().filter([](const std::string& layer, const at::Tensor& weight) {
              return layer == "head" && weight.size(0) == 50;
            })),
            std::vector<std::string>{"head.weight"});
  Model model;
  quantize_(*model, Config::nf4()
                        .override("head", Config::int8_weight_only())
                        .override("blocks.0", Config::fp4().blocksize(128)));
  EXPECT_EQ(quant_scheme(model->head->weight), QuantScheme::kInt8WeightOnly);
  EXPECT_EQ(quant_state(model->blocks[0]->as<Block>()->out->weight).blocksize, 128);
  EXPECT_EQ(quant_scheme(model->blocks[1]->as<Block>()->out->weight), QuantScheme::kNF4);
}

TEST_F(QuantizeModuleTest, MatchesWholeComponents) {
  EXPECT_TRUE(matches_path("layers.1.mlp.weight", "layers.1"));
  EXPECT_FALSE(matches_path("layers.10.mlp.weight", "layers.1"));
  EXPECT_TRUE(matches_path("a.b.c", "b"));
  EXPECT_TRUE(matches_path("a.q_proj.c", "*_proj"));
  EXPECT_FALSE(matches_path("a.b", "a.b.c"));
  EXPECT_FALSE(matches_path("ab", "a"));
}

TEST_F(QuantizeModuleTest, DryRunReportsAndDoesNothing) {
  Model planned, model;
  const auto config = QuantizationConfig::nf4().double_quant(true);
  const auto plan = quantize_(*planned, QuantizationConfig(config).dry_run(true));
  const auto report = quantize_(*model, config);
  EXPECT_FALSE(is_quantized(planned->head->weight));
  ASSERT_EQ(plan.layers.size(), report.layers.size());
  for (size_t i = 0; i < plan.layers.size(); ++i) {
    EXPECT_EQ(plan.layers[i].bytes_after, report.layers[i].bytes_after);
    EXPECT_TRUE(std::isnan(plan.layers[i].relative_error));
    EXPECT_GT(report.layers[i].relative_error, 0.01);
    EXPECT_LT(report.layers[i].relative_error, 0.13);
  }
  EXPECT_EQ(plan.bytes_before(), report.bytes_before());
  EXPECT_EQ(plan.bytes_after(), report.bytes_after());
}

TEST_F(QuantizeModuleTest, ReportIsATable) {
  nn::Sequential net(nn::Linear(64, 128), nn::LayerNorm(nn::LayerNormOptions({128})));
  net->to(at::kBFloat16);
  std::ostringstream text;
  text << quantize_(*net, QuantizationConfig::nf4().double_quant(true));
  const std::string report = text.str();
  for (const char* expected :
       {"weight", "0.weight", "128 x 64", "bfloat16 -> nf4, blocksize 64, double quant",
        "16.00 KiB", "1 weight", "left alone:", "1-D: a bias or a norm", "all parameters: "}) {
    EXPECT_NE(report.find(expected), std::string::npos) << expected << "\n" << report;
  }
}

TEST_F(QuantizeModuleTest, QuantizedLayersAreLeftAlone) {
  nn::Sequential net(nn::Linear(64, 32), nn::Linear(32, 64));
  quantize_(*net, QuantizationConfig::nf4().only({"0"}));
  const auto report = quantize_(*net, QuantizationConfig::int8());
  ASSERT_EQ(report.layers.size(), 1u);
  EXPECT_EQ(report.layers[0].name, "1.weight");
  EXPECT_EQ(quant_scheme(net[0]->as<nn::Linear>()->weight), QuantScheme::kNF4);
  bool said = false;
  for (const auto& left : report.left_alone) {
    said = said || (left.name == "0.weight" && left.reason.rfind("already quantized", 0) == 0);
  }
  EXPECT_TRUE(said);
}

TEST_F(QuantizeModuleTest, OnAnErrorNothingHasChanged) {
  Model model;
  {
    const torch::NoGradGuard no_grad;
    model->head->weight[3][4] = NAN;
    model->head->weight[5][6] = INFINITY;
    model->head->weight[5][7] = INFINITY;
  }
  const std::string expected =
      "lowbit::quantize_: `head.weight` must be finite, got 3 NaN or infinite elements of 3200. "
      "allow_nonfinite(true) quantizes it all the same, and loses their blocks.";
  EXPECT_EQ(message_of([&] { quantize_(*model, QuantizationConfig::nf4()); }), expected);
  for (const auto& item : model->named_parameters()) {
    EXPECT_FALSE(is_quantized(item.value())) << item.key();
    EXPECT_TRUE(item.value().requires_grad()) << item.key();
  }
  EXPECT_EQ(message_of([&] { quantize_(*model, QuantizationConfig::nf4().blocksize(100)); }),
            "lowbit::quantize_: `blocksize` must be a power of two from 32 to 4096, got 100.");
  EXPECT_EQ(quantize_(*model, QuantizationConfig::nf4().allow_nonfinite(true)).layers.size(), 9u);
}

TEST_F(QuantizeModuleTest, DequantizeTakesADtype) {
  nn::Linear linear(64, 32);
  linear->to(device());
  quantize_(*linear, QuantizationConfig::nf4());
  const at::Tensor expected = lowbit::dequantize(linear->weight, at::kBFloat16);
  EXPECT_EQ(dequantize_(*linear, at::kBFloat16), 1);
  EXPECT_TRUE(same_bytes(linear->weight, expected));
  EXPECT_EQ(dequantize_(*linear), 0);
  linear->weight.requires_grad_(true);
  EXPECT_TRUE(linear->weight.requires_grad());
}

}  // namespace
}  // namespace lowbit::test
