// What a decoder of a given config must be filled with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lowbit/io/hf_config.h"
#include "lowbit/llm/config.h"

namespace lowbit::llm {

enum class SlotKind { kLinear, kHead, kEmbedding, kNorm, kBias };

/// One parameter of the module.
struct Slot {
  std::string name;  ///< "model.layers.0.self_attn.q_proj.weight"
  std::vector<int64_t> shape;
  SlotKind kind;
  /// "model.layers.0.self_attn.q_proj"
  std::string module() const { return name.substr(0, name.rfind('.')); }
};

/// In the order of the forward pass; a tied head has no slot.
std::vector<Slot> decoder_slots(const io::ModelConfig& config);

/// Whether the keys of `skip` (components of dotted paths) name `module` or something it is in:
/// "lm_head", "mlp", "model.layers.1" (which is not a part of "model.layers.10").
bool is_skipped(const std::string& module, const std::vector<std::string>& skip);

enum class Treatment { kFloat, k4bit, k8bit, k8bitWeightOnly };
/// What quantizing at load makes of a slot.
Treatment plan_treatment(const Slot& slot, const FromPretrainedOptions& options);

}  // namespace lowbit::llm
