#include "lowbit/llm/model.h"

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <filesystem>
#include <mutex>

#include "llm/cpu_decoder.h"
#include "llm/cuda_decoder.h"
#include "llm/parameter.h"
#include "llm/sampling.h"
#include "llm/weight.h"
#include "lowbit/quantized_tensor.h"
#include "ops/check.h"
#include "ops/device.h"

namespace lowbit::llm {

struct CausalLM::State {
  LlamaForCausalLM module{nullptr};
  std::string source;
  bool exact = false;
  io::GenerationConfigJson generation;
  std::mutex mutex;  ///< of the decoders
  std::shared_ptr<const CpuDecoder> decoder;
  std::shared_ptr<CudaDecoder> cuda_decoder;

  bool fast() const {
    const auto is_16_bit = [](const std::string& name) {
      return name == "bfloat16" || name == "float16";
    };
    const io::ModelConfig& config = module->config();
    return !exact &&
           (is_16_bit(config.dtype) || (config.quantization && config.quantization->load_in_4bit &&
                                        is_16_bit(config.quantization->bnb_4bit_compute_dtype)));
  }

  /// The fused form of the module's present weights.
  std::shared_ptr<const CpuDecoder> fused() {
    const std::lock_guard lock(mutex);
    if (decoder == nullptr || !decoder->is_current(*module)) {
      decoder = std::make_shared<const CpuDecoder>(*module, fast());
    }
    return decoder;
  }

