// Language models on a GPU: the recorded logits, agreement with the CPU, memory while loading.
#include <ATen/DeviceAccelerator.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "lowbit/io/safetensors.h"
#include "lowbit/llm/auto.h"
#include "lowbit/quantized_tensor.h"
#include "support/golden_dir.h"
#include "tiny.h"

namespace lowbit::llm {
namespace {

const std::string kGolden = lowbit::test::golden_dir();

class LlmCuda : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!torch::cuda::is_available()) GTEST_SKIP() << "no GPU";
  }
  static std::string directory() { return kGolden + "/hf/" + GetParam(); }
  static at::Tensor recorded(const std::string& name) {
    const auto file = io::SafetensorsFile::open(kGolden + "/hf_logits.safetensors");
    return to_tensor(file.tensor(name)).clone();
  }
  static int64_t allocated(bool peak) {
    const auto bytes =
        at::accelerator::getDeviceStats(0)
            .allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
    return peak ? bytes.peak : bytes.current;
  }
};

TEST_P(LlmCuda, LogitsAreTheRecordedOnesAndTheCpus) {
  reset_fallback_count();
  const CausalLM model =
      AutoModelForCausalLM::from_pretrained(directory(), {.device_map = "cuda:0"});
  EXPECT_EQ(model.device(), at::Device("cuda:0"));
  for (const at::Tensor& p : model.module()->parameters()) EXPECT_TRUE(p.is_cuda());
  const at::Tensor ids = recorded("ids");
  const at::Tensor logits = model.forward(ids);
  EXPECT_TRUE(logits.is_cuda());
  EXPECT_EQ(logits.scalar_type(), at::kBFloat16);
  if (std::string(GetParam()) != "base") {  // whose logits were not recorded
    const at::Tensor expected = recorded(std::string(GetParam()) + ".logits");
    EXPECT_LE(testing::relative_error(logits.cpu(), expected), 2e-2);
  }
  const CausalLM on_cpu = AutoModelForCausalLM::from_pretrained(directory());
  EXPECT_LE(testing::relative_error(logits.cpu(), on_cpu.forward(ids)), 2e-2);
  EXPECT_EQ(fallback_count(), 0) << last_fallback();
}

TEST_P(LlmCuda, Float32ComputeAgreesWithTheCpu) {
  const FromPretrainedOptions cpu{.dtype = at::kFloat};
  FromPretrainedOptions gpu = cpu;
  gpu.device_map = "cuda";
  const CausalLM a = AutoModelForCausalLM::from_pretrained(directory(), cpu);
  const CausalLM b = AutoModelForCausalLM::from_pretrained(directory(), gpu);
  const at::Tensor ids = recorded("ids");
  // LLM.int8() rounds activations to 8 bits: a last bit may move one by a whole step.
  const double limit = std::string(GetParam()) == "int8" ? 2e-2 : 1e-4;
  EXPECT_LE(testing::relative_error(b.forward(ids).cpu(), a.forward(ids)), limit);
}

TEST_P(LlmCuda, CachedStepsGiveTheLogitsOfOneForward) {
  const CausalLM model = AutoModelForCausalLM::from_pretrained(
      directory(), {.device_map = "cuda", .dtype = at::kFloat});
  const std::vector<int64_t> ids = testing::random_ids(20, model.config().vocab_size);
  const at::Tensor whole = model.logits(ids);
  EXPECT_TRUE(whole.is_cpu());
  EXPECT_EQ(whole.scalar_type(), at::kFloat);
  KVCache cache = model.new_cache();
  const double limit = std::string(GetParam()) == "int8" ? 2e-2 : 1e-4;
  (void)model.next_logits({ids.begin(), ids.begin() + 11}, cache);
  // Several tokens behind a cache, then one at a time.
  const at::Tensor middle = model.next_logits({ids.begin() + 11, ids.begin() + 15}, cache);
  EXPECT_LE(testing::relative_error(middle, whole[14]), limit);
  for (int64_t i = 15; i < 20; ++i) {
    const at::Tensor next = model.next_logits({ids[static_cast<size_t>(i)]}, cache);
    EXPECT_LE(testing::relative_error(next, whole[i]), limit) << i;
  }
  EXPECT_TRUE(cache.layer(0).key.is_cuda());
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, LlmCuda,
                         ::testing::Values("base", "nf4_dq", "nf4_bf16storage", "fp4", "int8"),
                         [](const auto& info) { return std::string(info.param); });

