// Rotary position embedding: https://arxiv.org/abs/2104.09864.
#pragma once

#include <cstdint>
#include <vector>

#include "lowbit/io/hf_config.h"

namespace lowbit::llm {

/// Inverse frequencies, [head_dim / 2], with the config's scaling. Throws c10::Error for an unknown
/// type.
std::vector<float> rope_inverse_frequencies(const io::ModelConfig& config);

/// cos and sin of positions [past, past + tokens), each [tokens, inv_freq.size()]: angles in
/// float32, as models were trained.
void rope_tables(const std::vector<float>& inv_freq, int64_t past, int64_t tokens, float* cos,
                 float* sin);

}  // namespace lowbit::llm
