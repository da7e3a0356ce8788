// From logits to the next token. The filters and their order are those of Transformers' logits
// processors.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "lowbit/io/hf_config.h"
#include "lowbit/llm/generation.h"

namespace lowbit::llm {

/// A GenerationConfig with every default filled in and every value checked.
struct SamplingOptions {
  bool do_sample = false;
  double temperature = 1.0;
  int64_t top_k = 50;
  double top_p = 1.0;
  double min_p = 0.0;
  double repetition_penalty = 1.0;
  uint64_t seed = 0;
};

/// Throws c10::Error for values out of range.
SamplingOptions resolve(const GenerationConfig& config, const io::GenerationConfigJson& defaults);

struct Candidate {
  int64_t id;
  float logit;  ///< after the temperature
  double probability;
};

/// logit / penalty where it is positive, * penalty where it is negative, once for each distinct id
/// of `history`.
void penalize_repetition(std::span<float> logits, std::span<const int64_t> history, double penalty);

/// What may be drawn, the most likely first (equal logits: the lower id first); probabilities sum
/// to 1. Temperature, then top-k (ties with the k-th stay), then top-p (the fewest that reach
/// top_p), then min-p (at least min_p times the most likely).
std::vector<Candidate> filter(std::span<const float> logits, const SamplingOptions& options);

/// The first of the largest logits, NaN passed over; -1 when there is nothing else.
int64_t most_likely(std::span<const float> logits);

class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {}
  /// The next token. `history`: the prompt and what was generated. Throws c10::Error when no logit
  /// is a number.
  int64_t next(std::span<float> logits, std::span<const int64_t> history);
  /// Whether next() is most_likely() of the logits as they are.
  bool is_plain() const { return !options_.do_sample && options_.repetition_penalty == 1.0; }

 private:
  SamplingOptions options_;
  std::mt19937_64
      random_;  ///< the same numbers on every platform, unlike the standard distributions
};

}  // namespace lowbit::llm
