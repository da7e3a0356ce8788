#include "lowbit/llm/llama.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/silu.h>

#include <cmath>

#include "llm/rope.h"
#include "ops/check.h"

namespace lowbit::llm {
namespace {

/// A Linear whose weight is a placeholder: torch's own constructor would allocate and fill it.
torch::nn::Linear make_linear(int64_t in, int64_t out, bool bias) {
  torch::nn::Linear linear(torch::nn::LinearOptions(1, 1).bias(bias));
  linear->options.in_features(in).out_features(out);
  return linear;
}

torch::nn::Embedding make_embedding(int64_t rows, int64_t dim) {
  torch::nn::Embedding embedding(1, 1);
  embedding->options.num_embeddings(rows).embedding_dim(dim);
  return embedding;
}

/// [x1, x2] -> [-x2, x1]
at::Tensor rotate_half(const at::Tensor& x) {
  const auto halves = x.chunk(2, -1);
  return at::cat({-halves[1], halves[0]}, -1);
}

at::Tensor rotate(const at::Tensor& x, const Rotary& rotary) {
  return x * rotary.cos + rotate_half(x) * rotary.sin;
}

/// True where a query may look: [tokens, past + tokens].
at::Tensor visible(int64_t tokens, int64_t past, int64_t window, at::Device device) {
  const auto options = at::TensorOptions(at::kLong).device(device);
  const at::Tensor query = at::arange(past, past + tokens, options).unsqueeze(1);
  const at::Tensor key = at::arange(past + tokens, options).unsqueeze(0);
  const at::Tensor causal = key <= query;
  return window > 0 ? causal.logical_and(key > query - window) : causal;
}

}  // namespace

LlamaRMSNormImpl::LlamaRMSNormImpl(int64_t size, double eps)
    : weight(register_parameter("weight", at::ones({size}))), eps(eps) {}

at::Tensor LlamaRMSNormImpl::forward(const at::Tensor& x) {
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor scale = at::rsqrt(wide.pow(2).mean(-1, /*keepdim=*/true) + eps);
  return weight * (wide * scale).to(x.scalar_type());
}

LlamaAttentionImpl::LlamaAttentionImpl(const io::ModelConfig& config)
    : heads_(config.num_attention_heads),
      kv_heads_(config.num_key_value_heads),
      head_dim_(config.head_dim),
      window_(config.sliding_window.value_or(0)) {
  const int64_t hidden = config.hidden_size;
  const bool bias = config.attention_bias;
  q_proj = register_module("q_proj", make_linear(hidden, heads_ * head_dim_, bias));
  k_proj = register_module("k_proj", make_linear(hidden, kv_heads_ * head_dim_, bias));
  v_proj = register_module("v_proj", make_linear(hidden, kv_heads_ * head_dim_, bias));
  o_proj = register_module("o_proj", make_linear(heads_ * head_dim_, hidden, bias));
}

at::Tensor LlamaAttentionImpl::forward(const at::Tensor& x, const Rotary& rotary,
                                       KVCache::Layer* layer, int64_t past) {
  const int64_t batch = x.size(0), tokens = x.size(1);
  const auto split = [&](const at::Tensor& t, int64_t heads) {
    return t.view({batch, tokens, heads, head_dim_}).transpose(1, 2);
  };
  const at::Tensor query = rotate(split(q_proj(x), heads_), rotary);
  at::Tensor key = rotate(split(k_proj(x), kv_heads_), rotary);
  at::Tensor value = split(v_proj(x), kv_heads_);
  if (layer != nullptr) {
    layer->key.narrow(2, past, tokens).copy_(key);
    layer->value.narrow(2, past, tokens).copy_(value);
    key = layer->key.narrow(2, 0, past + tokens).to(x.scalar_type());
    value = layer->value.narrow(2, 0, past + tokens).to(x.scalar_type());
  }
  // Without a mask torch may choose its fused attention.
  const bool all_visible = window_ == 0 || past + tokens <= window_;
  const bool causal = all_visible && past == 0 && tokens > 1;
  std::optional<at::Tensor> mask;
  if (!causal && !(all_visible && tokens == 1)) mask = visible(tokens, past, window_, x.device());
  const at::Tensor out =
      at::scaled_dot_product_attention(query, key, value, mask, /*dropout_p=*/0.0, causal,
                                       /*scale=*/std::nullopt, /*enable_gqa=*/heads_ != kv_heads_);
  return o_proj(out.transpose(1, 2).reshape({batch, tokens, heads_ * head_dim_}));
}

LlamaMLPImpl::LlamaMLPImpl(const io::ModelConfig& config) {
  const int64_t hidden = config.hidden_size, inner = config.intermediate_size;
  gate_proj = register_module("gate_proj", make_linear(hidden, inner, config.mlp_bias));
  up_proj = register_module("up_proj", make_linear(hidden, inner, config.mlp_bias));
  down_proj = register_module("down_proj", make_linear(inner, hidden, config.mlp_bias));
}

at::Tensor LlamaMLPImpl::forward(const at::Tensor& x) {
  return down_proj(at::silu(gate_proj(x)) * up_proj(x));
}

LlamaDecoderLayerImpl::LlamaDecoderLayerImpl(const io::ModelConfig& config) {
  self_attn = register_module("self_attn", LlamaAttention(config));
  mlp = register_module("mlp", LlamaMLP(config));
  input_layernorm =
      register_module("input_layernorm", LlamaRMSNorm(config.hidden_size, config.rms_norm_eps));
  post_attention_layernorm = register_module("post_attention_layernorm",
                                             LlamaRMSNorm(config.hidden_size, config.rms_norm_eps));
}

at::Tensor LlamaDecoderLayerImpl::forward(const at::Tensor& x, const Rotary& rotary,
                                          KVCache::Layer* layer, int64_t past) {
  const at::Tensor h = x + self_attn(input_layernorm(x), rotary, layer, past);
  return h + mlp(post_attention_layernorm(h));
}

LlamaModelImpl::LlamaModelImpl(const io::ModelConfig& config)
    : inv_freq_(rope_inverse_frequencies(config)) {
  embed_tokens =
      register_module("embed_tokens", make_embedding(config.vocab_size, config.hidden_size));
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    layers->push_back(LlamaDecoderLayer(config));
  }
  register_module("layers", layers);
  norm = register_module("norm", LlamaRMSNorm(config.hidden_size, config.rms_norm_eps));
}

