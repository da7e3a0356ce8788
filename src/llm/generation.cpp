#include "lowbit/llm/generation.h"

#include <algorithm>
#include <chrono>

#include "llm/sampling.h"
#include "lowbit/llm/model.h"
#include "ops/check.h"

namespace lowbit::llm {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int64_t common_prefix(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace

double GenerationStats::prefill_rate() const noexcept {
  return prefill_seconds > 0 ? static_cast<double>(prompt_tokens - cached_tokens) / prefill_seconds
                             : 0.0;
}

double GenerationStats::decode_rate() const noexcept {
  return decode_seconds > 0 ? static_cast<double>(new_tokens - 1) / decode_seconds : 0.0;
}

struct TokenStream::State {
  CausalLM model;
  Sampler sampler;
  KVCache own;
  KVCache* cache;                ///< the caller's, or null for `own`
  std::vector<int64_t> history;  ///< the prompt and the tokens so far
  std::vector<int64_t> eos;
  int64_t most;  ///< new tokens
  bool done = false;
  GenerationStats stats = {};

  KVCache& kv() { return cache != nullptr ? *cache : own; }
  int64_t choose(const std::vector<int64_t>& fresh);
  std::optional<int64_t> next();
};

int64_t TokenStream::State::choose(const std::vector<int64_t>& fresh) {
  if (sampler.is_plain()) return model.next_token(fresh, kv());
  const at::Tensor logits = model.next_logits(fresh, kv());
  return sampler.next({logits.mutable_data_ptr<float>(), static_cast<size_t>(logits.numel())},
                      history);
}

std::optional<int64_t> TokenStream::State::next() {
  if (done) return std::nullopt;
  const auto start = Clock::now();
  const std::vector<int64_t> fresh(history.begin() + kv().length(), history.end());
  const int64_t id = choose(fresh);
  history.push_back(id);
  (stats.new_tokens == 0 ? stats.prefill_seconds : stats.decode_seconds) += seconds_since(start);
  ++stats.new_tokens;
  done = stats.new_tokens == most || std::find(eos.begin(), eos.end(), id) != eos.end() ||
         static_cast<int64_t>(history.size()) > kv().context();
  return id;
}

TokenStream::TokenStream(std::unique_ptr<State> state) : state_(std::move(state)) {}
TokenStream::TokenStream(TokenStream&&) noexcept = default;
TokenStream& TokenStream::operator=(TokenStream&&) noexcept = default;
TokenStream::~TokenStream() = default;

std::optional<int64_t> TokenStream::next() { return state_->next(); }
const GenerationStats& TokenStream::stats() const noexcept { return state_->stats; }

TokenStream::Iterator TokenStream::begin() {
  current_ = next();
  return Iterator(this);
}
TokenStream::Iterator::reference TokenStream::Iterator::operator*() const {
  return *stream_->current_;
}
TokenStream::Iterator& TokenStream::Iterator::operator++() {
  stream_->current_ = stream_->next();
  return *this;
}
bool TokenStream::Iterator::operator==(std::default_sentinel_t) const {
  return !stream_->current_.has_value();
}

TokenStream CausalLM::stream(const std::vector<int64_t>& ids, const GenerationConfig& config,
                             KVCache* cache) const {
  const io::GenerationConfigJson& defaults = generation_defaults();
  const SamplingOptions options = resolve(config, defaults);
  LOWBIT_CHECK(!ids.empty(), "generate", "ids", "at least one token", "none");
  auto state = std::make_unique<TokenStream::State>(
      TokenStream::State{.model = *this,
                         .sampler = Sampler(options),
                         .own = {},
                         .cache = cache,
                         .history = ids,
                         .eos = {},
                         .most = config.max_new_tokens ? *config.max_new_tokens
                                                       : defaults.max_new_tokens.value_or(0)});
  if (cache == nullptr) state->own = new_cache();
  KVCache& kv = state->kv();
  const auto count = static_cast<int64_t>(ids.size());
  LOWBIT_CHECK(count <= kv.context(), "generate", "ids",
               c10::str("at most ", kv.context(), " tokens, the context"), count);
  // The last token of the prompt is always computed: its logits are needed.
  kv.truncate(std::min(common_prefix(kv.ids(), ids), count - 1));
  state->eos = config.eos_token_ids              ? *config.eos_token_ids
               : !defaults.eos_token_ids.empty() ? defaults.eos_token_ids
                                                 : this->config().eos_token_ids;
  state->stats.prompt_tokens = count;
  state->stats.cached_tokens = kv.length();
  return TokenStream(std::move(state));
}

std::vector<int64_t> CausalLM::generate(const std::vector<int64_t>& ids,
                                        const GenerationConfig& config) const {
  std::vector<int64_t> all = ids;
  for (const int64_t id : stream(ids, config)) all.push_back(id);
  return all;
}

}  // namespace lowbit::llm
