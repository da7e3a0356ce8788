#include "llm/rope.h"

#include <cmath>
#include <numbers>

#include "ops/check.h"

namespace lowbit::llm {
namespace {

/// Llama 3: long wavelengths are stretched by `factor`, short ones kept, the band between blended.
/// https://github.com/meta-llama/llama-models (apply_scaling)
float llama3_scaled(float frequency, const io::RopeConfig& rope) {
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  const double original = static_cast<double>(rope.original_max_position_embeddings);
  if (wavelength < original / rope.high_freq_factor) return frequency;
  const double stretched = frequency / rope.factor;
  if (wavelength > original / rope.low_freq_factor) return static_cast<float>(stretched);
  const double keep = (original / wavelength - rope.low_freq_factor) /
                      (rope.high_freq_factor - rope.low_freq_factor);
  return static_cast<float>((1.0 - keep) * stretched + keep * frequency);
}

}  // namespace

std::vector<float> rope_inverse_frequencies(const io::ModelConfig& config) {
  const io::RopeConfig& rope = config.rope;
  const bool llama3 = rope.type == "llama3", linear = rope.type == "linear";
  LOWBIT_CHECK(llama3 || linear || rope.type == "default" || rope.type.empty(), "from_pretrained",
               "rope_type", "default, linear or llama3", rope.type);
  LOWBIT_CHECK(!llama3 || rope.original_max_position_embeddings > 0, "from_pretrained",
               "original_max_position_embeddings", "positive for rope_type llama3",
               rope.original_max_position_embeddings);
  std::vector<float> frequencies;
  for (int64_t i = 0; i < config.head_dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.head_dim);
    float frequency = 1.0f / std::pow(static_cast<float>(rope.theta), exponent);
    if (linear) frequency = static_cast<float>(frequency / rope.factor);
    if (llama3) frequency = llama3_scaled(frequency, rope);
    frequencies.push_back(frequency);
  }
  return frequencies;
}

void rope_tables(const std::vector<float>& inv_freq, int64_t past, int64_t tokens, float* cos,
                 float* sin) {
  for (int64_t t = 0; t < tokens; ++t) {
    const float position = static_cast<float>(past + t);
    for (const float frequency : inv_freq) {
      const float angle = position * frequency;
      *cos++ = std::cos(angle);
      *sin++ = std::sin(angle);
    }
  }
}

}  // namespace lowbit::llm