LlamaDecoderLayerImpl& LlamaModelImpl::layer(int64_t index) {
  return *layers->ptr<LlamaDecoderLayerImpl>(static_cast<size_t>(index));
}

at::Tensor LlamaModelImpl::forward(const at::Tensor& ids, KVCache* cache) {
  const int64_t tokens = ids.size(1), past = cache != nullptr ? cache->length() : 0;
  at::Tensor x = embed_tokens(ids);
  const int64_t half = static_cast<int64_t>(inv_freq_.size());
  at::Tensor cos = at::empty({tokens, half}, at::kFloat), sin = at::empty_like(cos);
  rope_tables(inv_freq_, past, tokens, cos.data_ptr<float>(), sin.data_ptr<float>());
  const auto both = [&](const at::Tensor& t) {
    return at::cat({t, t}, -1).to(x.device(), x.scalar_type());
  };
  const Rotary rotary{both(cos), both(sin)};
  for (int64_t i = 0; i < static_cast<int64_t>(layers->size()); ++i) {
    x = layer(i).forward(x, rotary, cache != nullptr ? &cache->layer(i) : nullptr, past);
  }
  return norm(x);
}

LlamaForCausalLMImpl::LlamaForCausalLMImpl(io::ModelConfig config) : config_(std::move(config)) {
  LOWBIT_CHECK(config_.model_type == "llama" || config_.model_type == "mistral",
               "AutoModelForCausalLM", "model_type", "llama or mistral", config_.model_type);
  LOWBIT_CHECK(config_.hidden_act == "silu", "AutoModelForCausalLM", "hidden_act", "silu",
               config_.hidden_act);
  model = register_module("model", LlamaModel(config_));
  if (!config_.tie_word_embeddings) {
    lm_head =
        register_module("lm_head", make_linear(config_.hidden_size, config_.vocab_size, false));
  }
}

const at::Tensor& LlamaForCausalLMImpl::head_weight() const {
  return lm_head.is_empty() ? model->embed_tokens->weight : lm_head->weight;
}

at::Tensor LlamaForCausalLMImpl::forward(const at::Tensor& ids, KVCache* cache,
                                         int64_t logits_to_keep) {
  LOWBIT_CHECK(ids.dim() == 2 && ids.scalar_type() == at::kLong, "forward", "ids",
               "[batch, tokens] int64", c10::str(ids.scalar_type(), " ", ids.sizes()));
  const int64_t past = cache != nullptr ? cache->length() : 0, tokens = ids.size(1);
  LOWBIT_CHECK(
      past + tokens <= config_.max_position_embeddings, "forward", "ids",
      c10::str("at most ", config_.max_position_embeddings, " tokens, the model's context"),
      past + tokens);
  if (cache != nullptr) cache->reserve(past + tokens);
  LOWBIT_CHECK(0 <= logits_to_keep && logits_to_keep <= tokens, "forward", "logits_to_keep",
               c10::str("in [0, ", tokens, "], the tokens"), logits_to_keep);
  at::Tensor hidden = model(ids.to(head_weight().device()), cache);
  if (logits_to_keep > 0) hidden = hidden.narrow(1, tokens - logits_to_keep, logits_to_keep);
  at::Tensor logits = at::linear(hidden, head_weight());
  if (cache != nullptr) {
    const at::Tensor first = ids[0].to(at::kCPU).contiguous();
    cache->append({first.const_data_ptr<int64_t>(), first.const_data_ptr<int64_t>() + tokens});
  }
  return logits;
}

}  // namespace lowbit::llm
