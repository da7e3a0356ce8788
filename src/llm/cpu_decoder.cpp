#include "llm/cpu_decoder.h"

#include <ATen/ops/empty.h>

#include <cmath>

#include "llm/rope.h"
#include "lowbit/kernels/decoder.h"
#include "ops/parallel.h"

namespace lowbit::llm {
namespace {

constexpr const char* kOp = "forward";

float* floats(const at::Tensor& t) { return t.mutable_data_ptr<float>(); }

at::Tensor widened(const at::Tensor& t) { return t.detach().to(at::kFloat).contiguous(); }

}  // namespace

/// Activations of one forward: `rows` = batch * tokens.
struct CpuDecoder::Scratch {
  int64_t batch, tokens, rows;
  at::Tensor hidden, normed, query, key, value, attended, gate, up, delta, cos, sin, attention;

  Scratch(const CpuDecoder& d, int64_t batch, int64_t tokens)
      : batch(batch), tokens(tokens), rows(batch * tokens) {
    const auto matrix = [](int64_t r, int64_t c) { return at::empty({r, c}, at::kFloat); };
    hidden = matrix(rows, d.hidden_);
    normed = matrix(rows, d.hidden_);
    delta = matrix(rows, d.hidden_);
    query = matrix(rows, d.heads_ * d.head_dim_);
    attended = matrix(rows, d.heads_ * d.head_dim_);
    key = matrix(rows, d.kv_heads_ * d.head_dim_);
    value = matrix(rows, d.kv_heads_ * d.head_dim_);
    gate = matrix(rows, d.inner_);
    up = matrix(rows, d.inner_);
    cos = matrix(tokens, d.head_dim_ / 2);
    sin = matrix(tokens, d.head_dim_ / 2);
  }
};

CpuDecoder::CpuDecoder(LlamaForCausalLMImpl& module, bool fast)
    : norm_{module.model->norm->weight, widened(module.model->norm->weight)},
      inv_freq_(module.model->inv_freq()),
      eps_(static_cast<float>(module.config().rms_norm_eps)) {
  const io::ModelConfig& config = module.config();
  hidden_ = config.hidden_size;
  inner_ = config.intermediate_size;
  heads_ = config.num_attention_heads;
  kv_heads_ = config.num_key_value_heads;
  head_dim_ = config.head_dim;
  window_ = config.sliding_window.value_or(0);
  vocab_ = config.vocab_size;
  embedding_ = CpuLinear(module.model->embed_tokens->weight, {}, fast);
  head_ = CpuLinear(module.head_weight(), {}, fast);
  const auto linear = [&](const torch::nn::Linear& l) {
    return CpuLinear(l->weight, l->bias, fast);
  };
  const auto norm = [](const LlamaRMSNorm& n) { return Norm{n->weight, widened(n->weight)}; };
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    LlamaDecoderLayerImpl& l = module.model->layer(i);
    layers_.push_back({norm(l.input_layernorm), norm(l.post_attention_layernorm),
                       linear(l.self_attn->q_proj), linear(l.self_attn->k_proj),
                       linear(l.self_attn->v_proj), linear(l.self_attn->o_proj),
                       linear(l.mlp->gate_proj), linear(l.mlp->up_proj), linear(l.mlp->down_proj)});
  }
}

bool CpuDecoder::is_current(LlamaForCausalLMImpl& module) const {
  const auto same = [](const CpuLinear& mine, const torch::nn::Linear& theirs) {
    return mine.reads(theirs->weight, theirs->bias);
  };
  if (!embedding_.reads(module.model->embed_tokens->weight, {}) ||
      !head_.reads(module.head_weight(), {}) || !norm_.source.is_same(module.model->norm->weight)) {
    return false;
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& mine = layers_[i];
    LlamaDecoderLayerImpl& l = module.model->layer(static_cast<int64_t>(i));
    if (!same(mine.q, l.self_attn->q_proj) || !same(mine.k, l.self_attn->k_proj) ||
        !same(mine.v, l.self_attn->v_proj) || !same(mine.o, l.self_attn->o_proj) ||
        !same(mine.gate, l.mlp->gate_proj) || !same(mine.up, l.mlp->up_proj) ||
        !same(mine.down, l.mlp->down_proj) ||
        !mine.attention_norm.source.is_same(l.input_layernorm->weight) ||
        !mine.mlp_norm.source.is_same(l.post_attention_layernorm->weight)) {
      return false;
    }
  }
  return true;
}

/// hidden += delta (unless null); normed = norm(hidden).
void CpuDecoder::normalize(const Norm& norm, const float* delta, Scratch& s) const {
  const kernels::RmsNormParams p{.hidden = floats(s.hidden),
                                 .delta = delta,
                                 .weight = norm.weight.const_data_ptr<float>(),
                                 .output = floats(s.normed),
                                 .rows = s.rows,
                                 .cols = hidden_,
                                 .eps = eps_};
  ops::for_units(kOp, s.rows, ops::grain_of(hidden_),
                 [&](int64_t begin, int64_t end) { return kernels::cpu::rms_norm(p, begin, end); });
}

