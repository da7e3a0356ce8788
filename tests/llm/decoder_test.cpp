// The fused CPU decoder against the modules of torch ops, with and without a cache, for every kind
// of weight.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "lowbit/llm/auto.h"
#include "lowbit/quantize.h"
#include "tiny.h"

namespace lowbit::llm {
namespace {

using testing::random_ids;
using testing::relative_error;

struct Variant {
  const char* name;
  io::ModelConfig config;
  FromPretrainedOptions options;
  double limit;
};
void PrintTo(const Variant& v, std::ostream* out) { *out << v.name; }

BitsAndBytesConfig nf4(bool double_quant) {
  return {.load_in_4bit = true,
          .bnb_4bit_quant_type = "nf4",
          .bnb_4bit_use_double_quant = double_quant};
}

std::vector<Variant> variants() {
  const io::ModelConfig base = testing::tiny_config();
  std::vector<Variant> all;
  const auto add = [&](const char* name, auto change, FromPretrainedOptions options = {},
                       double limit = 2e-5) {
    io::ModelConfig c = base;
    change(c);
    all.push_back({name, c, options, limit});
  };
  const auto nothing = [](io::ModelConfig&) {};
  add("float32", nothing);
  add("tied", [](io::ModelConfig& c) { c.tie_word_embeddings = true; });
  add("biases", [](io::ModelConfig& c) { c.attention_bias = c.mlp_bias = true; });
  add("window", [](io::ModelConfig& c) {
    c.model_type = "mistral";
    c.sliding_window = 7;
  });
  add("linear_rope", [](io::ModelConfig& c) {
    c.rope.type = "linear";
    c.rope.factor = 4.0;
    c.rope.original_max_position_embeddings = 32;
  });
  add("llama3_rope", [](io::ModelConfig& c) {
    c.rope.type = "llama3";
    c.rope.factor = 8.0;
    c.rope.original_max_position_embeddings = 32;
  });
  add("one_kv_head", [](io::ModelConfig& c) { c.num_key_value_heads = 1; });
  add("odd_head_dim", [](io::ModelConfig& c) {
    c.head_dim = 12;
    c.hidden_size = 36;
    c.num_attention_heads = 3;
    c.num_key_value_heads = 3;
    c.intermediate_size = 50;
  });
  add("nf4", nothing, {.quantization_config = nf4(false)});
  add("nf4_nested", nothing, {.quantization_config = nf4(true)});
  add("fp4", nothing, {.quantization_config = BitsAndBytesConfig{.load_in_4bit = true}});
  // Activations in 8 bits carry an error of 1 %; two runs whose last bits differ carry two of them.
  add("int8", nothing, {.quantization_config = BitsAndBytesConfig{.load_in_8bit = true}}, 3e-2);
  add("nf4_8bit_tables", [](io::ModelConfig& c) { c.tie_word_embeddings = true; },
      {.quantization_config = nf4(true), .quantize_embeddings = true});
  add("untied_8bit_tables", nothing, {.quantize_embeddings = true});
  add("bfloat16", nothing, {.dtype = at::kBFloat16}, 3e-2);
  add("float16", nothing, {.dtype = at::kHalf}, 5e-3);
  add("nf4_bfloat16", nothing, {.quantization_config = nf4(true), .dtype = at::kBFloat16}, 3e-2);
  return all;
}

class Decoder : public ::testing::TestWithParam<Variant> {
 protected:
  void SetUp() override {
    seed_ = std::random_device{}();
    torch::manual_seed(seed_);
    testing::write_checkpoint(directory_.str(), GetParam().config,
                              testing::random_weights(GetParam().config));
    model_ = AutoModelForCausalLM::from_pretrained(directory_.str(), GetParam().options);
  }
  void TearDown() override {
    if (HasFailure()) std::printf("seed %llu\n", static_cast<unsigned long long>(seed_));
  }
  uint64_t seed_ = 0;
  testing::TemporaryDirectory directory_;
  CausalLM model_;
};

TEST_P(Decoder, FusedIsTheModules) {
  reset_fallback_count();
  for (const int64_t tokens : {1, 2, 9, 40, 100}) {
    const at::Tensor ids = torch::randint(GetParam().config.vocab_size, {1, tokens}, torch::kLong);
    const at::Tensor expected = model_.module()->forward(ids);
    EXPECT_LE(relative_error(model_.forward(ids), expected), GetParam().limit) << tokens;
  }
  EXPECT_EQ(fallback_count(), 0) << last_fallback();
}

TEST_P(Decoder, StepsWithACacheAreOneForward) {
  const std::vector<int64_t> ids = random_ids(60, GetParam().config.vocab_size);
  const at::Tensor all = model_.logits(ids);
  ASSERT_EQ(all.sizes(), (std::vector<int64_t>{60, GetParam().config.vocab_size}));
  KVCache cache = model_.new_cache();
  int64_t done = 0;
  // LLM.int8() looks for outlier columns in all the tokens of one call.
  const double limit = std::max(GetParam().limit, 1e-4);
  for (const int64_t part : {17, 1, 1, 30, 1, 2, 8}) {
    const at::Tensor logits =
        model_.logits({ids.begin() + done, ids.begin() + done + part}, &cache);
    EXPECT_LE(relative_error(logits, all.narrow(0, done, part)), limit) << done;
    done += part;
    EXPECT_EQ(cache.length(), done);
  }
  cache.truncate(20);
  const at::Tensor again = model_.next_logits({ids.begin() + 20, ids.end()}, cache);
  EXPECT_LE(relative_error(again, all[59]), limit);
}

TEST_P(Decoder, ModulesWithACacheAreOneForward) {
  const at::NoGradGuard no_grad;
  const at::Tensor ids = torch::randint(GetParam().config.vocab_size, {2, 21}, torch::kLong);
  const at::Tensor all = model_.module()->forward(ids);
  KVCache cache = model_.new_cache(2);
  const double limit = std::max(GetParam().limit, 1e-4);
  for (const auto& [from, count] : {std::pair{0, 10}, {10, 1}, {11, 10}}) {
    const at::Tensor logits = model_.module()->forward(ids.narrow(1, from, count), &cache);
    EXPECT_LE(relative_error(logits, all.narrow(1, from, count)), limit) << from;
  }
}

TEST_P(Decoder, BatchesAreIndependent) {
  const at::Tensor ids = torch::randint(GetParam().config.vocab_size, {3, 15}, torch::kLong);
  const at::Tensor together = model_.forward(ids);
  for (int64_t b = 0; b < 3; ++b) {
    EXPECT_LE(relative_error(together[b], model_.forward(ids.narrow(0, b, 1))[0]),
              std::max(GetParam().limit, 1e-4));
  }
}

TEST_P(Decoder, SaveAndLoadIsIdentity) {
  const testing::TemporaryDirectory out;
  model_.save_pretrained(out.str(), {.max_shard_bytes = 20000});
  EXPECT_TRUE(std::filesystem::exists(out / "model.safetensors.index.json"));
  FromPretrainedOptions options;
  options.dtype = GetParam().options.dtype;
  const CausalLM again = AutoModelForCausalLM::from_pretrained(out.str(), options);
  const at::Tensor ids = torch::randint(GetParam().config.vocab_size, {1, 33}, torch::kLong);
  EXPECT_TRUE(at::equal(again.forward(ids), model_.forward(ids)));
  EXPECT_EQ(again.memory_report().weight_bytes(), model_.memory_report().weight_bytes());
  EXPECT_EQ(again.quantization_config().has_value(), model_.quantization_config().has_value());
}

INSTANTIATE_TEST_SUITE_P(Kinds, Decoder, ::testing::ValuesIn(variants()),
                         [](const auto& info) { return std::string(info.param.name); });

class DecoderOnce : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::write_checkpoint(directory_.str(), config_, testing::random_weights(config_));
    model_ = AutoModelForCausalLM::from_pretrained(directory_.str());
  }
  io::ModelConfig config_ = testing::tiny_config();
  testing::TemporaryDirectory directory_;
  CausalLM model_;
};