using LlmCudaOnce = LlmCuda;

TEST_F(LlmCudaOnce, QuantizesAtLoadWithinOneLayerOfTheResult) {
  io::ModelConfig config = testing::tiny_config();
  config.hidden_size = 512;
  config.intermediate_size = 2048;
  config.num_hidden_layers = 12;
  config.head_dim = 128;
  config.dtype = "bfloat16";
  config.tie_word_embeddings = false;
  (void)at::empty({1}, at::kCUDA);  // the allocator has no statistics before its first block
  const int64_t hidden = config.hidden_size;  // 4 heads and 2 key-value heads of 128
  const int64_t layer = (3 * hidden * hidden + 3 * hidden * config.intermediate_size) * 2;
  for (const bool tables : {false, true}) {
    config.vocab_size = tables ? 16384 : 512;  // twice a layer, as those of an 8B model are
    const int64_t before = allocated(/*peak=*/false);
    at::accelerator::resetPeakStats(0);
    const CausalLM model = AutoModelForCausalLM::from_config(
        config, {.quantization_config = BitsAndBytesConfig{.load_in_4bit = true,
                                                           .bnb_4bit_quant_type = "nf4",
                                                           .bnb_4bit_use_double_quant = true},
                 .device_map = "cuda",
                 .quantize_embeddings = tables});
    const int64_t result = allocated(false) - before, peak = allocated(true) - before;
    // A layer of bfloat16, and room for the rounding of the allocator.
    EXPECT_LE(peak, result + layer + (int64_t{4} << 20)) << "8-bit tables: " << tables;
    // The weights of a device share their tables of codes, which the report counts with each.
    EXPECT_LE(model.memory_report().weight_bytes(), result + (int64_t{64} << 10));
    EXPECT_EQ(model.memory_report().devices.at(0).device, "cuda:0");
    EXPECT_EQ(model.device_map().at(""), "cuda:0");
  }
}

TEST_F(LlmCudaOnce, GreedyTokensAreTheCpus) {
  const testing::TemporaryDirectory folder;
  const io::ModelConfig config = testing::tiny_config();
  testing::write_checkpoint(folder.str(), config, testing::random_weights(config));
  const FromPretrainedOptions cpu{.quantization_config = BitsAndBytesConfig{
                                      .load_in_4bit = true, .bnb_4bit_quant_type = "nf4"}};
  FromPretrainedOptions gpu = cpu;
  gpu.device_map = "auto";
  const CausalLM a = AutoModelForCausalLM::from_pretrained(folder.str(), cpu);
  const CausalLM b = AutoModelForCausalLM::from_pretrained(folder.str(), gpu);
  EXPECT_TRUE(b.device().is_cuda());
  const std::vector<int64_t> prompt = testing::random_ids(9, config.vocab_size);
  EXPECT_EQ(b.generate(prompt, {.max_new_tokens = 24, .temperature = 0.0}),
            a.generate(prompt, {.max_new_tokens = 24, .temperature = 0.0}));
  // Saved from the GPU, loaded on the CPU.
  const testing::TemporaryDirectory saved;
  b.save_pretrained(saved.str());
  const CausalLM c = AutoModelForCausalLM::from_pretrained(saved.str());
  for (const auto& entry : b.module()->named_parameters()) {
    if (!is_quantized(entry.value())) continue;
    EXPECT_TRUE(at::equal(packed_weight(entry.value()).cpu(),
                          packed_weight(c.module()->named_parameters()[entry.key()])))
        << entry.key();
  }
}

/// A small model with grouped queries, and what its logits may be off by.
struct FusedCase {
  at::ScalarType dtype;
  int64_t heads, kv_heads, head_dim, window;
  bool nf4;
  /// Roundings of activations between the layers, in another order.
  double limit() const { return dtype == at::kFloat ? 1e-4 : dtype == at::kHalf ? 5e-3 : 3e-2; }
};

