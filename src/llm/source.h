// Where a model's weights come from, under the names that the module gives them.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "llm/slots.h"
#include "lowbit/io/gguf.h"
#include "lowbit/io/hf_config.h"
#include "lowbit/io/safetensors.h"

namespace lowbit::llm {

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  /// A directory with config.json, or a GGUF file. Throws FormatError, IoError.
  static std::unique_ptr<WeightSource> open(const std::string& path);

  const io::ModelConfig& config() const { return config_; }
  virtual const char* format() const = 0;
  virtual int64_t total_bytes() const = 0;

  /// Throws FormatError that lists what is missing, what has no place in the model, and wrong
  /// shapes.
  virtual void check(const std::vector<Slot>& slots) const = 0;
  /// The slot's weight is stored quantized.
  virtual bool is_quantized(const Slot& slot) const = 0;
  /// Bytes of the slot in the file (with statistics) and the name of its encoding.
  virtual int64_t bytes(const Slot& slot) const = 0;
  virtual std::string scheme(const Slot& slot) const = 0;

  /// Where tensors that are made rather than read are made; files are read into host memory.
  virtual void set_device(at::Device) {}
  /// The slot's tensor in `dtype`. May share the mapped file.
  virtual at::Tensor load_float(const Slot& slot, at::ScalarType dtype) const = 0;
  /// A quantized tensor; `dtype` is what an 8-bit weight stands for (a 4-bit one knows).
  virtual at::Tensor load_quantized(const Slot& slot, at::ScalarType dtype,
                                    std::optional<at::ScalarType> compute_dtype) const = 0;
  /// The slot's pages are not needed again.
  virtual void release(const Slot& slot) const noexcept = 0;

 protected:
  io::ModelConfig config_;
};

/// Checkpoints of Transformers: safetensors, float or quantized by bitsandbytes.
std::unique_ptr<WeightSource> open_safetensors_source(const std::string& directory);
/// Fresh weights: normal(0, 0.02), norms of one, biases of zero.
std::unique_ptr<WeightSource> random_source(io::ModelConfig config);
/// GGUF files of llama.cpp.
std::unique_ptr<WeightSource> open_gguf_source(const std::string& path);

}  // namespace lowbit::llm
