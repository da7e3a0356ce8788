#include "llm/sampling.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "ops/check.h"

namespace lowbit::llm {
namespace {

/// Equal logits keep the order of their ids, so that a draw is reproducible.
bool more_likely(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

/// Softmax over the logits of the candidates; the first is the most likely.
void set_probabilities(std::vector<Candidate>& candidates) {
  double total = 0.0;
  for (Candidate& c : candidates) {
    total += c.probability = std::exp(double{c.logit} - candidates.front().logit);
  }
  for (Candidate& c : candidates) c.probability /= total;
}

}  // namespace

SamplingOptions resolve(const GenerationConfig& config, const io::GenerationConfigJson& defaults) {
  const auto pick = [](const auto& given, const auto& model, auto fallback) {
    return given ? *given : model ? *model : fallback;
  };
  const bool asked = config.temperature || config.top_k || config.top_p || config.min_p;
  SamplingOptions options;
  options.temperature = pick(config.temperature, defaults.temperature, 1.0);
  options.top_k = pick(config.top_k, defaults.top_k, int64_t{50});
  options.top_p = pick(config.top_p, defaults.top_p, 1.0);
  options.min_p = pick(config.min_p, defaults.min_p, 0.0);
  options.repetition_penalty = pick(config.repetition_penalty, defaults.repetition_penalty, 1.0);
  options.do_sample =
      options.temperature != 0.0 &&
      (config.do_sample ? *config.do_sample : asked || defaults.do_sample.value_or(false));
  options.seed = config.seed ? *config.seed : std::random_device{}();

  constexpr const char* kOp = "generate";
  LOWBIT_CHECK(options.temperature >= 0.0 && std::isfinite(options.temperature), kOp, "temperature",
               "a finite number of at least 0", options.temperature);
  LOWBIT_CHECK(options.top_k >= 0, kOp, "top_k", "at least 0", options.top_k);
  LOWBIT_CHECK(options.top_p > 0.0 && options.top_p <= 1.0, kOp, "top_p", "in (0, 1]",
               options.top_p);
  LOWBIT_CHECK(options.min_p >= 0.0 && options.min_p <= 1.0, kOp, "min_p", "in [0, 1]",
               options.min_p);
  LOWBIT_CHECK(options.repetition_penalty > 0.0 && std::isfinite(options.repetition_penalty), kOp,
               "repetition_penalty", "a positive number", options.repetition_penalty);
  LOWBIT_CHECK(!config.max_new_tokens || *config.max_new_tokens >= 1, kOp, "max_new_tokens",
               "at least 1", *config.max_new_tokens);
  return options;
}

void penalize_repetition(std::span<float> logits, std::span<const int64_t> history,
                         double penalty) {
  if (penalty == 1.0) return;
  const float p = static_cast<float>(penalty);
  const std::unordered_set<int64_t> seen(history.begin(), history.end());
  for (const int64_t id : seen) {
    float& logit = logits[static_cast<size_t>(id)];
    logit = logit < 0.0f ? logit * p : logit / p;
  }
}

std::vector<Candidate> filter(std::span<const float> logits, const SamplingOptions& options) {
  const float temperature = static_cast<float>(options.temperature);
  std::vector<Candidate> kept;
  kept.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    // NaN compares with nothing and would break the order.
    if (!std::isnan(logits[i]))
      kept.push_back({static_cast<int64_t>(i), logits[i] / temperature, 0.0});
  }
  const auto k = static_cast<size_t>(options.top_k);
  if (k > 0 && k < kept.size()) {
    const auto kth = kept.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(kept.begin(), kth, kept.end(), more_likely);
    const float least = kth->logit;
    std::erase_if(kept, [&](const Candidate& c) { return c.logit < least; });
  }
  if (kept.empty()) return kept;
  std::sort(kept.begin(), kept.end(), more_likely);
  set_probabilities(kept);
  if (options.top_p < 1.0) {
    double before = 0.0;
    size_t count = 0;
    while (count < kept.size() && before < options.top_p) before += kept[count++].probability;
    kept.resize(std::max<size_t>(1, count));
    set_probabilities(kept);
  }
  if (options.min_p > 0.0) {
    const double least = options.min_p * kept.front().probability;
    std::erase_if(kept, [&](const Candidate& c) { return c.probability < least; });
    set_probabilities(kept);
  }
  return kept;
}

int64_t most_likely(std::span<const float> logits) {
  size_t best = logits.size();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!std::isnan(logits[i]) && (best == logits.size() || logits[i] > logits[best])) best = i;
  }
  return best < logits.size() ? static_cast<int64_t>(best) : -1;
}

int64_t Sampler::next(std::span<float> logits, std::span<const int64_t> history) {
  penalize_repetition(logits, history, options_.repetition_penalty);
  if (!options_.do_sample) {
    const int64_t best = most_likely(logits);
    LOWBIT_CHECK(best >= 0, "generate", "logits", "numbers", "NaN only");
    return best;
  }
  const std::vector<Candidate> candidates = filter(logits, options_);
  LOWBIT_CHECK(!candidates.empty(), "generate", "logits", "numbers", "NaN only");
  double rest = static_cast<double>(random_() >> 11) * 0x1p-53;
  for (const Candidate& c : candidates) {
    if (rest < c.probability) return c.id;
    rest -= c.probability;
  }
  return candidates.back().id;
}

}  // namespace lowbit::llm