  /// The same on a GPU; null where its kernels do not fit.
  std::shared_ptr<CudaDecoder> fused_on_gpu() {
    if constexpr (ops::kHasCuda) {
      const std::lock_guard lock(mutex);
      if (cuda_decoder == nullptr || !cuda_decoder->is_current(*module)) {
        cuda_decoder.reset();
        if (CudaDecoder::supports(*module)) cuda_decoder = std::make_shared<CudaDecoder>(*module);
      }
    }
    return cuda_decoder;
  }
};

namespace {

bool wants_gradients(LlamaForCausalLMImpl& module) {
  if (!at::GradMode::is_enabled()) return false;
  const auto parameters = module.parameters();
  return std::any_of(parameters.begin(), parameters.end(),
                     [](const at::Tensor& p) { return p.requires_grad(); });
}

/// ids: on the CPU.
void check_ids(const at::Tensor& ids, int64_t vocab) {
  constexpr const char* kOp = "forward";
  LOWBIT_CHECK(ids.dim() == 2 && ids.scalar_type() == at::kLong && ids.numel() > 0, kOp, "ids",
               "[batch, tokens] int64, not empty", c10::str(ids.scalar_type(), " ", ids.sizes()));
  const at::Tensor dense = ids.contiguous();
  const int64_t* data = dense.const_data_ptr<int64_t>();
  const auto [least, most] = std::minmax_element(data, data + dense.numel());
  const int64_t low = *least, high = *most;
  LOWBIT_CHECK(low >= 0 && high < vocab, kOp, "ids", c10::str("in [0, ", vocab, ")"),
               low < 0 ? low : high, "Is this the model's own tokenizer?");
}

at::Tensor as_tensor(const std::vector<int64_t>& ids) {
  return at::from_blob(const_cast<int64_t*>(ids.data()), {1, static_cast<int64_t>(ids.size())},
                       at::kLong);
}

at::Tensor on_host(const at::Tensor& logits) { return logits.to(at::kCPU, at::kFloat); }

std::vector<int64_t> first_sequence(const at::Tensor& ids) {
  const at::Tensor first = ids[0].contiguous();
  const int64_t* data = first.const_data_ptr<int64_t>();
  return {data, data + first.numel()};
}

}  // namespace

CausalLM::CausalLM(LlamaForCausalLM module, std::string source, bool exact)
    : state_(std::make_shared<State>()) {
  state_->module = std::move(module);
  state_->source = std::move(source);
  state_->exact = exact;
  if (std::filesystem::is_directory(state_->source)) {
    state_->generation = io::read_generation_config(state_->source);
  }
}

CausalLM::State& CausalLM::state() const {
  LOWBIT_CHECK(state_ != nullptr, "CausalLM", "model", "loaded", "an empty handle");
  return *state_;
}

const io::ModelConfig& CausalLM::config() const { return state().module->config(); }
const io::GenerationConfigJson& CausalLM::generation_defaults() const { return state().generation; }
LlamaForCausalLM CausalLM::module() const { return state().module; }
const std::string& CausalLM::source() const { return state().source; }
at::Device CausalLM::device() const { return state().module->model->norm->weight.device(); }
std::map<std::string, std::string> CausalLM::device_map() const { return {{"", device().str()}}; }
at::ScalarType CausalLM::dtype() const { return state().module->model->norm->weight.scalar_type(); }

std::optional<BitsAndBytesConfig> CausalLM::quantization_config() const {
  if (!config().quantization) return std::nullopt;
  return BitsAndBytesConfig::from_json(*config().quantization);
}

KVCache CausalLM::new_cache(int64_t batch, int64_t context) const {
  const io::ModelConfig& c = config();
  return KVCache(
      c.num_hidden_layers, batch, c.num_key_value_heads, c.head_dim,
      context > 0 ? std::min(context, c.max_position_embeddings) : c.max_position_embeddings,
      dtype(), device());
}

at::Tensor CausalLM::run(const at::Tensor& given, KVCache& cache, bool last) const {
  const at::Tensor ids = given.to(at::kCPU);
  check_ids(ids, config().vocab_size);
  LOWBIT_CHECK(ids.size(0) == cache.batch(), "forward", "ids",
               c10::str("of the cache's batch, ", cache.batch()), ids.size(0));
  const at::NoGradGuard no_grad;
  cache.reserve(cache.length() + ids.size(1));
  at::Tensor logits;
  if (device().is_cpu()) {
    logits = state().fused()->forward(ids, cache,
                                      last ? CpuDecoder::Logits::kLast : CpuDecoder::Logits::kAll);
  } else {
    const auto decoder = state().fused_on_gpu();
    if constexpr (ops::kHasCuda) {
      if (decoder != nullptr && decoder->fits(cache)) logits = decoder->forward(ids, cache, last);
    }
    if (!logits.defined()) return module()->forward(ids, &cache, /*logits_to_keep=*/last ? 1 : 0);
  }
  cache.append(first_sequence(ids));
  return logits;
}

at::Tensor CausalLM::forward(const at::Tensor& ids, KVCache* cache) const {
  if (wants_gradients(*state().module)) {
    check_ids(ids.to(at::kCPU), config().vocab_size);
    return state().module->forward(ids, cache);
  }
  KVCache own;
  if (cache == nullptr) own = new_cache(ids.dim() == 2 ? ids.size(0) : 1);
  return run(ids, cache != nullptr ? *cache : own, /*last=*/false).to(dtype());
}

at::Tensor CausalLM::logits(const std::vector<int64_t>& ids, KVCache* cache) const {
  KVCache own;
  if (cache == nullptr) own = new_cache(1);
  return on_host(run(as_tensor(ids), cache != nullptr ? *cache : own, /*last=*/false)[0]);
}

at::Tensor CausalLM::run_prompt(const std::vector<int64_t>& ids, KVCache& cache) const {
  // A long prompt goes through in parts: its activations stay in the cache of the processor, and
  // small. A GPU wants larger ones.
  const int64_t part_size = device().is_cpu() ? 512 : 4096;
  const auto count = static_cast<int64_t>(ids.size());
  cache.reserve(cache.length() + count);
  at::Tensor logits;
  for (int64_t first = 0; first == 0 || first < count; first += part_size) {
    const std::vector<int64_t> part(ids.begin() + first,
                                    ids.begin() + std::min(first + part_size, count));
    logits = run(as_tensor(part), cache, /*last=*/true);
  }
  return logits.view({1, -1});
}

at::Tensor CausalLM::next_logits(const std::vector<int64_t>& ids, KVCache& cache) const {
  return on_host(run_prompt(ids, cache).view({-1}));
}

int64_t CausalLM::next_token(const std::vector<int64_t>& ids, KVCache& cache) const {
  const at::Tensor logits = run_prompt(ids, cache);
  int64_t id = -1;
  if constexpr (ops::kHasCuda) {
    if (logits.is_cuda()) id = CudaDecoder::argmax(logits).item<int64_t>();
  }
  if (!logits.is_cuda()) {
    const at::Tensor row = on_host(logits);
    id = most_likely({row.const_data_ptr<float>(), static_cast<size_t>(row.numel())});
  }
  LOWBIT_CHECK(id >= 0, "generate", "logits", "numbers", "NaN only");
  return id;
}

void CausalLM::dequantize_(std::optional<at::ScalarType> dtype) {
  State& s = state();
  const at::ScalarType target = dtype.value_or(this->dtype());
  for (const auto& entry : s.module->named_parameters()) {
    if (is_quantized(entry.value())) {
      set_parameter(*s.module, entry.key(), lowbit::dequantize(entry.value(), target));
    }
  }
  s.module->set_quantization(std::nullopt);
}

}  // namespace lowbit::llm
