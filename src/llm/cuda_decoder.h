// A whole decoder on a CUDA device: the path without gradients. One kernel of the `decoder` family
// for everything between two linear layers. The step of one token a sequence is captured as a CUDA
// graph, which is good for every cache and every position: the kernels read those from device
// memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Stream.h>

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "llm/cuda_linear.h"
#include "lowbit/llm/kv_cache.h"
#include "lowbit/llm/llama.h"

namespace lowbit::llm {

class CudaDecoder {
 public:
  /// Whether the kernels fit the module: all of it on one CUDA device, one dtype beside quantized
  /// weights, head_dim a multiple of 8 up to 256.
  static bool supports(LlamaForCausalLMImpl& module);
  /// Reads the module's weights without copying them.
  explicit CudaDecoder(LlamaForCausalLMImpl& module);
  ~CudaDecoder();

  /// Whether the module still holds the weights that this was made from.
  bool is_current(LlamaForCausalLMImpl& module) const;
  /// Whether the cache has the model's dtype and device.
  bool fits(KVCache& cache) const;

  /// ids [batch, tokens] int64 on the CPU, checked. Appends keys and values to the cache (room is
  /// reserved), not its ids. Returns logits [batch, tokens or (last) 1, vocab] of the model's
  /// dtype.
  at::Tensor forward(const at::Tensor& ids, KVCache& cache, bool last);

  /// The most likely id after each row of logits [rows, vocab]; NaN is passed over, -1 for a row of
  /// nothing else. int64 on the device.
  static at::Tensor argmax(const at::Tensor& logits);

 private:
  struct Norm {
    explicit Norm(const LlamaRMSNorm& norm) : weight(norm->weight), data(weight.const_data_ptr()) {}
    bool reads(const LlamaRMSNorm& norm) const {
      return weight.is_same(norm->weight) && data == norm->weight.const_data_ptr();
    }
    at::Tensor weight;
    const void* data;
  };
  struct Layer {
    Norm attention_norm, mlp_norm;
    CudaLinear q, k, v, o, gate, up, down;
  };
  struct Call;
  struct Step;

  Call describe(const at::Tensor& input, int64_t batch, int64_t tokens) const;
  at::Tensor compute(const Call& call) const;
  at::Tensor attend(const Layer& layer, size_t index, const at::Tensor& normed,
                    const Call& call) const;
  at::Tensor flash(const at::Tensor& query, const KVCache::Layer& cache, const Call& call) const;
  at::Tensor mix(const Layer& layer, const at::Tensor& normed, const Call& call) const;
  at::Tensor normalize(const Norm& norm, const at::Tensor& hidden, const at::Tensor& delta,
                       const Call& call) const;
  at::Tensor step(const at::Tensor& input, int64_t batch);
  bool capture(Step& step, int64_t batch);

  std::vector<Layer> layers_;
  CudaLinear embedding_, head_;
  Norm norm_;
  at::Tensor inv_freq_;
  int64_t hidden_, heads_, kv_heads_, head_dim_, window_;
  float eps_;
  at::ScalarType dtype_;
  at::Device device_;

  std::mutex mutex_;                                ///< of what follows
  std::map<int64_t, std::unique_ptr<Step>> steps_;  ///< by batch
  std::optional<c10::Stream> last_stream_;          ///< that a step ran on
  bool use_graphs_ = true;
};

}  // namespace lowbit::llm
