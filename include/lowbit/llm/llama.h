// The Llama family as torch modules: Llama 1-3, SmolLM2, Mistral. Parameters are named as in
// Hugging Face checkpoints
// ("model.layers.0.self_attn.q_proj.weight"), so state dicts are interchangeable; any weight may be
// quantized.
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include "lowbit/io/hf_config.h"
#include "lowbit/llm/kv_cache.h"

namespace lowbit::llm {

/// Rotary tables of one forward: cos and sin, float32 [tokens, head_dim].
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
  /// Kept in float32 whatever dtype the module is moved to: [head_dim / 2].
  const at::Tensor& inv_freq() const noexcept { return inv_freq_; }

 private:
  at::Tensor inv_freq_;
};
TORCH_MODULE(LlamaModel);

/// Weights are undefined-sized placeholders until a loader sets them (see set_parameter): making
/// the module costs no memory.
class LlamaForCausalLMImpl : public torch::nn::Module {
 public:
  /// Throws c10::Error for an activation or rope type that this family does not have.
  explicit LlamaForCausalLMImpl(io::ModelConfig config);
  /// Logits [batch, tokens, vocab] through torch's ops; differentiable. ids [batch, tokens] int64.
  at::Tensor forward(const at::Tensor& ids, KVCache* cache = nullptr);
  /// The head alone: logits of hidden states.
  at::Tensor head(const at::Tensor& hidden);
  /// Registers the tied head again, after the embedding's weight was replaced.
  void tie_weights();
  /// A KV cache that fits.
  KVCache new_cache(int64_t batch, int64_t context) const;
  const io::ModelConfig& config() const noexcept { return config_; }

  LlamaModel model{nullptr};
  torch::nn::Linear lm_head{nullptr};

 private:
  io::ModelConfig config_;
};
TORCH_MODULE(LlamaForCausalLM);

/// Inverse frequencies of the rotary embedding, float32 [head_dim / 2], with the scaling of the
/// config (default, linear, llama3). Throws c10::Error for another type.
at::Tensor rope_inv_freq(const io::ModelConfig& config);

}  // namespace lowbit::llm
