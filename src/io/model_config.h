// The parts of ModelConfig's reading that config.json and GGUF share.
#pragma once

#include <string>

#include "lowbit/io/hf_config.h"

namespace lowbit::io {

/// Limits of single numbers: far above any model, far below what could overflow a product of three
/// of them.
inline constexpr int64_t kMaxWidth = 1 << 20;  // hidden and intermediate sizes, heads, head size
inline constexpr int64_t kMaxVocab = 1 << 28;
inline constexpr int64_t kMaxLayers = 1 << 16;
inline constexpr int64_t kMaxPositions = int64_t{1} << 40;
inline constexpr double kMaxTheta = 1e30;

/// What must hold between the numbers: throws FormatError naming `file`.
void check_model_config(const ModelConfig& config, const std::string& file);

}  // namespace lowbit::io
