// generate, stream, perplexity: tokens in, tokens out.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "lowbit/llm/auto.h"
#include "lowbit/llm/perplexity.h"
#include "lowbit/quantized_tensor.h"
#include "tiny.h"

namespace lowbit::llm {
namespace {

using testing::random_ids;

class Generation : public ::testing::Test {
 protected:
  void SetUp() override {
    seed_ = std::random_device{}();
    torch::manual_seed(seed_);
    testing::write_checkpoint(directory_.str(), config_, testing::random_weights(config_));
    model_ = AutoModelForCausalLM::from_pretrained(
        directory_.str(), {.quantization_config = BitsAndBytesConfig{
                               .load_in_4bit = true, .bnb_4bit_quant_type = "nf4"}});
    prompt_ = random_ids(9, config_.vocab_size);
  }
  void TearDown() override {
    if (HasFailure()) std::printf("seed %llu\n", static_cast<unsigned long long>(seed_));
  }
  uint64_t seed_ = 0;
  io::ModelConfig config_ = testing::tiny_config();
  testing::TemporaryDirectory directory_;
  CausalLM model_;
  std::vector<int64_t> prompt_;
};

TEST_F(Generation, GreedyIsTheArgmaxOfFullForwards) {
  reset_fallback_count();
  std::vector<int64_t> expected = prompt_;
  for (int i = 0; i < 25; ++i) {
    expected.push_back(model_.logits(expected)[-1].argmax().item<int64_t>());
  }
  EXPECT_EQ(
      model_.generate(prompt_, {.max_new_tokens = 25, .eos_token_ids = std::vector<int64_t>{}}),
      expected);
  EXPECT_EQ(fallback_count(), 0) << last_fallback();
}

TEST_F(Generation, StreamStopsWhereItShould) {
  const std::vector<int64_t> never;
  std::vector<int64_t> all;
  for (const int64_t id : model_.stream(prompt_, {.max_new_tokens = 20, .eos_token_ids = never})) {
    all.push_back(id);
  }
  ASSERT_EQ(all.size(), 20u);
  // Stops after the end token, which is yielded; where it comes first decides.
  const int64_t end = all[7];
  const auto first = std::find(all.begin(), all.end(), end) - all.begin();
  const auto stopped =
      model_.generate(prompt_, {.max_new_tokens = 20, .eos_token_ids = std::vector<int64_t>{end}});
  EXPECT_EQ(static_cast<std::ptrdiff_t>(stopped.size()),
            static_cast<std::ptrdiff_t>(prompt_.size()) + first + 1);
  EXPECT_EQ(stopped.back(), end);
  // The end of the context: every position is used, and one token follows the last.
  const auto long_one = model_.generate(prompt_, {.eos_token_ids = never});
  EXPECT_EQ(static_cast<int64_t>(long_one.size()), config_.max_position_embeddings + 1);
  EXPECT_THROW(model_.generate(random_ids(129, config_.vocab_size)), c10::Error);
  EXPECT_THROW(model_.generate({}), c10::Error);
  EXPECT_THROW(model_.generate({96}), c10::Error);
}

TEST_F(Generation, SeedsDecide) {
  const auto run = [&](uint64_t seed) {
    return model_.generate(prompt_, {.max_new_tokens = 30,
                                     .temperature = 1.5,
                                     .seed = seed,
                                     .eos_token_ids = std::vector<int64_t>{}});
  };
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));
}

TEST_F(Generation, RepetitionPenaltyChangesGreedy) {
  const std::vector<int64_t> never;
  const auto plain = model_.generate(prompt_, {.max_new_tokens = 60, .eos_token_ids = never});
  const auto penalized = model_.generate(
      prompt_, {.max_new_tokens = 60, .repetition_penalty = 100.0, .eos_token_ids = never});
  const auto distinct = [](const std::vector<int64_t>& ids) {
    return std::set<int64_t>(ids.begin(), ids.end()).size();
  };
  EXPECT_GT(distinct(penalized), distinct(plain));
}

TEST_F(Generation, ACacheIsReusedAcrossTurns) {
  const std::vector<int64_t> never;
  KVCache cache = model_.new_cache();
  std::vector<int64_t> history = prompt_;
  for (const int64_t id :
       model_.stream(history, {.max_new_tokens = 10, .eos_token_ids = never}, &cache)) {
    history.push_back(id);
  }
  for (const int64_t id : random_ids(5, config_.vocab_size)) history.push_back(id);
  TokenStream stream =
      model_.stream(history, {.max_new_tokens = 10, .eos_token_ids = never}, &cache);
  std::vector<int64_t> answer;
  while (const auto id = stream.next()) answer.push_back(*id);
  EXPECT_EQ(stream.stats().cached_tokens, 18);  // all but the last token of the first answer
  EXPECT_EQ(stream.stats().prompt_tokens, 24);
  EXPECT_EQ(stream.stats().new_tokens, 10);
  EXPECT_GT(stream.stats().decode_rate(), 0.0);
  const auto fresh = model_.generate(history, {.max_new_tokens = 10, .eos_token_ids = never});
  EXPECT_EQ(answer, std::vector<int64_t>(fresh.end() - 10, fresh.end()));
  // Another conversation in the same cache.
  const auto other = random_ids(7, config_.vocab_size);
  std::vector<int64_t> first;
  for (const int64_t id :
       model_.stream(other, {.max_new_tokens = 4, .eos_token_ids = never}, &cache)) {
    first.push_back(id);
  }
  const auto expected = model_.generate(other, {.max_new_tokens = 4, .eos_token_ids = never});
  EXPECT_EQ(first, std::vector<int64_t>(expected.end() - 4, expected.end()));
}