TEST_F(DecoderOnce, ChangedWeightsAreSeen) {
  const at::Tensor ids = torch::randint(config_.vocab_size, {1, 9}, torch::kLong);
  const at::Tensor before = model_.forward(ids);
  quantize_(*model_.module(), QuantizationConfig::nf4());
  EXPECT_FALSE(at::equal(model_.forward(ids), before));
  EXPECT_LE(relative_error(model_.forward(ids), model_.module()->forward(ids)), 2e-5);
  model_.dequantize_();
  EXPECT_LE(relative_error(model_.forward(ids), model_.module()->forward(ids)), 2e-5);
  model_.module()->to(at::kBFloat16);
  EXPECT_LE(relative_error(model_.forward(ids), model_.module()->forward(ids)), 3e-2);
}

TEST_F(DecoderOnce, GradientsFlowThroughQuantizedLayers) {
  quantize_(*model_.module(), QuantizationConfig::nf4());
  auto& norm = model_.module()->model->layer(0).input_layernorm->weight;
  norm = norm.clone().set_requires_grad(true);
  model_.module()->model->layer(0).input_layernorm->named_parameters();
  const at::Tensor ids = torch::randint(config_.vocab_size, {1, 9}, torch::kLong);
  model_.module()->forward(ids).square().mean().backward();
  ASSERT_TRUE(norm.grad().defined());
  EXPECT_GT(norm.grad().abs().max().item<float>(), 0.0f);
}