/// delta = self_attn(normed)
void CpuDecoder::attend(const Layer& layer, KVCache::Layer& cache, int64_t past, Scratch& s) const {
  const LinearCall calls[] = {
      {&layer.q, floats(s.query)}, {&layer.k, floats(s.key)}, {&layer.v, floats(s.value)}};
  multiply_together(calls, floats(s.normed), s.rows);

  const auto element = static_cast<int64_t>(cache.key.element_size());
  const int64_t capacity = cache.key.size(2);
  const int64_t sequence = kv_heads_ * capacity * head_dim_ * element;  // bytes
  for (int64_t b = 0; b < s.batch; ++b) {
    const int64_t row = b * s.tokens;
    kernels::RotaryAppendParams rotary{
        .query = floats(s.query) + row * heads_ * head_dim_,
        .key = floats(s.key) + row * kv_heads_ * head_dim_,
        .value = floats(s.value) + row * kv_heads_ * head_dim_,
        .cos = floats(s.cos),
        .sin = floats(s.sin),
        .key_cache = static_cast<char*>(cache.key.mutable_data_ptr()) + b * sequence,
        .value_cache = static_cast<char*>(cache.value.mutable_data_ptr()) + b * sequence,
        .cache_dtype = ops::kernel_dtype(cache.key.scalar_type()),
        .tokens = s.tokens,
        .heads = heads_,
        .kv_heads = kv_heads_,
        .head_dim = head_dim_,
        .capacity = capacity,
        .past = past};
    ops::for_units(kOp, s.tokens, ops::grain_of(heads_ * head_dim_),
                   [&](int64_t begin, int64_t end) {
                     return kernels::cpu::rotary_append(rotary, begin, end);
                   });

    kernels::AttentionParams attention{.query = rotary.query,
                                       .key_cache = rotary.key_cache,
                                       .value_cache = rotary.value_cache,
                                       .cache_dtype = rotary.cache_dtype,
                                       .tokens = s.tokens,
                                       .heads = heads_,
                                       .kv_heads = kv_heads_,
                                       .head_dim = head_dim_,
                                       .capacity = capacity,
                                       .past = past,
                                       .window = window_,
                                       .scale = 1.0f / std::sqrt(static_cast<float>(head_dim_)),
                                       .output = floats(s.attended) + row * heads_ * head_dim_};
    const int64_t size = kernels::attention_workspace(attention);
    if (!s.attention.defined()) s.attention = at::empty({at::get_num_threads(), size}, at::kFloat);
    const int64_t rows = heads_ / kv_heads_ * std::min(s.tokens, kernels::kAttentionTokens);
    const int64_t work = rows * (past + s.tokens) * head_dim_;
    ops::for_units(kOp, kernels::attention_units(attention), ops::grain_of(work),
                   [&](int64_t begin, int64_t end) {
                     kernels::AttentionParams mine = attention;
                     mine.workspace = floats(s.attention) + at::get_thread_num() * size;
                     return kernels::cpu::attention(mine, begin, end);
                   });
  }
  layer.o.multiply(floats(s.attended), s.rows, floats(s.delta));
}

/// delta = mlp(normed)
void CpuDecoder::mix(const Layer& layer, Scratch& s) const {
  const LinearCall calls[] = {{&layer.gate, floats(s.gate)}, {&layer.up, floats(s.up)}};
  multiply_together(calls, floats(s.normed), s.rows);
  const kernels::SiluMulParams p{.gate = floats(s.gate),
                                 .up = floats(s.up),
                                 .output = floats(s.gate),
                                 .count = s.rows * inner_};
  ops::for_units(kOp, p.count, ops::grain_of(1),
                 [&](int64_t begin, int64_t end) { return kernels::cpu::silu_mul(p, begin, end); });
  layer.down.multiply(floats(s.gate), s.rows, floats(s.delta));
}

at::Tensor CpuDecoder::forward(const at::Tensor& ids, KVCache& cache, Logits which) const {
  const int64_t batch = ids.size(0), tokens = ids.size(1), past = cache.length();
  Scratch s(*this, batch, tokens);
  embedding_.gather(ids.contiguous().const_data_ptr<int64_t>(), s.rows, floats(s.hidden));
  rope_tables(inv_freq_, past, tokens, floats(s.cos), floats(s.sin));
  const float* delta = nullptr;
  for (size_t i = 0; i < layers_.size(); ++i) {
    normalize(layers_[i].attention_norm, delta, s);
    attend(layers_[i], cache.layer(static_cast<int64_t>(i)), past, s);
    delta = floats(s.delta);
    normalize(layers_[i].mlp_norm, delta, s);
    mix(layers_[i], s);
  }
  normalize(norm_, delta, s);

  at::Tensor last = s.normed.view({batch, tokens, hidden_});
  if (which == Logits::kLast) last = last.narrow(1, tokens - 1, 1).contiguous();
  at::Tensor logits = at::empty({batch, last.size(1), vocab_}, at::kFloat);
  head_.multiply(floats(last), batch * last.size(1), floats(logits));
  return logits;
}

}  // namespace lowbit::llm
