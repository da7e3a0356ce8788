// Embeddings: tables in 4 or 8 bits for inference, and stable ones for training.
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <optional>
#include <string>

#include "lowbit/nn/state_dict.h"
#include "lowbit/quantize.h"

namespace lowbit::nn {

struct QuantizedEmbeddingOptions {
  QuantizedEmbeddingOptions(int64_t num_embeddings, int64_t embedding_dim)
      : num_embeddings_(num_embeddings), embedding_dim_(embedding_dim) {}
  TORCH_ARG(int64_t, num_embeddings);
  TORCH_ARG(int64_t, embedding_dim);
  // 4-bit tables only:
  TORCH_ARG(std::string, quant_type) = "fp4";
  TORCH_ARG(bool, double_quant) = false;
  TORCH_ARG(at::ScalarType, quant_storage) = at::kByte;
  TORCH_ARG(int64_t, blocksize) = 64;
  /// Of the table that is quantized, and of the output.
  TORCH_ARG(at::ScalarType, dtype) = at::kFloat;
};

/// What the quantized embeddings share. The table [num_embeddings, embedding_dim] is a quantized
/// tensor from the start, drawn as torch::nn::Embedding draws it; it does not train. Rows that are
/// looked up are the only ones dequantized.
template <class Derived>
class QuantizedEmbeddingBase : public torch::nn::Cloneable<Derived> {
 public:
  QuantizedEmbeddingBase(const QuantizedEmbeddingOptions& options, QuantizationConfig config);
  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// ids: int64 or int32, any shape. Returns ids.shape + [embedding_dim] of the table's dtype.
  /// Throws c10::Error for an id outside the table.
  at::Tensor forward(const at::Tensor& ids);

  /// Quantizes a table given in floating point and takes it. Without an argument: its own, if that
  /// was dequantized.
  void quantize(const at::Tensor& dense = {});
  StateDict state_dict() const;
  LoadReport load_state_dict(const StateDict& entries, bool strict = true);
  const QuantizationConfig& quantization_config() const noexcept { return config_; }

  QuantizedEmbeddingOptions options;
  at::Tensor weight;

 private:
  QuantizationConfig config_;
};

class Embedding4bitImpl : public QuantizedEmbeddingBase<Embedding4bitImpl> {
 public:
  Embedding4bitImpl(int64_t num_embeddings, int64_t embedding_dim);
  explicit Embedding4bitImpl(const QuantizedEmbeddingOptions& options);
};
/// quant_type of the options is not read.
class EmbeddingNF4Impl : public QuantizedEmbeddingBase<EmbeddingNF4Impl> {
 public:
  EmbeddingNF4Impl(int64_t num_embeddings, int64_t embedding_dim);
  explicit EmbeddingNF4Impl(const QuantizedEmbeddingOptions& options);
};
class EmbeddingFP4Impl : public QuantizedEmbeddingBase<EmbeddingFP4Impl> {
 public:
  EmbeddingFP4Impl(int64_t num_embeddings, int64_t embedding_dim);
  explicit EmbeddingFP4Impl(const QuantizedEmbeddingOptions& options);
};
/// Row-wise int8.
class Embedding8bitImpl : public QuantizedEmbeddingBase<Embedding8bitImpl> {
 public:
  Embedding8bitImpl(int64_t num_embeddings, int64_t embedding_dim);
  explicit Embedding8bitImpl(const QuantizedEmbeddingOptions& options);
};

#define LOWBIT_EMBEDDING(Name)                                    \
  class Name : public torch::nn::ModuleHolder<Name##Impl> {       \
   public:                                                        \
    using torch::nn::ModuleHolder<Name##Impl>::ModuleHolder;      \
    using Impl = Name##Impl;                                      \
    /** `options`: how; sizes and dtype are the layer's. */       \
    static Name from(const torch::nn::Embedding& embedding,       \
                     QuantizedEmbeddingOptions options = {0, 0}); \
  }
LOWBIT_EMBEDDING(Embedding4bit);
LOWBIT_EMBEDDING(EmbeddingNF4);
LOWBIT_EMBEDDING(EmbeddingFP4);
LOWBIT_EMBEDDING(Embedding8bit);
#undef LOWBIT_EMBEDDING

/// torch::nn::Embedding with Xavier-uniform weights (the padding row is zero), which 8-bit
/// optimizers cope with better than normal ones. Those of lowbit keep float32 states for it.
class EmbeddingImpl : public torch::nn::EmbeddingImpl {
 public:
  EmbeddingImpl(int64_t num_embeddings, int64_t embedding_dim);
  explicit EmbeddingImpl(torch::nn::EmbeddingOptions options);
};
TORCH_MODULE(Embedding);

/// The same, then in the default dtype a layer norm ("norm.weight", "norm.bias"); returned in the
/// weight's dtype. Dettmers et al., https://arxiv.org/abs/2110.02861, section 2.3.
class StableEmbeddingImpl : public torch::nn::Cloneable<StableEmbeddingImpl> {
 public:
  StableEmbeddingImpl(int64_t num_embeddings, int64_t embedding_dim);
  explicit StableEmbeddingImpl(torch::nn::EmbeddingOptions options);
  void reset() override;
  void pretty_print(std::ostream& stream) const override;
  /// ids: any shape. Returns ids.shape + [embedding_dim].
  at::Tensor forward(const at::Tensor& ids);

  torch::nn::EmbeddingOptions options;
  at::Tensor weight;
  torch::nn::LayerNorm norm{nullptr};
};
TORCH_MODULE(StableEmbedding);

}  // namespace lowbit::nn
