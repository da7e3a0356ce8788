#include "llm/cuda_decoder.h"

#include <ATen/cuda/CUDAGraph.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cmath>
#include <cstring>

#include "lowbit/kernels/decoder.h"
#include "lowbit/quantized_tensor.h"
#include "ops/cuda.h"

namespace lowbit::llm {
namespace {

constexpr const char* kOp = "forward";
/// Tokens a sequence up to which each reads the cache by itself, and launches overlap.
constexpr int64_t kFewTokens = 8;
/// Batch sizes whose graphs are kept.
constexpr size_t kMostSteps = 16;

constexpr int64_t kSlotWords = sizeof(kernels::KvSlot) / sizeof(int64_t);
static_assert(sizeof(kernels::KvSlot) == 4 * sizeof(int64_t));

bool is_head_dim(int64_t dim) { return dim % 8 == 0 && 8 <= dim && dim <= 256; }

}  // namespace

/// One forward. Slots and ids are on the device.
struct CudaDecoder::Call {
  int64_t batch, tokens, past = 0;
  KVCache* cache = nullptr;  ///< for many tokens
  at::Tensor slots, ids;     ///< views of the input
  at::Tensor workspace;      ///< of attention over few tokens; undefined for many
  kernels::AttentionCudaPlan plan;
  bool last = true;
  /// Kernels may begin before the one in front of them ended (programmatic dependent launch).
  bool early = false;

  bool few() const { return tokens <= kFewTokens; }
  const kernels::KvSlot* slot(size_t layer) const {
    return static_cast<const kernels::KvSlot*>(slots.const_data_ptr()) + layer;
  }
};

/// The step of one token for each sequence of a batch.
struct CudaDecoder::Step {
  at::Tensor input, workspace;
  at::Tensor logits;  ///< in the graph's own memory
  std::unique_ptr<at::cuda::CUDAGraph> graph;
  bool warm = false;  ///< ran once without a graph: libraries and kernels are loaded
};

bool CudaDecoder::supports(LlamaForCausalLMImpl& module) {
  const at::Tensor& norm = module.model->norm->weight;
  if (!norm.is_cuda() || !ops::is_kernel_dtype(norm.scalar_type())) return false;
  if (!is_head_dim(module.config().head_dim)) return false;
  for (const at::Tensor& p : module.parameters()) {
    if (p.device() != norm.device()) return false;
    if (!is_quantized(p) && (p.scalar_type() != norm.scalar_type() || !p.is_contiguous())) {
      return false;
    }
  }
  return true;
}

CudaDecoder::CudaDecoder(LlamaForCausalLMImpl& module)
    : norm_(module.model->norm),
      eps_(static_cast<float>(module.config().rms_norm_eps)),
      dtype_(norm_.weight.scalar_type()),
      device_(norm_.weight.device()) {
  const io::ModelConfig& config = module.config();
  hidden_ = config.hidden_size;
  heads_ = config.num_attention_heads;
  kv_heads_ = config.num_key_value_heads;
  head_dim_ = config.head_dim;
  window_ = config.sliding_window.value_or(0);
  inv_freq_ = at::tensor(module.model->inv_freq(), at::kFloat).to(device_);
  embedding_ = CudaLinear(module.model->embed_tokens->weight, {});
  head_ = CudaLinear(module.head_weight(), {});
  const auto linear = [](const torch::nn::Linear& l) { return CudaLinear(l->weight, l->bias); };
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    LlamaDecoderLayerImpl& l = module.model->layer(i);
    layers_.push_back({Norm(l.input_layernorm), Norm(l.post_attention_layernorm),
                       linear(l.self_attn->q_proj), linear(l.self_attn->k_proj),
                       linear(l.self_attn->v_proj), linear(l.self_attn->o_proj),
                       linear(l.mlp->gate_proj), linear(l.mlp->up_proj), linear(l.mlp->down_proj)});
  }
}

CudaDecoder::~CudaDecoder() = default;

