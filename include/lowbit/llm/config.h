// How a language model is loaded: the fields of Transformers' BitsAndBytesConfig, and where things
// go.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "lowbit/io/hf_config.h"

namespace lowbit {

/// "quantization_config" of config.json, one field for one, same defaults. Exactly one of
/// load_in_8bit and load_in_4bit is set. Fields are declared so that designated initializers may
/// name them in this order.
struct BitsAndBytesConfig {
  bool load_in_8bit = false;
  bool load_in_4bit = false;
  double llm_int8_threshold = 6.0;
  /// Module paths (or last components of paths) that stay in floating point. Unset: the output head
  /// and what is tied to it. Set: exactly these, so an empty list quantizes even lm_head.
  std::optional<std::vector<std::string>> llm_int8_skip_modules = std::nullopt;
  bool llm_int8_enable_fp32_cpu_offload = false;
  bool llm_int8_has_fp16_weight = false;
  std::string bnb_4bit_quant_type = "fp4";  ///< "fp4" or "nf4"
  bool bnb_4bit_use_double_quant = false;
  c10::ScalarType bnb_4bit_compute_dtype = c10::ScalarType::Float;
  c10::ScalarType bnb_4bit_quant_storage = c10::ScalarType::Byte;

  /// Throws c10::Error for fields that contradict each other or name unknown types.
  void validate() const;
  io::QuantizationConfigJson to_json() const;
  static BitsAndBytesConfig from_json(const io::QuantizationConfigJson& json);
};

namespace llm {

/// Called while a model loads: bytes of the source done and in all, and the tensor or layer that
/// comes next.
using LoadProgress = std::function<void(int64_t done, int64_t total, const std::string& what)>;

struct FromPretrainedOptions {
  /// Quantize a float checkpoint while it loads. Ignored (with a c10 warning) when the checkpoint
  /// is quantized already.
  std::optional<BitsAndBytesConfig> quantization_config = std::nullopt;
  /// "cpu", "cuda" (the first GPU), "cuda:N", or "auto": the first GPU when the weights fit there,
  /// else the CPU.
  std::string device_map = "cpu";
  /// Limits per device, e.g. {{"cuda:0", "6GiB"}, {"cpu", "30GiB"}}: bytes with an optional KB, MB,
  /// GB, KiB, MiB or GiB. A model that does not fit is an error before anything is loaded.
  std::map<std::string, std::string> max_memory = {};
  /// Of everything that is not quantized; unset: the checkpoint's (a GGUF file: float32). Given as
  /// float32 it also asks for float32 arithmetic in 4-bit layers, whatever their compute dtype
  /// says.
  std::optional<c10::ScalarType> dtype = std::nullopt;
  /// Elements that share one scale when quantizing to 4 bits.
  int64_t blocksize = 64;
  /// Also store the input embedding and the output head in 8 bits (row-wise, weights only); when
  /// they are tied, once. Transformers does not read such a file; lowbit does.
  bool quantize_embeddings = false;
  LoadProgress progress = nullptr;
};

struct SavePretrainedOptions {
  int64_t max_shard_bytes = int64_t{5} << 30;
};

/// "bfloat16" and its kin. Throws c10::Error for names that torch does not know.
c10::ScalarType dtype_from_name(const std::string& name);
std::string dtype_to_name(c10::ScalarType dtype);
/// "6GiB" in bytes. Throws c10::Error.
int64_t parse_bytes(const std::string& text);

}  // namespace llm
}  // namespace lowbit