/// By the definition: every window in one forward of torch's ops.
double perplexity_by_definition(CausalLM& model, const std::vector<int64_t>& ids, int64_t ctx,
                                int64_t stride) {
  double nll = 0.0;
  int64_t count = 0, end = 0;
  for (int64_t begin = 0; end < static_cast<int64_t>(ids.size()); begin += stride) {
    const int64_t previous = end;
    end = std::min<int64_t>(begin + ctx, static_cast<int64_t>(ids.size()));
    const at::Tensor window =
        torch::tensor(std::vector<int64_t>(ids.begin() + begin, ids.begin() + end));
    const at::Tensor p =
        torch::log_softmax(model.module()->forward(window.unsqueeze(0))[0].to(at::kDouble), -1);
    for (int64_t t = std::max(begin + 1, previous); t < end; ++t, ++count) {
      nll -= p[t - begin - 1][ids[static_cast<size_t>(t)]].item<double>();
    }
  }
  return std::exp(nll / static_cast<double>(count));
}

TEST_F(Generation, PerplexityIsItsDefinition) {
  const auto ids = random_ids(300, config_.vocab_size);
  for (const auto& [ctx, stride] :
       {std::pair<int64_t, int64_t>{128, 0}, {50, 20}, {100, 1}, {2, 1}}) {
    if (stride == 1 && ctx == 100) continue;
    const PerplexityResult result = perplexity(model_, ids, {.ctx = ctx, .stride = stride});
    const double expected = perplexity_by_definition(model_, ids, ctx, stride == 0 ? ctx : stride);
    EXPECT_NEAR(result.perplexity / expected, 1.0, 1e-4) << ctx << ", " << stride;
    if (stride != 0) {
      EXPECT_EQ(result.tokens, 299);
    }
  }
  EXPECT_EQ(perplexity(model_, ids, {.max_tokens = 50}).tokens, 49);
  EXPECT_THROW(perplexity(model_, {1}), c10::Error);
  EXPECT_THROW(perplexity(model_, ids, {.ctx = 1}), c10::Error);
  EXPECT_THROW(perplexity(model_, ids, {.ctx = 20, .stride = 21}), c10::Error);
}

TEST_F(Generation, CompareMeasuresTheDistance) {
  const auto ids = random_ids(200, config_.vocab_size);
  const ComparisonResult same = compare(model_, model_, ids);
  EXPECT_DOUBLE_EQ(same.ratio, 1.0);
  EXPECT_LE(same.kl_divergence, 1e-12);
  EXPECT_EQ(same.top1_agreement, 1.0);

  CausalLM base = AutoModelForCausalLM::from_pretrained(directory_.str());
  const ComparisonResult result = compare(base, model_, ids, {.ctx = 100});
  EXPECT_NEAR(result.ratio,
              perplexity(model_, ids, {.ctx = 100}).perplexity /
                  perplexity(base, ids, {.ctx = 100}).perplexity,
              1e-6);
  double kl = 0.0;
  int64_t agree = 0, count = 0;
  for (int64_t begin = 0; begin < 200; begin += 100) {
    const std::vector<int64_t> window(ids.begin() + begin, ids.begin() + begin + 100);
    const at::Tensor p = torch::log_softmax(base.logits(window).to(at::kDouble), -1);
    const at::Tensor q = torch::log_softmax(model_.logits(window).to(at::kDouble), -1);
    const at::Tensor d = (p.exp() * (p - q)).sum(-1).narrow(0, 0, 99);
    kl += d.sum().item<double>();
    agree += (p.argmax(-1) == q.argmax(-1)).narrow(0, 0, 99).sum().item<int64_t>();
    count += 99;
  }
  EXPECT_NEAR(result.kl_divergence, kl / static_cast<double>(count), 1e-5);
  EXPECT_NEAR(result.top1_agreement, static_cast<double>(agree) / static_cast<double>(count),
              0.011);
  EXPECT_GT(result.kl_divergence, 0.0);
  EXPECT_GE(result.max_kl_divergence, result.kl_divergence);
}

}  // namespace
}  // namespace lowbit::llm