class FusedDecoder : public ::testing::TestWithParam<FusedCase> {
 protected:
  void SetUp() override {
    if (!torch::cuda::is_available()) GTEST_SKIP() << "no GPU";
    const FusedCase& c = GetParam();
    io::ModelConfig config = testing::tiny_config();
    config.hidden_size = 256;
    config.intermediate_size = 512;
    config.num_hidden_layers = 3;
    config.num_attention_heads = c.heads;
    config.num_key_value_heads = c.kv_heads;
    config.head_dim = c.head_dim;
    config.max_position_embeddings = 1024;
    if (c.window > 0) config.sliding_window = c.window;
    config.dtype = c.dtype == at::kFloat  ? "float32"
                   : c.dtype == at::kHalf ? "float16"
                                          : "bfloat16";
    testing::write_checkpoint(folder_.str(), config, testing::random_weights(config, c.dtype));
    FromPretrainedOptions options{.device_map = "cuda"};
    if (c.nf4) {
      options.quantization_config = BitsAndBytesConfig{.load_in_4bit = true,
                                                       .bnb_4bit_quant_type = "nf4",
                                                       .bnb_4bit_use_double_quant = true,
                                                       .bnb_4bit_compute_dtype = c.dtype};
    }
    model_ = AutoModelForCausalLM::from_pretrained(folder_.str(), options);
  }
  at::Tensor ids(int64_t batch, int64_t tokens) const {
    return torch::randint(model_.config().vocab_size, {batch, tokens}, torch::kLong);
  }
  /// Logits of torch's own ops.
  at::Tensor of_module(const at::Tensor& ids) const { return model_.module()->forward(ids).cpu(); }
  /// Logits [batch, tokens, vocab] of parts of `ids` through one cache.
  at::Tensor in_parts(const at::Tensor& ids, const std::vector<int64_t>& parts) const {
    KVCache cache = model_.new_cache(ids.size(0));
    std::vector<at::Tensor> logits;
    int64_t first = 0;
    for (const int64_t count : parts) {
      logits.push_back(model_.forward(ids.narrow(1, first, count), &cache).cpu());
      first += count;
    }
    EXPECT_EQ(first, ids.size(1));
    EXPECT_EQ(cache.length(), ids.size(1));
    return at::cat(logits, 1);
  }
  /// The first token whose logits are off, for the message; -1 for none.
  int64_t first_off(const at::Tensor& a, const at::Tensor& b) const {
    for (int64_t t = 0; t < a.size(1); ++t) {
      if (!(testing::relative_error(a.select(1, t), b.select(1, t)) <= 3 * GetParam().limit())) {
        return t;
      }
    }
    return -1;
  }
  void expect_same(const at::Tensor& a, const at::Tensor& b, const char* what) const {
    EXPECT_LE(testing::relative_error(a, b), GetParam().limit()) << what;
    EXPECT_EQ(first_off(a, b), -1) << what;
  }

  const torch::NoGradGuard no_grad_;
  const testing::TemporaryDirectory folder_;
  CausalLM model_;
};

TEST_P(FusedDecoder, IsTheModule) {
  for (const int64_t batch : {1, 3}) {
    for (const int64_t tokens : {1, 2, 8, 9, 70}) {
      const at::Tensor x = ids(batch, tokens);
      const at::Tensor logits = model_.forward(x);
      EXPECT_TRUE(logits.is_cuda());
      EXPECT_EQ(logits.scalar_type(), GetParam().dtype);
      EXPECT_EQ(logits.sizes(), (std::vector<int64_t>{batch, tokens, 96}));
      expect_same(logits.cpu(), of_module(x), std::to_string(tokens).c_str());
    }
  }
}

TEST_P(FusedDecoder, PartsAndStepsAreOneForward) {
  for (const int64_t batch : {1, 3}) {
    const at::Tensor x = ids(batch, 60);
    const at::Tensor whole = of_module(x);
    expect_same(in_parts(x, {60}), whole, "one part");
    expect_same(in_parts(x, {20, 40}), whole, "two long parts");
    expect_same(in_parts(x, {30, 3, 20, 7}), whole, "short and long parts");
    std::vector<int64_t> steps(41, 1);
    steps[0] = 20;
    expect_same(in_parts(x, steps), whole, "steps behind a prompt");
    expect_same(in_parts(x, std::vector<int64_t>(60, 1)), whole, "steps alone");
  }
}

