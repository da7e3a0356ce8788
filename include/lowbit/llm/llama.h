// The Llama family as torch modules: Llama 1-3, SmolLM2, Mistral. Parameters are named as in
// Hugging Face checkpoints
// ("model.layers.0.self_attn.q_proj.weight"), so state dicts are interchangeable; any weight may be
// quantized.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <optional>
#include <vector>

#include "lowbit/io/hf_config.h"
#include "lowbit/llm/kv_cache.h"

namespace lowbit::llm {

/// Rotary tables of one forward: cos and sin [tokens, head_dim], computed in float32, in the
/// activations' dtype.
struct Rotary {
  at::Tensor cos, sin;
};

/// x / sqrt(mean(x^2) + eps) in float32, rounded to x's dtype, then times weight.
class LlamaRMSNormImpl : public torch::nn::Module {
 public:
  LlamaRMSNormImpl(int64_t size, double eps);
  at::Tensor forward(const at::Tensor& x);
  at::Tensor weight;
  double eps;
};
TORCH_MODULE(LlamaRMSNorm);

class LlamaAttentionImpl : public torch::nn::Module {
 public:
  explicit LlamaAttentionImpl(const io::ModelConfig& config);
  /// x [batch, tokens, hidden]; `layer` (may be null) holds the `past` tokens before and takes the
  /// new ones.
  at::Tensor forward(const at::Tensor& x, const Rotary& rotary, KVCache::Layer* layer,
                     int64_t past);
  torch::nn::Linear q_proj{nullptr}, k_proj{nullptr}, v_proj{nullptr}, o_proj{nullptr};

 private:
  int64_t heads_, kv_heads_, head_dim_, window_;
};
TORCH_MODULE(LlamaAttention);

/// down_proj(silu(gate_proj(x)) * up_proj(x))
class LlamaMLPImpl : public torch::nn::Module {
 public:
  explicit LlamaMLPImpl(const io::ModelConfig& config);
  at::Tensor forward(const at::Tensor& x);
  torch::nn::Linear gate_proj{nullptr}, up_proj{nullptr}, down_proj{nullptr};
};
TORCH_MODULE(LlamaMLP);

class LlamaDecoderLayerImpl : public torch::nn::Module {
 public:
  explicit LlamaDecoderLayerImpl(const io::ModelConfig& config);
  at::Tensor forward(const at::Tensor& x, const Rotary& rotary, KVCache::Layer* layer,
                     int64_t past);
  LlamaAttention self_attn{nullptr};
  LlamaMLP mlp{nullptr};
  LlamaRMSNorm input_layernorm{nullptr}, post_attention_layernorm{nullptr};
};
TORCH_MODULE(LlamaDecoderLayer);

class LlamaModelImpl : public torch::nn::Module {
 public:
  explicit LlamaModelImpl(const io::ModelConfig& config);
  /// Hidden states [batch, tokens, hidden] after the last norm.
  at::Tensor forward(const at::Tensor& ids, KVCache* cache);
  torch::nn::Embedding embed_tokens{nullptr};
  torch::nn::ModuleList layers;
  LlamaRMSNorm norm{nullptr};
  LlamaDecoderLayerImpl& layer(int64_t index);
  /// [head_dim / 2]. Not a buffer: it stays float32 whatever dtype the module is moved to.
  const std::vector<float>& inv_freq() const noexcept { return inv_freq_; }

 private:
  std::vector<float> inv_freq_;
};
TORCH_MODULE(LlamaModel);

/// The whole model. A new one holds placeholders of one element in place of its weights, so making
/// it costs no memory; a loader puts the weights in. With tied embeddings there is no lm_head: the
/// head multiplies with the embedding.
class LlamaForCausalLMImpl : public torch::nn::Module {
 public:
  /// Throws c10::Error for a model, activation or rope type that this family does not have.
  explicit LlamaForCausalLMImpl(io::ModelConfig config);
  /// Logits [batch, tokens, vocab] through torch's ops, differentiable; ids [batch, tokens] int64.
  /// With a cache, ids continue the tokens in it, and it grows by them. `logits_to_keep`: of the
  /// last so many tokens (0: of all). ids may lie on another device than the weights.
  at::Tensor forward(const at::Tensor& ids, KVCache* cache = nullptr, int64_t logits_to_keep = 0);
  /// The head's weight [vocab, hidden]: lm_head's, or the embedding's.
  const at::Tensor& head_weight() const;
  const io::ModelConfig& config() const noexcept { return config_; }
  /// Notes how the weights are quantized now; config() and saved files say it.
  void set_quantization(std::optional<io::QuantizationConfigJson> quantization) {
    config_.quantization = std::move(quantization);
  }

  LlamaModel model{nullptr};
  torch::nn::Linear lm_head{nullptr};  ///< null when tied

 private:
  io::ModelConfig config_;
};
TORCH_MODULE(LlamaForCausalLM);

}  // namespace lowbit::llm
