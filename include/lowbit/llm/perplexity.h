// Perplexity of a text, and how far one model is from another.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "lowbit/llm/model.h"

namespace lowbit::llm {

struct PerplexityOptions {
  int64_t ctx = 2048;      ///< tokens of a window; at most the model's context
  int64_t stride = 0;      ///< tokens between windows, in [1, ctx]; 0 means ctx
  int64_t max_tokens = 0;  ///< use only the first tokens of the text; 0 means all
  std::function<void(int64_t done, int64_t total)> progress = nullptr;  ///< tokens read
};

struct PerplexityResult {
  double perplexity = 0;  ///< exp(nll)
  double nll = 0;         ///< mean negative log-likelihood of a token, in nats
  int64_t tokens = 0;     ///< scored
  double seconds = 0;
};

/// Windows start at 0, stride, 2 * stride, ... and end with the text; a window scores the tokens
/// that no earlier one holds, each given the tokens before it in the window (its own first token
/// has none and is not scored). This is the usual sliding-window recipe of the Transformers guide.
/// Needs at least 2 ids. Log-probabilities are summed in double.
PerplexityResult perplexity(CausalLM& model, const std::vector<int64_t>& ids,
                            const PerplexityOptions& options = {});

struct ComparisonResult {
  PerplexityResult base, other;
  double ratio = 0;          ///< other.perplexity / base.perplexity
  double kl_divergence = 0;  ///< mean of KL(base || other) over the scored positions, in nats
  double max_kl_divergence = 0;
  double top1_agreement = 0;  ///< part of the positions where both give the same most likely token
};

/// Both models read the same ids; their vocabularies must be equal.
ComparisonResult compare(CausalLM& base, CausalLM& other, const std::vector<int64_t>& ids,
                         const PerplexityOptions& options = {});

}  // namespace lowbit::llm