TEST_F(DecoderOnce, BadIdsAreRefused) {
  EXPECT_THROW(model_.forward(torch::zeros({1, 0}, torch::kLong)), c10::Error);
  EXPECT_THROW(model_.forward(torch::zeros({3}, torch::kLong)), c10::Error);
  EXPECT_THROW(model_.forward(torch::zeros({1, 3})), c10::Error);
  EXPECT_THROW(model_.forward(torch::full({1, 3}, 96, torch::kLong)), c10::Error);
  EXPECT_THROW(model_.forward(torch::full({1, 3}, -1, torch::kLong)), c10::Error);
  EXPECT_THROW(model_.forward(torch::zeros({1, 129}, torch::kLong)), c10::Error);
  EXPECT_THROW(model_.module()->forward(torch::zeros({1, 129}, torch::kLong)), c10::Error);
  KVCache cache = model_.new_cache(1, 8);
  EXPECT_THROW(model_.forward(torch::zeros({2, 3}, torch::kLong), &cache), c10::Error);
  model_.logits({1, 2, 3, 4, 5}, &cache);
  EXPECT_THROW(model_.logits({1, 2, 3, 4}, &cache), c10::Error);
  EXPECT_EQ(cache.length(), 5);
  EXPECT_THROW(cache.truncate(6), c10::Error);
  EXPECT_THROW(CausalLM().config(), c10::Error);
}

TEST_F(DecoderOnce, MemoryReportAddsUp) {
  const MemoryReport report = model_.memory_report(64);
  ASSERT_EQ(report.devices.size(), 1u);
  EXPECT_EQ(report.devices[0].device, "cpu");
  EXPECT_EQ(report.weight_bytes(), report.parameters * 4);
  EXPECT_EQ(report.devices[0].weights.at("float32"), report.weight_bytes());
  EXPECT_EQ(report.devices[0].kv_cache, 2 * 2 * 2 * 64 * 16 * 4);
  EXPECT_GT(report.devices[0].free, 0);
  EXPECT_EQ(report.device_map.at(""), "cpu");
  std::ostringstream text;
  text << report;
  EXPECT_NE(text.str().find("float32"), std::string::npos);
  KVCache cache = model_.new_cache(1, 64);
  cache.reserve(64);
  EXPECT_EQ(cache.bytes(), report.devices[0].kv_cache);
}

}  // namespace
}  // namespace lowbit::llm
