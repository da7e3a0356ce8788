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
  const at::Tensor expected = recorded(std::string(GetParam()) + ".logits");
  EXPECT_LE(testing::relative_error(logits.cpu(), expected), 2e-2);
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
  config.num_hidden_layers = 6;
  config.head_dim = 128;
  config.dtype = "bfloat16";
  const int64_t before = allocated(/*peak=*/false);
  at::accelerator::resetPeakStats(0);
  const CausalLM model = AutoModelForCausalLM::from_config(
      config, {.quantization_config = BitsAndBytesConfig{.load_in_4bit = true,
                                                         .bnb_4bit_quant_type = "nf4",
                                                         .bnb_4bit_use_double_quant = true},
               .device_map = "cuda"});
  const int64_t result = allocated(false) - before, peak = allocated(true) - before;
  const int64_t largest = config.hidden_size * config.intermediate_size * 2;  // one bf16 weight
  // The float weight, and room for the rounding of the allocator.
  EXPECT_LE(peak, result + largest + (int64_t{4} << 20));
  EXPECT_LE(model.memory_report().weight_bytes(), result);
  EXPECT_EQ(model.memory_report().devices.at(0).device, "cuda:0");
  EXPECT_EQ(model.device_map().at(""), "cuda:0");
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
