#include "lowbit/nn/embedding.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/nn/functional/embedding.h>
#include <torch/nn/init.h>

#include <ostream>

#include "nn/quantize.h"
#include "ops/check.h"
#include "tensor/linear.h"
#include "tensor/state_hint.h"

namespace lowbit::nn {
namespace {

const char* name_of(const Embedding4bitImpl*) { return "lowbit::nn::Embedding4bit"; }
const char* name_of(const EmbeddingNF4Impl*) { return "lowbit::nn::EmbeddingNF4"; }
const char* name_of(const EmbeddingFP4Impl*) { return "lowbit::nn::EmbeddingFP4"; }
const char* name_of(const Embedding8bitImpl*) { return "lowbit::nn::Embedding8bit"; }

QuantizationConfig fourbit_config(const QuantizedEmbeddingOptions& options, QuantType type) {
  QuantizationConfig config =
      type == QuantType::kNF4 ? QuantizationConfig::nf4() : QuantizationConfig::fp4();
  return config.blocksize(options.blocksize())
      .double_quant(options.double_quant())
      .quant_storage(options.quant_storage());
}

void check_sizes(const char* op, int64_t num_embeddings, int64_t embedding_dim) {
  LOWBIT_CHECK(num_embeddings > 0, op, "num_embeddings", "positive", num_embeddings);
  LOWBIT_CHECK(embedding_dim > 0, op, "embedding_dim", "positive", embedding_dim);
}

/// Xavier-uniform, the padding row zero.
void draw_stable(at::Tensor& weight, const std::optional<int64_t>& padding_idx) {
  const at::NoGradGuard no_grad;
  torch::nn::init::xavier_uniform_(weight);
  if (padding_idx) weight[*padding_idx].zero_();
}

template <class Holder>
Holder converted(const torch::nn::Embedding& embedding, QuantizedEmbeddingOptions options) {
  const at::Tensor& table = embedding->weight;
  options.num_embeddings(table.size(0)).embedding_dim(table.size(1)).dtype(table.scalar_type());
  Holder layer(options);
  layer->quantize(table);
  layer->train(embedding->is_training());
  return layer;
}

}  // namespace

template <class Derived>
QuantizedEmbeddingBase<Derived>::QuantizedEmbeddingBase(const QuantizedEmbeddingOptions& options,
                                                        QuantizationConfig config)
    : options(options), config_(std::move(config)) {
  QuantizedEmbeddingBase::reset();
}

template <class Derived>
void QuantizedEmbeddingBase<Derived>::reset() {
  const char* op = name_of(static_cast<Derived*>(nullptr));
  check_sizes(op, options.num_embeddings(), options.embedding_dim());
  ops::check_float(op, "dtype", options.dtype());
  const at::Tensor drawn =
      at::randn({options.num_embeddings(), options.embedding_dim()}, options.dtype());
  weight = this->register_parameter("weight", quantize_named(op, "weight", drawn, config_),
                                    /*requires_grad=*/false);
}

template <class Derived>
void QuantizedEmbeddingBase<Derived>::pretty_print(std::ostream& stream) const {
  stream << name_of(static_cast<const Derived*>(nullptr))
         << "(num_embeddings=" << options.num_embeddings()
         << ", embedding_dim=" << options.embedding_dim() << ", " << scheme_text(config_) << ')';
}

template <class Derived>
at::Tensor QuantizedEmbeddingBase<Derived>::forward(const at::Tensor& ids) {
  return is_quantized(weight) ? tensor::embedding(ids, weight) : at::embedding(weight, ids);
}

template <class Derived>
void QuantizedEmbeddingBase<Derived>::quantize(const at::Tensor& dense) {
  const char* op = name_of(static_cast<Derived*>(nullptr));
  if (!dense.defined() && is_quantized(weight)) return;
  const at::Tensor& source = dense.defined() ? dense : weight;
  LOWBIT_CHECK(source.dim() == 2 && source.size(0) == options.num_embeddings() &&
                   source.size(1) == options.embedding_dim(),
               op, "weight",
               c10::str("[", options.num_embeddings(), ", ", options.embedding_dim(), "]"),
               c10::str("shape ", source.sizes()));
  tensor::become(weight, quantize_named(op, "weight", source, config_));
}

template <class Derived>
StateDict QuantizedEmbeddingBase<Derived>::state_dict() const {
  return nn::state_dict(*this);
}

template <class Derived>
LoadReport QuantizedEmbeddingBase<Derived>::load_state_dict(const StateDict& entries, bool strict) {
  return nn::load_state_dict(*this, entries, strict);
}

template class QuantizedEmbeddingBase<Embedding4bitImpl>;
template class QuantizedEmbeddingBase<EmbeddingNF4Impl>;
template class QuantizedEmbeddingBase<EmbeddingFP4Impl>;
template class QuantizedEmbeddingBase<Embedding8bitImpl>;

Embedding4bitImpl::Embedding4bitImpl(const QuantizedEmbeddingOptions& options)
    : QuantizedEmbeddingBase(options,
                             fourbit_config(options, parse_quant_type(options.quant_type()))) {}
Embedding4bitImpl::Embedding4bitImpl(int64_t num_embeddings, int64_t embedding_dim)
    : Embedding4bitImpl(QuantizedEmbeddingOptions(num_embeddings, embedding_dim)) {}
EmbeddingNF4Impl::EmbeddingNF4Impl(const QuantizedEmbeddingOptions& options)
    : QuantizedEmbeddingBase(options, fourbit_config(options, QuantType::kNF4)) {}
EmbeddingNF4Impl::EmbeddingNF4Impl(int64_t num_embeddings, int64_t embedding_dim)
    : EmbeddingNF4Impl(QuantizedEmbeddingOptions(num_embeddings, embedding_dim)) {}
EmbeddingFP4Impl::EmbeddingFP4Impl(const QuantizedEmbeddingOptions& options)
    : QuantizedEmbeddingBase(options, fourbit_config(options, QuantType::kFP4)) {}
EmbeddingFP4Impl::EmbeddingFP4Impl(int64_t num_embeddings, int64_t embedding_dim)
    : EmbeddingFP4Impl(QuantizedEmbeddingOptions(num_embeddings, embedding_dim)) {}
Embedding8bitImpl::Embedding8bitImpl(const QuantizedEmbeddingOptions& options)
    : QuantizedEmbeddingBase(options, QuantizationConfig::int8_weight_only()) {}
Embedding8bitImpl::Embedding8bitImpl(int64_t num_embeddings, int64_t embedding_dim)
    : Embedding8bitImpl(QuantizedEmbeddingOptions(num_embeddings, embedding_dim)) {}

Embedding4bit Embedding4bit::from(const torch::nn::Embedding& embedding,
                                  QuantizedEmbeddingOptions options) {
  return converted<Embedding4bit>(embedding, std::move(options));
}
EmbeddingNF4 EmbeddingNF4::from(const torch::nn::Embedding& embedding,
                                QuantizedEmbeddingOptions options) {
  return converted<EmbeddingNF4>(embedding, std::move(options));
}
EmbeddingFP4 EmbeddingFP4::from(const torch::nn::Embedding& embedding,
                                QuantizedEmbeddingOptions options) {
  return converted<EmbeddingFP4>(embedding, std::move(options));
}
Embedding8bit Embedding8bit::from(const torch::nn::Embedding& embedding,
                                  QuantizedEmbeddingOptions options) {
  return converted<Embedding8bit>(embedding, std::move(options));
}

// ---- Trained ones ----

EmbeddingImpl::EmbeddingImpl(int64_t num_embeddings, int64_t embedding_dim)
    : EmbeddingImpl(torch::nn::EmbeddingOptions(num_embeddings, embedding_dim)) {}

EmbeddingImpl::EmbeddingImpl(torch::nn::EmbeddingOptions options)
    : torch::nn::EmbeddingImpl(std::move(options)) {
  if (!this->options._weight().defined()) draw_stable(weight, this->options.padding_idx());
  tensor::request_float32_states(weight);
}

StableEmbeddingImpl::StableEmbeddingImpl(int64_t num_embeddings, int64_t embedding_dim)
    : StableEmbeddingImpl(torch::nn::EmbeddingOptions(num_embeddings, embedding_dim)) {}

StableEmbeddingImpl::StableEmbeddingImpl(torch::nn::EmbeddingOptions options)
    : options(std::move(options)) {
  StableEmbeddingImpl::reset();
}

void StableEmbeddingImpl::reset() {
  constexpr const char* kOp = "lowbit::nn::StableEmbedding";
  const int64_t rows = options.num_embeddings(), dim = options.embedding_dim();
  check_sizes(kOp, rows, dim);
  if (auto& padding = options.padding_idx(); padding.has_value()) {
    LOWBIT_CHECK(*padding >= -rows && *padding < rows, kOp, "padding_idx",
                 c10::str("within ", rows, " rows"), *padding);
    if (*padding < 0) *padding += rows;
  }
  if (const at::Tensor& given = options._weight(); given.defined()) {
    LOWBIT_CHECK(given.sizes() == at::IntArrayRef({rows, dim}), kOp, "_weight",
                 c10::str("[", rows, ", ", dim, "]"), c10::str("shape ", given.sizes()));
    weight = register_parameter("weight", given);
  } else {
    weight = register_parameter("weight", at::empty({rows, dim}));
    draw_stable(weight, options.padding_idx());
  }
  tensor::request_float32_states(weight);
  norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({dim})));
}

void StableEmbeddingImpl::pretty_print(std::ostream& stream) const {
  stream << "lowbit::nn::StableEmbedding(num_embeddings=" << options.num_embeddings()
         << ", embedding_dim=" << options.embedding_dim() << ')';
}

at::Tensor StableEmbeddingImpl::forward(const at::Tensor& ids) {
  namespace F = torch::nn::functional;
  const at::Tensor rows = F::embedding(ids, weight,
                                       F::EmbeddingFuncOptions()
                                           .padding_idx(options.padding_idx())
                                           .max_norm(options.max_norm())
                                           .norm_type(options.norm_type())
                                           .scale_grad_by_freq(options.scale_grad_by_freq())
                                           .sparse(options.sparse()));
  const at::ScalarType dtype = c10::typeMetaToScalarType(c10::get_default_dtype());
  return norm->forward(rows.to(dtype)).to(weight.scalar_type());
}

}  // namespace lowbit::nn
