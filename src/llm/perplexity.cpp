#include "lowbit/llm/perplexity.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <span>

#include "ops/check.h"

namespace lowbit::llm {
namespace {

/// Tokens whose logits are in memory at a time.
constexpr int64_t kChunk = 256;

/// log(sum(exp(logits)))
double log_normalizer(std::span<const float> logits) {
  const float top = *std::max_element(logits.begin(), logits.end());
  double total = 0.0;
  for (const float x : logits) total += std::exp(x - top);
  return top + std::log(total);
}

/// Part of a window of the text: what one forward reads, and which positions it scores. Position p
/// predicts token p + 1.
struct Chunk {
  bool new_window;  ///< forget the cache first
  std::vector<int64_t> ids;
  int64_t first;                   ///< position in the text of ids[0]
  int64_t score_begin, score_end;  ///< positions in the text
};

template <class Visit>
void for_each_chunk(const std::vector<int64_t>& ids, int64_t ctx, int64_t stride, Visit visit) {
  const auto count = static_cast<int64_t>(ids.size());
  int64_t end = 0;
  for (int64_t begin = 0; end < count; begin += stride) {
    // The first token of a window is never predicted in it: an earlier window has done that, or
    // none does.
    const int64_t score_from = std::max(begin, end - 1);
    end = std::min(begin + ctx, count);
    for (int64_t first = begin; first < end; first += kChunk) {
      const int64_t last = std::min(first + kChunk, end);
      visit(Chunk{first == begin,
                  {ids.begin() + first, ids.begin() + last},
                  first,
                  std::max(first, score_from),
                  std::min(last, end - 1)});
    }
  }
}

struct Windows {
  int64_t ctx, stride;
};

Windows check_options(CausalLM& model, const std::vector<int64_t>& ids,
                      const PerplexityOptions& options) {
  constexpr const char* kOp = "perplexity";
  LOWBIT_CHECK(ids.size() >= 2, kOp, "ids", "at least 2 tokens", ids.size());
  LOWBIT_CHECK(options.ctx >= 2, kOp, "ctx", "at least 2 tokens", options.ctx);
  LOWBIT_CHECK(options.max_tokens == 0 || options.max_tokens >= 2, kOp, "max_tokens",
               "0 or at least 2", options.max_tokens);
  const int64_t ctx = std::min(options.ctx, model.config().max_position_embeddings);
  const int64_t stride = options.stride == 0 ? ctx : options.stride;
  LOWBIT_CHECK(stride >= 1 && stride <= ctx, kOp, "stride", c10::str("in [1, ", ctx, "]"), stride);
  return {ctx, stride};
}

std::span<const float> row(const at::Tensor& logits, int64_t index) {
  return {logits.const_data_ptr<float>() + index * logits.size(1),
          static_cast<size_t>(logits.size(1))};
}

double kl_divergence(std::span<const float> p, std::span<const float> q) {
  const double p_shift = log_normalizer(p), q_shift = log_normalizer(q);
  double sum = 0.0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double log_p = p[i] - p_shift;
    sum += std::exp(log_p) * (log_p - (q[i] - q_shift));
  }
  return std::max(sum, 0.0);
}

/// One model's pass over the text.
class Scorer {
 public:
  Scorer(CausalLM& model, int64_t ctx) : model_(model), cache_(model.new_cache(1, ctx)) {}
  at::Tensor logits(const Chunk& chunk) {
    const auto start = std::chrono::steady_clock::now();
    if (chunk.new_window) cache_.truncate(0);
    at::Tensor out = model_.logits(chunk.ids, &cache_);
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return out;
  }
  PerplexityResult result(double nll, int64_t tokens) const {
    const double mean = nll / static_cast<double>(tokens);
    return {.perplexity = std::exp(mean), .nll = mean, .tokens = tokens, .seconds = seconds_};
  }

