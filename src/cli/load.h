// Options that several commands share: how a model is loaded, and on how many threads.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lowbit/llm/auto.h"

namespace lowbit::cli {

/// --type and its companions.
struct QuantizeFlags {
  std::string type;
  bool double_quant = false;
  int64_t blocksize = 64;
  double threshold = 6.0;
  std::vector<std::string> skip;
  bool quantize_embeddings = false;
  std::string compute_dtype;

  /// `required`: the command makes no sense without a type.
  void add_to(CLI::App& command, bool required);
  /// `dtype`: what products are computed in when --compute-dtype is not given.
  std::optional<BitsAndBytesConfig> config(std::optional<at::ScalarType> dtype) const;
};

/// A model argument, where it runs, in which dtype, and optionally quantized while it loads.
struct LoadFlags {
  std::string device = "auto";
  std::string dtype = "auto";
  int threads = 0;
  QuantizeFlags quantize;

  void add_to(CLI::App& command, bool with_quantize = true);
  /// `model_dtype`: the checkpoint's own ("" when it does not say).
  llm::FromPretrainedOptions options(const std::string& model_dtype) const;
  /// Loads, with a progress bar.
  llm::CausalLM load(const std::string& model) const;
  /// Fresh weights of that shape, with a progress bar.
  llm::CausalLM load_random(const io::ModelConfig& config) const;
  /// Sets torch's thread count when --threads was given.
  void apply_threads() const;
};

/// The text of a file, or of standard input for "-". Throws IoError.
std::string read_text(const std::string& path);

}  // namespace lowbit::cli
