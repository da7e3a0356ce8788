// A causal language model, ready to run.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lowbit/io/hf_config.h"
#include "lowbit/llm/config.h"
#include "lowbit/llm/generation.h"
#include "lowbit/llm/kv_cache.h"
#include "lowbit/llm/llama.h"
#include "lowbit/llm/memory.h"

namespace lowbit::llm {

/// A handle: copies are the same model. Loaded by AutoModelForCausalLM::from_pretrained, or made
/// from a module.
class CausalLM {
 public:
  CausalLM() = default;
  /// `source`: the directory or GGUF file the weights came from (its tokenizer is saved with the
  /// model); may be empty. `exact`: 4-bit products on the CPU keep float32 activations even where
  /// the quantization config allows 16-bit ones.
  explicit CausalLM(LlamaForCausalLM module, std::string source = "", bool exact = false);

  const io::ModelConfig& config() const;
  const io::GenerationConfigJson& generation_defaults() const;
  /// How the quantized layers were made; nothing for a float model.
  std::optional<BitsAndBytesConfig> quantization_config() const;
  /// The torch module: parameters() and their names are the checkpoint's.
  LlamaForCausalLM module() const;
  /// Dtype of the logits and of everything that is not quantized.
  at::ScalarType dtype() const;
  /// The directory or GGUF file the weights came from; may be empty.
  const std::string& source() const;
  at::Device device() const;
  std::map<std::string, std::string> device_map() const;

  /// Logits [batch, tokens, vocab] of ids [batch, tokens] (int64), in dtype(). With a cache, ids
  /// continue the tokens in it, and it grows by them. Records gradients when grad mode is on;
  /// without, the fused path. The logits are on the model's device. Throws
  /// c10::Error for ids outside the vocabulary and past the context.
  at::Tensor forward(const at::Tensor& ids, KVCache* cache = nullptr) const;
  /// Logits [tokens, vocab] in float32 on the CPU, without gradients.
  at::Tensor logits(const std::vector<int64_t>& ids, KVCache* cache = nullptr) const;
  /// Logits [vocab] in float32 on the CPU after the last of `ids`, which continue the cache.
  at::Tensor next_logits(const std::vector<int64_t>& ids, KVCache& cache) const;
  /// The most likely id after the last of `ids`: only a number leaves a GPU. Of equal logits the
  /// lowest id; NaN is passed over. Throws c10::Error when no logit is a number.
  int64_t next_token(const std::vector<int64_t>& ids, KVCache& cache) const;
  /// An empty cache that may grow to `context` tokens (0: the model's).
  KVCache new_cache(int64_t batch = 1, int64_t context = 0) const;

  /// The prompt and what follows, as in Transformers.
  std::vector<int64_t> generate(const std::vector<int64_t>& ids,
                                const GenerationConfig& config = {}) const;
  /// The new tokens, as they come. With a cache of the caller's, tokens that it shares with the
  /// front of `ids` are not computed again (the next turn of a chat); it must outlive the stream.
  TokenStream stream(const std::vector<int64_t>& ids, const GenerationConfig& config = {},
                     KVCache* cache = nullptr) const;

  /// `context`: tokens to plan the KV cache for (0: the model's context).
  MemoryReport memory_report(int64_t context = 0) const;

  /// Turns every quantized weight back into a floating-point one (unset: of dtype()).
  void dequantize_(std::optional<at::ScalarType> dtype = std::nullopt);
  /// Writes config.json, generation_config.json, safetensors and the tokenizer's files.
  /// Transformers reads the result unless 8-bit embeddings are in it. Throws IoError, and leaves no
  /// half-written file.
  void save_pretrained(const std::string& directory,
                       const SavePretrainedOptions& options = {}) const;

 private:
  struct State;
  std::shared_ptr<State> state_;
  State& state() const;
  /// Logits on the model's device; `last`: of the last token alone.
  at::Tensor run(const at::Tensor& ids, KVCache& cache, bool last) const;
  /// The same of the last token, [1, vocab], for any number of ids.
  at::Tensor run_prompt(const std::vector<int64_t>& ids, KVCache& cache) const;
};

}  // namespace lowbit::llm
