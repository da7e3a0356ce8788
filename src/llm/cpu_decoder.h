// A whole decoder on the CPU in few steps: the path without gradients. Activations are float32 from
// the embedding to the logits; the kernels of the `decoder` family do what is between the linear
// layers, in place, on scratch made once a call.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "llm/cpu_linear.h"
#include "lowbit/llm/kv_cache.h"
#include "lowbit/llm/llama.h"

namespace lowbit::llm {

class CpuDecoder {
 public:
  /// Reads the module's weights without copying them (norms and biases are widened). `fast`: see
  /// CpuLinear.
  CpuDecoder(LlamaForCausalLMImpl& module, bool fast);

  /// Whether the module still holds the weights that this was made from.
  bool is_current(LlamaForCausalLMImpl& module) const;

  enum class Logits { kAll, kLast };
  /// ids [batch, tokens] int64, checked. Appends keys and values to the cache (room is reserved),
  /// not its ids. Returns float32 [batch, tokens or 1, vocab].
  at::Tensor forward(const at::Tensor& ids, KVCache& cache, Logits which) const;

 private:
  struct Norm {
    at::Tensor source, weight;  ///< as in the module; float32
  };
  struct Layer {
    Norm attention_norm, mlp_norm;
    CpuLinear q, k, v, o, gate, up, down;
  };
  struct Scratch;
  void attend(const Layer& layer, KVCache::Layer& cache, int64_t past, Scratch& s) const;
  void mix(const Layer& layer, Scratch& s) const;
  void normalize(const Norm& norm, const float* delta, Scratch& s) const;

  std::vector<Layer> layers_;
  CpuLinear embedding_, head_;
  Norm norm_;
  std::vector<float> inv_freq_;
  int64_t hidden_, inner_, heads_, kv_heads_, head_dim_, window_, vocab_;
  float eps_;
};

}  // namespace lowbit::llm
