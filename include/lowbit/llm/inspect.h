// What a model directory or GGUF file holds, without loading it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lowbit/llm/config.h"

namespace lowbit::llm {

struct WeightEntry {
  std::string name = {};            ///< "model.layers.0.self_attn.q_proj.weight"
  std::vector<int64_t> shape = {};  ///< of the weight it stands for
  std::string scheme = {};  ///< in the file: "bfloat16", "nf4 (double quant)", "int8", "Q4_1", ...
  int64_t bytes = 0;        ///< in the file, statistics included
  std::string planned_scheme = {};  ///< after loading with the given options
  int64_t planned_bytes = 0;
};

struct CheckpointDescription {
  io::ModelConfig config = {};
  std::string format = {};  ///< "safetensors" or "gguf"
  std::vector<WeightEntry> weights = {};
  int64_t bytes = 0, planned_bytes = 0;
  std::string device = "cpu";  ///< where it would be loaded to
};

/// Reads headers only. Throws as AutoModelForCausalLM::from_pretrained does.
CheckpointDescription inspect(const std::string& directory_or_gguf,
                              const FromPretrainedOptions& options = {});

}  // namespace lowbit::llm