bool CudaDecoder::is_current(LlamaForCausalLMImpl& module) const {
  const auto same = [](const CudaLinear& mine, const torch::nn::Linear& theirs) {
    return mine.reads(theirs->weight, theirs->bias);
  };
  if (!norm_.reads(module.model->norm) || norm_.weight.device() != device_ ||
      norm_.weight.scalar_type() != dtype_ ||
      !embedding_.reads(module.model->embed_tokens->weight, {}) ||
      !head_.reads(module.head_weight(), {})) {
    return false;
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& mine = layers_[i];
    LlamaDecoderLayerImpl& l = module.model->layer(static_cast<int64_t>(i));
    if (!same(mine.q, l.self_attn->q_proj) || !same(mine.k, l.self_attn->k_proj) ||
        !same(mine.v, l.self_attn->v_proj) || !same(mine.o, l.self_attn->o_proj) ||
        !same(mine.gate, l.mlp->gate_proj) || !same(mine.up, l.mlp->up_proj) ||
        !same(mine.down, l.mlp->down_proj) || !mine.attention_norm.reads(l.input_layernorm) ||
        !mine.mlp_norm.reads(l.post_attention_layernorm)) {
      return false;
    }
  }
  return true;
}

bool CudaDecoder::fits(KVCache& cache) const {
  const at::Tensor& key = cache.layer(0).key;
  return key.defined() && key.scalar_type() == dtype_ && key.device() == device_;
}

/// normed = norm(hidden += delta)
at::Tensor CudaDecoder::normalize(const Norm& norm, const at::Tensor& hidden,
                                  const at::Tensor& delta, const Call& call) const {
  at::Tensor output = ops::empty(hidden.sizes(), dtype_, device_);
  const ops::cuda::Scope scope(kOp, device_);
  ops::cuda::check_launch(
      kOp, kernels::cuda::rms_norm({.hidden = hidden.mutable_data_ptr(),
                                    .delta = delta.defined() ? delta.const_data_ptr() : nullptr,
                                    .weight = norm.weight.const_data_ptr(),
                                    .output = output.mutable_data_ptr(),
                                    .dtype = ops::kernel_dtype(dtype_),
                                    .rows = hidden.size(0),
                                    .cols = hidden_,
                                    .eps = eps_,
                                    .programmatic_launch = call.early},
                                   scope.stream()));
  return output;
}

/// Causal attention of many tokens over a cache that ends with them.
at::Tensor CudaDecoder::flash(const at::Tensor& query, const KVCache::Layer& cache,
                              const Call& call) const {
  const int64_t length = call.past + call.tokens;
  const at::Tensor key = cache.key.narrow(2, 0, length), value = cache.value.narrow(2, 0, length);
  const at::Tensor q = query.view({call.batch, call.tokens, heads_, head_dim_});
  if (dtype_ != at::kFloat) {
    // Its causal mask is aligned to the last key, unlike scaled_dot_product_attention's, and it
    // knows windows.
    const auto left = window_ > 0 ? std::optional(window_ - 1) : std::nullopt;
    const auto right = window_ > 0 ? std::optional<int64_t>(0) : std::nullopt;
    return std::get<0>(at::_flash_attention_forward(
        q, key.transpose(1, 2), value.transpose(1, 2), std::nullopt, std::nullopt, call.tokens,
        length, /*dropout_p=*/0.0, /*is_causal=*/true, /*return_debug_mask=*/false,
        1.0 / std::sqrt(static_cast<double>(head_dim_)), left, right));
  }
  const auto options = at::TensorOptions(at::kLong).device(device_);
  const at::Tensor rows = at::arange(call.past, length, options).unsqueeze(1);
  const at::Tensor columns = at::arange(length, options).unsqueeze(0);
  at::Tensor visible = columns <= rows;
  if (window_ > 0) visible = visible.logical_and(columns > rows - window_);
  return at::scaled_dot_product_attention(q.transpose(1, 2), key, value, visible,
                                          /*dropout_p=*/0.0, /*is_causal=*/false,
                                          /*scale=*/std::nullopt,
                                          /*enable_gqa=*/heads_ != kv_heads_)
      .transpose(1, 2);
}