 private:
  CausalLM& model_;
  KVCache cache_;
  double seconds_ = 0.0;
};

/// Calls f(row of the logits, id that follows) for the positions that the chunk scores, in
/// parallel.
template <class F>
void for_each_scored(const Chunk& chunk, const std::vector<int64_t>& ids, F f) {
  at::parallel_for(chunk.score_begin, chunk.score_end, 1, [&](int64_t from, int64_t to) {
    for (int64_t p = from; p < to; ++p) f(p - chunk.first, ids[static_cast<size_t>(p + 1)]);
  });
}

std::vector<int64_t> shortened(std::vector<int64_t> ids, int64_t limit) {
  if (limit > 0 && limit < static_cast<int64_t>(ids.size())) ids.resize(static_cast<size_t>(limit));
  return ids;
}

}  // namespace

PerplexityResult perplexity(CausalLM& model, const std::vector<int64_t>& text,
                            const PerplexityOptions& options) {
  const Windows windows = check_options(model, text, options);
  const std::vector<int64_t> ids = shortened(text, options.max_tokens);
  const auto count = static_cast<int64_t>(ids.size());
  Scorer scorer(model, windows.ctx);
  std::vector<double> nll(ids.size(), 0.0);  // by position: the sum does not depend on the threads
  int64_t scored = 0;
  for_each_chunk(ids, windows.ctx, windows.stride, [&](const Chunk& chunk) {
    const at::Tensor logits = scorer.logits(chunk);
    for_each_scored(chunk, ids, [&](int64_t i, int64_t next) {
      const auto x = row(logits, i);
      nll[static_cast<size_t>(chunk.first + i)] = log_normalizer(x) - x[static_cast<size_t>(next)];
    });
    scored += std::max<int64_t>(0, chunk.score_end - chunk.score_begin);
    if (options.progress) {
      options.progress(chunk.first + static_cast<int64_t>(chunk.ids.size()), count);
    }
  });
  double sum = 0.0;
  for (const double x : nll) sum += x;
  return scorer.result(sum, scored);
}

ComparisonResult compare(CausalLM& base, CausalLM& other, const std::vector<int64_t>& text,
                         const PerplexityOptions& options) {
  LOWBIT_CHECK(base.config().vocab_size == other.config().vocab_size, "compare", "other",
               c10::str("a model with ", base.config().vocab_size, " tokens"),
               other.config().vocab_size);
  const Windows windows = check_options(base, text, options);
  const int64_t ctx = check_options(other, text, options).ctx;
  LOWBIT_CHECK(ctx == windows.ctx, "compare", "ctx", "within both models' contexts", options.ctx);
  const std::vector<int64_t> ids = shortened(text, options.max_tokens);
  const auto count = static_cast<int64_t>(ids.size());
  int64_t scored = 0;
  Scorer first(base, ctx), second(other, ctx);
  struct Position {
    double base = 0.0, other = 0.0, kl = 0.0;
    bool agree = false;
  };
  std::vector<Position> positions(ids.size());
  for_each_chunk(ids, windows.ctx, windows.stride, [&](const Chunk& chunk) {
    const at::Tensor p = first.logits(chunk), q = second.logits(chunk);
    for_each_scored(chunk, ids, [&](int64_t i, int64_t next) {
      const auto x = row(p, i), y = row(q, i);
      const auto id = static_cast<size_t>(next);
      positions[static_cast<size_t>(chunk.first + i)] = {
          log_normalizer(x) - x[id], log_normalizer(y) - y[id], kl_divergence(x, y),
          std::max_element(x.begin(), x.end()) - x.begin() ==
              std::max_element(y.begin(), y.end()) - y.begin()};
    });
    scored += std::max<int64_t>(0, chunk.score_end - chunk.score_begin);
    if (options.progress) {
      options.progress(chunk.first + static_cast<int64_t>(chunk.ids.size()), count);
    }
  });
  ComparisonResult result;
  double base_nll = 0.0, other_nll = 0.0, kl = 0.0;
  int64_t agreed = 0;
  for (const Position& at : positions) {
    base_nll += at.base;
    other_nll += at.other;
    kl += at.kl;
    agreed += at.agree;
    result.max_kl_divergence = std::max(result.max_kl_divergence, at.kl);
  }
  const auto n = static_cast<double>(scored);
  result.base = first.result(base_nll, scored);
  result.other = second.result(other_nll, scored);
  result.ratio = result.other.perplexity / result.base.perplexity;
  result.kl_divergence = kl / n;
  result.top1_agreement = static_cast<double>(agreed) / n;
  return result;
}

}  // namespace lowbit::llm