TEST_P(FusedDecoder, OneGraphServesEveryCache) {
  // Two caches in turn, one of which grows (copies to other memory) on the way.
  const at::Tensor a = ids(1, 270), b = ids(1, 40);
  const at::Tensor whole_a = of_module(a), whole_b = of_module(b);
  KVCache cache_a = model_.new_cache(), cache_b = model_.new_cache();
  (void)model_.forward(a.narrow(1, 0, 240), &cache_a);
  (void)model_.forward(b.narrow(1, 0, 10), &cache_b);
  std::vector<at::Tensor> steps_a, steps_b;
  for (int64_t t = 0; t < 30; ++t) {
    // Not read at once: results must not share memory.
    steps_a.push_back(model_.forward(a.narrow(1, 240 + t, 1), &cache_a));
    steps_b.push_back(model_.forward(b.narrow(1, 10 + t, 1), &cache_b));
  }
  expect_same(at::cat(steps_a, 1).cpu(), whole_a.narrow(1, 240, 30), "the growing cache");
  expect_same(at::cat(steps_b, 1).cpu(), whole_b.narrow(1, 10, 30), "the other cache");
}

TEST_P(FusedDecoder, StepsRepeatBitForBit) {
  const at::Tensor x = ids(2, 30);
  std::vector<int64_t> parts(21, 1);
  parts[0] = 10;
  (void)in_parts(x, parts);  // from here on every step is a graph
  EXPECT_TRUE(at::equal(in_parts(x, parts), in_parts(x, parts)));
}

TEST_P(FusedDecoder, NextTokenIsTheLargestLogit) {
  const std::vector<int64_t> prompt = testing::random_ids(12, 96);
  KVCache a = model_.new_cache(), b = model_.new_cache();
  std::vector<int64_t> fresh = prompt;
  for (int i = 0; i < 10; ++i) {
    const int64_t id = model_.next_token(fresh, a);
    EXPECT_EQ(id, model_.next_logits(fresh, b).argmax().item<int64_t>()) << i;
    fresh = {id};
  }
}

TEST_P(FusedDecoder, SeesNewWeights) {
  const at::Tensor x = ids(1, 12);
  std::vector<int64_t> parts(9, 1);
  parts[0] = 4;
  (void)in_parts(x, parts);
  model_.module()->model->norm->weight.set_data(model_.module()->model->norm->weight * 2);
  expect_same(in_parts(x, parts), of_module(x), "after set_data");
}

INSTANTIATE_TEST_SUITE_P(Models, FusedDecoder,
                         ::testing::Values(FusedCase{at::kFloat, 8, 2, 64, 0, false},
                                           FusedCase{at::kBFloat16, 8, 2, 64, 0, false},
                                           FusedCase{at::kHalf, 3, 1, 128, 0, false},
                                           FusedCase{at::kBFloat16, 4, 4, 32, 13, false},
                                           FusedCase{at::kFloat, 6, 2, 64, 13, false},
                                           FusedCase{at::kBFloat16, 8, 2, 64, 0, true},
                                           FusedCase{at::kHalf, 9, 3, 64, 40, true}),
                         [](const auto& info) {
                           const FusedCase& c = info.param;
                           const char* dtype = c.dtype == at::kFloat  ? "fp32"
                                               : c.dtype == at::kHalf ? "fp16"
                                                                      : "bf16";
                           return dtype + std::string(c.nf4 ? "_nf4" : "") +
                                  (c.window > 0 ? "_window" : "") + "_group" +
                                  std::to_string(c.heads / c.kv_heads);
                         });

TEST_F(LlmCudaOnce, DevicesThatAreNotThere) {
  const auto load = [](const FromPretrainedOptions& options) -> std::string {
    try {
      AutoModelForCausalLM::from_pretrained(kGolden + "/hf/base", options);
    } catch (const c10::Error& e) {
      return e.what_without_backtrace();
    }
    return "";
  };
  EXPECT_NE(load({.device_map = "cuda:99"}).find("device_map"), std::string::npos);
  EXPECT_NE(load({.device_map = "cuda:x"}).find("cpu, cuda, cuda:N or auto"), std::string::npos);
  EXPECT_NE(load({.device_map = "cuda:0", .max_memory = {{"cuda:0", "1KiB"}}}).find("max_memory"),
            std::string::npos);
  // auto falls back to the CPU.
  EXPECT_TRUE(AutoModelForCausalLM::from_pretrained(
                  kGolden + "/hf/base", {.device_map = "auto", .max_memory = {{"cuda:0", "1KiB"}}})
                  .device()
                  .is_cpu());
}

}  // namespace
}  // namespace lowbit::llm
