// generate() and stream(): what to do after the prompt.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <vector>

namespace lowbit::llm {

/// Unset fields take the model's generation_config.json, then Transformers' defaults (in brackets).
struct GenerationConfig {
  std::optional<int64_t> max_new_tokens =
      std::nullopt;  ///< [until the end token or the end of the context]
  /// Unset: sample when any of temperature, top_k, top_p, min_p is set here (a temperature of 0
  /// means greedy), else what generation_config.json says [false].
  std::optional<bool> do_sample = std::nullopt;
  std::optional<double> temperature = std::nullopt;         ///< > 0, or 0 for greedy [1.0]
  std::optional<int64_t> top_k = std::nullopt;              ///< >= 0, 0 keeps all [50]
  std::optional<double> top_p = std::nullopt;               ///< in (0, 1] [1.0]
  std::optional<double> min_p = std::nullopt;               ///< in [0, 1] [0]
  std::optional<double> repetition_penalty = std::nullopt;  ///< > 0 [1.0]
  std::optional<uint64_t> seed = std::nullopt;              ///< [drawn from the system]
  /// Stop after one of these; empty: never stop [the model's].
  std::optional<std::vector<int64_t>> eos_token_ids = std::nullopt;
};

/// Times of one generation, in seconds.
struct GenerationStats {
  int64_t prompt_tokens = 0;   ///< in all
  int64_t cached_tokens = 0;   ///< of these, found in the cache
  double prefill_seconds = 0;  ///< until the first token was chosen
  int64_t new_tokens = 0;
  double decode_seconds = 0;  ///< for the tokens after the first
  /// Tokens a second: the whole prompt; the tokens after the first. 0 when there were none.
  double prefill_rate() const noexcept;
  double decode_rate() const noexcept;
};

/// The new tokens of one generation, computed one by one while the range is read. It can be read
/// once; the model must not be used by another thread meanwhile. Ends after max_new_tokens, at the
/// end of the context, or with the end token (which is yielded too).
class TokenStream {
 public:
  class Iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = int64_t;
    using difference_type = std::ptrdiff_t;
    using pointer = const int64_t*;
    using reference = const int64_t&;
    reference operator*() const;
    Iterator& operator++();
    void operator++(int) { ++*this; }
    bool operator==(std::default_sentinel_t) const;

   private:
    friend class TokenStream;
    explicit Iterator(TokenStream* stream) : stream_(stream) {}
    TokenStream* stream_;
  };

  struct State;
  explicit TokenStream(std::unique_ptr<State> state);
  TokenStream(TokenStream&&) noexcept;
  TokenStream& operator=(TokenStream&&) noexcept;
  ~TokenStream();

  Iterator begin();
  std::default_sentinel_t end() const noexcept { return {}; }
  /// The next token, or nothing at the end.
  std::optional<int64_t> next();
  const GenerationStats& stats() const noexcept;

 private:
  std::unique_ptr<State> state_;
  std::optional<int64_t> current_ = std::nullopt;
};

}  // namespace lowbit::llm
