// Small random models for tests: written as checkpoints, so that every test goes through the
// loader.
#pragma once

#include <torch/torch.h>

#include <filesystem>
#include <map>
#include <random>
#include <string>

#include "llm/slots.h"
#include "llm/tensor_io.h"
#include "lowbit/io/safetensors.h"

namespace lowbit::llm::testing {

/// A folder that disappears with the object.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "lowbit_llm_XXXXXX").string();
    TORCH_CHECK(mkdtemp(name.data()) != nullptr, "mkdtemp failed");
    path_ = name;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::string str() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

inline io::ModelConfig tiny_config() {
  io::ModelConfig c;
  c.model_type = "llama";
  c.architectures = {"LlamaForCausalLM"};
  c.vocab_size = 96;
  c.hidden_size = 64;
  c.intermediate_size = 128;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 4;
  c.num_key_value_heads = 2;
  c.head_dim = 16;
  c.max_position_embeddings = 128;
  c.dtype = "float32";
  c.eos_token_ids = {2};
  return c;
}

inline std::map<std::string, at::Tensor> random_weights(const io::ModelConfig& config,
                                                        at::ScalarType dtype = at::kFloat) {
  std::map<std::string, at::Tensor> weights;
  for (const Slot& slot : decoder_slots(config)) {
    at::Tensor w = torch::randn(slot.shape);
    if (slot.kind == SlotKind::kNorm) {
      w = 1 + 0.1 * w;
    } else if (slot.kind == SlotKind::kBias) {
      w = 0.1 * w;
    } else if (slot.kind == SlotKind::kLinear) {
      w = w * (1.5 / std::sqrt(static_cast<double>(slot.shape[1])));
    } else {
      w = 0.5 * w;
    }
    weights.emplace(slot.name, w.to(dtype));
  }
  return weights;
}

inline void write_checkpoint(const std::string& directory, const io::ModelConfig& config,
                             const std::map<std::string, at::Tensor>& weights,
                             int64_t max_shard_bytes = int64_t{1} << 30) {
  std::filesystem::create_directories(directory);
  io::CheckpointWriter writer(directory, static_cast<size_t>(max_shard_bytes));
  for (const auto& [name, tensor] : weights) writer.add(name, to_view(tensor));
  writer.finish();
  io::write_text_file(directory + "/config.json", io::model_config_to_json(config));
}

inline std::vector<int64_t> random_ids(int64_t count, int64_t vocab) {
  const at::Tensor t = torch::randint(vocab, {count}, torch::kLong);
  return {t.data_ptr<int64_t>(), t.data_ptr<int64_t>() + count};
}

/// |a - b| / |b|, the norms over all elements. NaN stays NaN.
inline double relative_error(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.to(at::kDouble), y = b.to(at::kDouble);
  return ((x - y).norm() / y.norm()).item<double>();
}

}  // namespace lowbit::llm::testing