at::Tensor CudaDecoder::attend(const Layer& layer, size_t index, const at::Tensor& normed,
                               const Call& call) const {
  at::Tensor projected[3];
  CudaLinear::multiply_group({&layer.q, &layer.k, &layer.v}, normed, call.early, projected);
  const auto& [query, key, value] = projected;
  const auto dtype = ops::kernel_dtype(dtype_);
  const ops::cuda::Scope scope(kOp, device_);
  ops::cuda::check_launch(
      kOp, kernels::cuda::rotary_append({.query = query.mutable_data_ptr(),
                                         .key = key.const_data_ptr(),
                                         .value = value.const_data_ptr(),
                                         .inv_freq = inv_freq_.const_data_ptr<float>(),
                                         .slot = call.slot(index),
                                         .dtype = dtype,
                                         .batch = call.batch,
                                         .tokens = call.tokens,
                                         .heads = heads_,
                                         .kv_heads = kv_heads_,
                                         .head_dim = head_dim_,
                                         .programmatic_launch = call.early},
                                        scope.stream()));
  if (!call.few()) {
    const at::Tensor attended = flash(query, call.cache->layer(static_cast<int64_t>(index)), call);
    return layer.o.multiply(attended.reshape(query.sizes()), false);
  }
  at::Tensor attended = ops::empty(query.sizes(), dtype_, device_);
  ops::cuda::check_launch(
      kOp, kernels::cuda::attention(call.plan,
                                    {.query = query.const_data_ptr(),
                                     .slot = call.slot(index),
                                     .dtype = dtype,
                                     .batch = call.batch,
                                     .tokens = call.tokens,
                                     .heads = heads_,
                                     .kv_heads = kv_heads_,
                                     .head_dim = head_dim_,
                                     .window = window_,
                                     .scale = 1.0f / std::sqrt(static_cast<float>(head_dim_)),
                                     .output = attended.mutable_data_ptr(),
                                     .workspace = call.workspace.mutable_data_ptr(),
                                     .programmatic_launch = call.early},
                                    scope.stream()));
  return layer.o.multiply(attended, call.early);
}

at::Tensor CudaDecoder::mix(const Layer& layer, const at::Tensor& normed, const Call& call) const {
  at::Tensor projected[2];
  CudaLinear::multiply_group({&layer.gate, &layer.up}, normed, call.early, projected);
  const auto& [gate, up] = projected;
  const ops::cuda::Scope scope(kOp, device_);
  ops::cuda::check_launch(kOp, kernels::cuda::silu_mul({.gate = gate.const_data_ptr(),
                                                        .up = up.const_data_ptr(),
                                                        .output = gate.mutable_data_ptr(),
                                                        .dtype = ops::kernel_dtype(dtype_),
                                                        .count = gate.numel(),
                                                        .programmatic_launch = call.early},
                                                       scope.stream()));
  return layer.down.multiply(gate, call.early);
}

at::Tensor CudaDecoder::compute(const Call& call) const {
  const at::Tensor hidden = embedding_.gather(call.ids, dtype_);
  at::Tensor delta;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    delta = attend(layer, i, normalize(layer.attention_norm, hidden, delta, call), call);
    delta = mix(layer, normalize(layer.mlp_norm, hidden, delta, call), call);
  }
  at::Tensor normed = normalize(norm_, hidden, delta, call);
  int64_t tokens = call.tokens;
  if (call.last && tokens > 1) {
    normed = normed.view({call.batch, tokens, hidden_}).select(1, tokens - 1).contiguous();
    tokens = 1;
  }
  return head_.multiply(normed, call.early).view({call.batch, tokens, -1});
}

CudaDecoder::Call CudaDecoder::describe(const at::Tensor& input, int64_t batch,
                                        int64_t tokens) const {
  const int64_t words = kSlotWords * static_cast<int64_t>(layers_.size());
  Call call{.batch = batch,
            .tokens = tokens,
            .slots = input.narrow(0, 0, words),
            .ids = input.narrow(0, words, batch * tokens),
            .workspace = {},
            .plan = {}};
  const kernels::DeviceProperties& device = ops::cuda::properties(device_);
  call.early = call.few() && device.compute_capability >= 90;
  if (call.few()) {
    call.plan = kernels::cuda::plan_attention({.batch = batch,
                                               .tokens = tokens,
                                               .heads = heads_,
                                               .kv_heads = kv_heads_,
                                               .head_dim = head_dim_},
                                              device);
  }
  return call;
}

