// Loading: what is read, what is refused, and how much memory it takes.
#include <gtest/gtest.h>
#include <malloc.h>
#include <torch/torch.h>

#include <fstream>
#include <thread>

#include "lowbit/error.h"
#include "lowbit/llm/auto.h"
#include "lowbit/llm/inspect.h"
#include "lowbit/quantized_tensor.h"
#include "tiny.h"

namespace lowbit::llm {
namespace {

BitsAndBytesConfig nf4() {
  return {.load_in_4bit = true, .bnb_4bit_quant_type = "nf4", .bnb_4bit_use_double_quant = true};
}

/// What a call throws, or "".
template <class F>
std::string message_of(F f) {
  try {
    f();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

class Loading : public ::testing::Test {
 protected:
  void write() { testing::write_checkpoint(directory_.str(), config_, weights_); }
  std::string load_error(const FromPretrainedOptions& options = {}) {
    return message_of([&] { AutoModelForCausalLM::from_pretrained(directory_.str(), options); });
  }
  io::ModelConfig config_ = testing::tiny_config();
  std::map<std::string, at::Tensor> weights_ = testing::random_weights(config_);
  testing::TemporaryDirectory directory_;
};

TEST_F(Loading, MissingUnexpectedAndMisshapenTensorsAreNamed) {
  auto good = weights_;
  weights_.erase("model.layers.1.mlp.up_proj.weight");
  write();
  EXPECT_NE(load_error().find("model.layers.1.mlp.up_proj.weight"), std::string::npos);
  weights_ = good;
  weights_.emplace("model.layers.2.extra.weight", torch::zeros({3}));
  write();
  EXPECT_NE(load_error().find("model.layers.2.extra.weight"), std::string::npos);
  weights_ = good;
  weights_["model.norm.weight"] = torch::ones({65});
  write();
  const std::string shape = load_error();
  EXPECT_NE(shape.find("model.norm.weight"), std::string::npos);
  EXPECT_NE(shape.find("65"), std::string::npos);
  weights_ = good;
  weights_["model.layers.0.self_attn.q_proj.weight"] = torch::zeros({2048, 1}, torch::kByte);
  write();
  EXPECT_NE(load_error().find("q_proj"), std::string::npos);
  // Left behind by old versions: harmless.
  weights_ = good;
  weights_.emplace("model.layers.0.self_attn.rotary_emb.inv_freq", torch::ones({8}));
  write();
  EXPECT_EQ(load_error(), "");
}

TEST_F(Loading, DamagedQuantizedLayersAreNamed) {
  write();
  const testing::TemporaryDirectory quantized;
  AutoModelForCausalLM::from_pretrained(directory_.str(), {.quantization_config = nf4()})
      .save_pretrained(quantized.str());
  const auto read = [&] {
    std::map<std::string, at::Tensor> tensors;
    const auto file = io::Checkpoint::open(quantized.str());
    for (const auto& name : file.names())
      tensors.emplace(name, to_tensor(file.tensor(name)).clone());
    return tensors;
  };
  const auto good = read();
  const io::ModelConfig config = io::read_model_config(quantized.str());
  const std::string layer = "model.layers.0.mlp.up_proj.weight";
  const auto try_with = [&](const std::string& key, std::optional<at::Tensor> value) {
    auto bad = good;
    bad.erase(key);
    if (value) bad.emplace(key, *value);
    const testing::TemporaryDirectory out;
    testing::write_checkpoint(out.str(), config, bad);
    const std::string message =
        message_of([&] { AutoModelForCausalLM::from_pretrained(out.str()); });
    EXPECT_NE(message.find("up_proj"), std::string::npos) << key << ": " << message;
  };
  for (const char* part :
       {".absmax", ".nested_absmax", ".nested_quant_map", ".quant_state.bitsandbytes__nf4"}) {
    try_with(layer + part, std::nullopt);
  }
  try_with(layer, torch::zeros({100, 1}, torch::kByte));
  try_with(layer + ".absmax", torch::zeros({3}, torch::kByte));
  try_with(layer + ".nested_absmax", torch::zeros({5}));
  try_with(layer + ".quant_state.bitsandbytes__nf4", torch::zeros({20}, torch::kByte));
}

TEST_F(Loading, BadOptionsAreRefusedBeforeAnythingIsLoaded) {
  write();
  EXPECT_NE(load_error({.device_map = "cuda:0"}).find("device_map"), std::string::npos);
  EXPECT_NE(load_error({.max_memory = {{"cpu", "10KB"}}}).find("max_memory"), std::string::npos);
  EXPECT_NE(load_error({.max_memory = {{"cpu", "lots"}}}).find("max_memory"), std::string::npos);
  EXPECT_NE(load_error({.dtype = at::kDouble}).find("dtype"), std::string::npos);
  EXPECT_NE(load_error({.blocksize = 48}).find("blocksize"), std::string::npos);
  BitsAndBytesConfig both = nf4();
  both.load_in_8bit = true;
  EXPECT_NE(load_error({.quantization_config = both}).find("load_in"), std::string::npos);
  EXPECT_NE(load_error({.quantization_config = BitsAndBytesConfig{}}).find("load_in"),
            std::string::npos);
  BitsAndBytesConfig type = nf4();
  type.bnb_4bit_quant_type = "nf5";
  EXPECT_NE(load_error({.quantization_config = type}).find("nf5"), std::string::npos);
  EXPECT_EQ(load_error({.device_map = "auto", .max_memory = {{"cpu", "1GiB"}}}), "");
}

TEST_F(Loading, NonFiniteWeightsAreNamedWhenQuantizing) {
  weights_["model.layers.1.mlp.down_proj.weight"][3][4] = NAN;
  write();
  EXPECT_EQ(load_error(), "");
  EXPECT_NE(load_error({.quantization_config = nf4()}).find("model.layers.1.mlp.down_proj.weight"),
            std::string::npos);
}

TEST_F(Loading, AQuantizedCheckpointKeepsItsConfig) {
  write();
  const testing::TemporaryDirectory quantized;
  AutoModelForCausalLM::from_pretrained(directory_.str(), {.quantization_config = nf4()})
      .save_pretrained(quantized.str());
  BitsAndBytesConfig other = nf4();
  other.bnb_4bit_quant_type = "fp4";
  const CausalLM model =
      AutoModelForCausalLM::from_pretrained(quantized.str(), {.quantization_config = other});
  EXPECT_EQ(model.quantization_config()->bnb_4bit_quant_type, "nf4");
  EXPECT_NE(message_of([&] {
              AutoModelForCausalLM::from_pretrained(
                  quantized.str(),
                  {.quantization_config = BitsAndBytesConfig{.load_in_8bit = true}});
            }).find("quantization_config"),
            std::string::npos);
  // And back to floating point.
  CausalLM dense = model;
  dense.dequantize_();
  const testing::TemporaryDirectory out;
  dense.save_pretrained(out.str());
  EXPECT_FALSE(io::read_model_config(out.str()).quantization.has_value());
  const CausalLM again = AutoModelForCausalLM::from_pretrained(out.str());
  const auto ids = testing::random_ids(9, config_.vocab_size);
  EXPECT_TRUE(at::equal(again.logits(ids), dense.logits(ids)));
}

TEST_F(Loading, MissingFilesAndShards) {
  EXPECT_THROW(AutoModelForCausalLM::from_pretrained(directory_ / "nothing"), IoError);
  EXPECT_NE(load_error(), "");
  testing::write_checkpoint(directory_.str(), config_, weights_, 50000);
  for (const auto& entry : std::filesystem::directory_iterator(directory_.str())) {
    if (entry.path().string().find("model-00002") != std::string::npos) {
      std::filesystem::remove(entry.path());
      break;
    }
  }
  EXPECT_NE(load_error().find("model-00002"), std::string::npos);
}

TEST_F(Loading, SkipRules) {
  EXPECT_TRUE(is_skipped("lm_head", {"lm_head"}));
  EXPECT_TRUE(is_skipped("model.layers.1.mlp.up_proj", {"model.layers.1"}));
  EXPECT_FALSE(is_skipped("model.layers.10.mlp.up_proj", {"model.layers.1"}));
  EXPECT_TRUE(is_skipped("model.layers.10.mlp.up_proj", {"mlp"}));
  EXPECT_TRUE(is_skipped("model.layers.10.mlp.up_proj", {"up_proj"}));
  EXPECT_FALSE(is_skipped("model.layers.10.mlp.up_proj", {"proj", ""}));
  write();
  const auto scheme = [&](std::optional<std::vector<std::string>> skip, const std::string& name) {
    FromPretrainedOptions options{.quantization_config = nf4()};
    options.quantization_config->llm_int8_skip_modules = std::move(skip);
    const auto description = inspect(directory_.str(), options);
    for (const WeightEntry& w : description.weights) {
      if (w.name == name) return w.planned_scheme;
    }
    return std::string("none");
  };
  EXPECT_EQ(scheme(std::nullopt, "lm_head.weight"), "float32");
  EXPECT_EQ(scheme(std::nullopt, "model.layers.0.mlp.up_proj.weight"), "nf4 (double quant)");
  EXPECT_EQ(scheme(std::vector<std::string>{}, "lm_head.weight"), "nf4 (double quant)");
  EXPECT_EQ(scheme(std::vector<std::string>{"mlp"}, "model.layers.0.mlp.up_proj.weight"),
            "float32");
  EXPECT_EQ(scheme(std::vector<std::string>{"mlp"}, "lm_head.weight"), "nf4 (double quant)");
  EXPECT_EQ(scheme(std::nullopt, "model.norm.weight"), "float32");
}

TEST_F(Loading, InspectPlansWhatLoadingMakes) {
  write();
  const FromPretrainedOptions cases[] = {
      {},
      {.quantization_config = nf4()},
      {.quantization_config = BitsAndBytesConfig{.load_in_8bit = true}},
      {.dtype = at::kBFloat16},
      {.quantization_config = nf4(), .quantize_embeddings = true}};
  for (const FromPretrainedOptions& options : cases) {
    const auto description = inspect(directory_.str(), options);
    const CausalLM model = AutoModelForCausalLM::from_pretrained(directory_.str(), options);
    EXPECT_EQ(description.planned_bytes, model.memory_report().weight_bytes());
    const auto parameters = model.module()->named_parameters();
    EXPECT_EQ(parameters.size(), description.weights.size());
    for (const WeightEntry& w : description.weights) {
      EXPECT_EQ(parameters[w.name].sizes().vec(), w.shape) << w.name;
      EXPECT_EQ(is_quantized(parameters[w.name]),
                w.planned_scheme != "float32" && w.planned_scheme != "bfloat16");
    }
  }
}

/// A field of this process's status, in bytes.
int64_t status_bytes(const std::string& field) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(field + ":")) return std::stoll(line.substr(field.size() + 1)) * 1024;
  }
  return 0;
}

/// From now on VmHWM is the most memory since. False where the system cannot do it.
bool reset_peak() {
  std::ofstream file("/proc/self/clear_refs");
  file << 5 << std::flush;
  return file.good();
}

TEST_F(Loading, QuantizingTakesTheResultAndOneLayer) {
  config_.hidden_size = 512;
  config_.intermediate_size = 2048;
  config_.num_hidden_layers = 12;
  config_.num_attention_heads = 8;
  config_.num_key_value_heads = 8;
  config_.head_dim = 64;
  config_.tie_word_embeddings = false;
  constexpr int64_t kLayer = (4 * 512 * 512 + 3 * 512 * 2048) * 2;
  mallopt(M_MMAP_THRESHOLD, 1 << 18);  // what is freed goes back to the system at once
  for (const bool tables : {false, true}) {
    config_.vocab_size = tables ? 32768 : 512;
    weights_ = testing::random_weights(config_, at::kBFloat16);
    config_.dtype = "bfloat16";
    write();
    weights_.clear();
    FromPretrainedOptions options{.quantization_config = nf4(), .quantize_embeddings = tables};
    // Libraries' pages that are touched for the first time are not the model's.
    (void)AutoModelForCausalLM::from_pretrained(directory_.str(), options);
    malloc_trim(0);
    const int64_t before = status_bytes("VmRSS");
    const bool exact = reset_peak();
    int64_t peak = 0;
    options.progress = [&](int64_t, int64_t, const std::string&) {
      peak = std::max(peak, status_bytes("VmRSS") - before);
    };
    const auto description = inspect(directory_.str(), options);
    const CausalLM model = AutoModelForCausalLM::from_pretrained(directory_.str(), options);
    if (exact) peak = status_bytes("VmHWM") - before;
    const int64_t result = model.memory_report().weight_bytes();
    const int64_t table = config_.vocab_size * config_.hidden_size * 2;
    const int64_t largest = std::max(kLayer, table);
    // The file does not fit into the allowance.
    if (!tables) {
      ASSERT_GT(description.bytes, 4 * (result + largest) / 3);
    }
    // What the allocator keeps for each thread, and the pages at the ends of blocks.
#ifdef __SANITIZE_ADDRESS__
    constexpr int64_t kSlack = 24 << 20;  // the sanitizer keeps freed memory a while
#else
    constexpr int64_t kSlack = 4 << 20;
#endif
    EXPECT_LE(peak, result + largest + kSlack) << "8-bit tables: " << tables;
    std::printf("file %.1f MB, result %.1f MB, largest part %.1f MB, peak %.1f MB\n",
                static_cast<double>(description.bytes) / 1e6, static_cast<double>(result) / 1e6,
                static_cast<double>(largest) / 1e6, static_cast<double>(peak) / 1e6);
  }
}

TEST(ParseBytes, Units) {
  EXPECT_EQ(parse_bytes("6GiB"), int64_t{6} << 30);
  EXPECT_EQ(parse_bytes("1.5 MB"), 1500000);
  EXPECT_EQ(parse_bytes("100"), 100);
  for (const char* bad : {"", "GiB", "-1GB", "3 parsecs", "1e30GB", "nanGB"}) {
    EXPECT_THROW(parse_bytes(bad), c10::Error) << bad;
  }
}

}  // namespace
}  // namespace lowbit::llm