at::Tensor CudaDecoder::forward(const at::Tensor& ids, KVCache& cache, bool last) {
  const c10::DeviceGuard guard(device_);
  const int64_t batch = ids.size(0), tokens = ids.size(1);
  const int64_t words = kSlotWords * static_cast<int64_t>(layers_.size());
  const at::Tensor input = at::empty({words + ids.numel()}, at::kLong);
  auto* out = input.mutable_data_ptr<int64_t>();
  for (size_t i = 0; i < layers_.size(); ++i) {
    const KVCache::Layer& layer = cache.layer(static_cast<int64_t>(i));
    const kernels::KvSlot slot{.key = layer.key.mutable_data_ptr(),
                               .value = layer.value.mutable_data_ptr(),
                               .capacity = layer.key.size(2),
                               .past = cache.length()};
    std::memcpy(out + kSlotWords * static_cast<int64_t>(i), &slot, sizeof slot);
  }
  std::memcpy(out + words, ids.contiguous().const_data_ptr<int64_t>(),
              static_cast<size_t>(ids.numel()) * sizeof(int64_t));
  if (tokens == 1) return step(input, batch);

  const at::Tensor on_device = ops::empty(input.sizes(), at::kLong, device_);
  on_device.copy_(input, /*non_blocking=*/true);
  Call call = describe(on_device, batch, tokens);
  if (call.few()) {
    call.workspace =
        at::zeros({call.plan.workspace_bytes}, at::TensorOptions(at::kByte).device(device_));
  }
  call.cache = &cache;
  call.past = cache.length();
  call.last = last;
  return compute(call);
}

/// input: slots and ids on the CPU. The first step of a batch size runs without a graph.
at::Tensor CudaDecoder::step(const at::Tensor& input, int64_t batch) {
  const std::lock_guard lock(mutex_);
  // Steps share memory: one after the other, also over streams.
  const c10::Stream stream = c10::cuda::getCurrentCUDAStream(device_.index()).unwrap();
  if (last_stream_ && *last_stream_ != stream) last_stream_->synchronize();
  last_stream_ = stream;
  if (steps_.size() >= kMostSteps && steps_.count(batch) == 0) {
    stream.synchronize();
    steps_.clear();
  }
  std::unique_ptr<Step>& slot = steps_[batch];
  if (slot == nullptr) {
    auto fresh = std::make_unique<Step>();
    fresh->input = ops::empty(input.sizes(), at::kLong, device_);
    const int64_t bytes = describe(fresh->input, batch, 1).plan.workspace_bytes;
    fresh->workspace = at::zeros({bytes}, at::TensorOptions(at::kByte).device(device_));
    slot = std::move(fresh);
  }
  Step& step = *slot;
  step.input.copy_(input, /*non_blocking=*/true);
  if (step.graph == nullptr && !(use_graphs_ && step.warm && capture(step, batch))) {
    Call call = describe(step.input, batch, 1);
    call.workspace = step.workspace;
    at::Tensor logits = compute(call);
    step.warm = true;
    return logits;
  }
  step.graph->replay();
  return step.logits.clone();
}

/// False, and never again, when CUDA or a library refuses.
bool CudaDecoder::capture(Step& step, int64_t batch) {
  Call call = describe(step.input, batch, 1);
  call.workspace = step.workspace;
  auto graph = std::make_unique<at::cuda::CUDAGraph>();
  bool begun = false;
  try {
    const c10::cuda::CUDAStreamGuard guard(
        c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device_.index()));
    graph->capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    begun = true;
    step.logits = compute(call);
    begun = false;
    graph->capture_end();
    step.graph = std::move(graph);
  } catch (const c10::Error&) {
    use_graphs_ = false;
    step.logits = at::Tensor();
    if (begun) {
      try {
        graph->capture_end();
      } catch (const c10::Error&) {  // the capture is over either way
      }
    }
    (void)cudaGetLastError();
  }
  return step.graph != nullptr;
}

at::Tensor CudaDecoder::argmax(const at::Tensor& logits) {
  at::Tensor ids = ops::empty({logits.size(0)}, at::kLong, logits.device());
  const ops::cuda::Scope scope("generate", logits.device());
  ops::cuda::check_launch("generate",
                          kernels::cuda::argmax({.values = logits.const_data_ptr(),
                                                 .dtype = ops::kernel_dtype(logits.scalar_type()),
                                                 .rows = logits.size(0),
                                                 .cols = logits.size(1),
                                                 .output = ids.mutable_data_ptr<int64_t>()},
                                                scope.stream()));
  return ids;
}

}  // namespace lowbit::llm
