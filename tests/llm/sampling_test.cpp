// The sampling filters against the same definitions written out over the whole vocabulary.
#include "llm/sampling.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

namespace lowbit::llm {
namespace {

std::vector<double> softmax(const std::vector<double>& x) {
  const double top = *std::max_element(x.begin(), x.end());
  std::vector<double> p;
  double total = 0.0;
  for (const double v : x) {
    p.push_back(std::exp(v - top));
    total += p.back();
  }
  for (double& v : p) v /= total;
  return p;
}

/// Transformers' processors in their order, each over all logits with -inf for what was removed.
std::vector<double> brute_force(const std::vector<float>& logits, const SamplingOptions& o) {
  constexpr double kOut = -INFINITY;
  std::vector<double> x;
  for (const float v : logits) x.push_back(v / static_cast<float>(o.temperature));
  if (o.top_k > 0 && o.top_k < static_cast<int64_t>(x.size())) {
    std::vector<double> sorted = x;
    std::sort(sorted.rbegin(), sorted.rend());
    const double least = sorted[static_cast<size_t>(o.top_k - 1)];
    for (double& v : x) v = v < least ? kOut : v;
  }
  if (o.top_p < 1.0) {
    // Ascending: what lies in the tail of 1 - top_p goes, the most likely one stays.
    const std::vector<double> p = softmax(x);
    std::vector<size_t> order(x.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return x[a] != x[b] ? x[a] < x[b] : a > b; });
    double cumulative = 0.0;
    for (size_t i = 0; i + 1 < order.size(); ++i) {
      cumulative += p[order[i]];
      if (cumulative <= 1.0 - o.top_p) x[order[i]] = kOut;
    }
  }
  if (o.min_p > 0.0) {
    const std::vector<double> p = softmax(x);
    const double top = *std::max_element(p.begin(), p.end());
    for (size_t i = 0; i < x.size(); ++i) x[i] = p[i] < o.min_p * top ? kOut : x[i];
  }
  return softmax(x);
}

class Sampling : public ::testing::Test {
 protected:
  void SetUp() override { RecordProperty("seed", static_cast<int>(seed_)); }
  void TearDown() override {
    if (HasFailure()) std::printf("seed %u\n", seed_);
  }
  std::vector<float> logits(size_t n) {
    std::normal_distribution<float> d(0.0f, 3.0f);
    std::vector<float> x(n);
    for (float& v : x) v = d(random_);
    return x;
  }
  unsigned seed_ = std::random_device{}();
  std::mt19937 random_{seed_};
};

TEST_F(Sampling, FiltersAreThoseOfTheReference) {
  std::uniform_real_distribution<double> u(0.0, 1.0);
  for (int round = 0; round < 300; ++round) {
    auto x = logits(40);
    if (round % 3 == 0) x[7] = x[3];  // a tie
    SamplingOptions o;
    o.do_sample = true;
    o.temperature = 0.2 + 2.0 * u(random_);
    o.top_k = static_cast<int64_t>(u(random_) * 45);
    o.top_p = round % 2 == 0 ? 1.0 : 0.05 + 0.95 * u(random_);
    o.min_p = round % 5 == 0 ? u(random_) * 0.3 : 0.0;
    const std::vector<double> expected = brute_force(x, o);
    std::vector<double> got(x.size(), 0.0);
    for (const Candidate& c : filter(x, o)) got[static_cast<size_t>(c.id)] = c.probability;
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_NEAR(got[i], expected[i], 1e-6)
          << "id " << i << ", temperature " << o.temperature << ", top_k " << o.top_k << ", top_p "
          << o.top_p << ", min_p " << o.min_p;
    }
  }
}

TEST_F(Sampling, RepetitionPenaltyCountsAnIdOnce) {
  std::vector<float> x = {2.0f, -2.0f, 1.0f, 0.5f};
  const std::vector<int64_t> history = {0, 1, 0, 1, 1};
  penalize_repetition(x, history, 1.25);
  EXPECT_EQ(x, (std::vector<float>{1.6f, -2.5f, 1.0f, 0.5f}));
}

TEST_F(Sampling, DrawsFollowTheProbabilities) {
  const std::vector<float> x = {1.0f, 0.0f, 2.0f, -1.0f};
  SamplingOptions o;
  o.do_sample = true;
  o.seed = seed_;
  Sampler sampler(o);
  std::vector<int> counts(4, 0);
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    auto copy = x;
    ++counts[static_cast<size_t>(sampler.next(copy, {}))];
  }
  const auto p = brute_force(x, o);
  for (size_t i = 0; i < x.size(); ++i) {
    // Six standard deviations.
    EXPECT_NEAR(counts[i], kDraws * p[i], 6 * std::sqrt(kDraws * p[i] * (1 - p[i])));
  }
}

TEST_F(Sampling, SameSeedSameTokens) {
  SamplingOptions o;
  o.do_sample = true;
  o.seed = 17;
  Sampler a(o), b(o);
  o.seed = 18;
  Sampler c(o);
  std::vector<int64_t> from_a, from_b, from_c;
  for (int i = 0; i < 50; ++i) {
    const auto x = logits(30);
    auto copy = x;
    from_a.push_back(a.next(copy, {}));
    copy = x;
    from_b.push_back(b.next(copy, {}));
    copy = x;
    from_c.push_back(c.next(copy, {}));
  }
  EXPECT_EQ(from_a, from_b);
  EXPECT_NE(from_a, from_c);
}

TEST_F(Sampling, GreedyTakesTheFirstOfEqualsAndPassesOverNaN) {
  Sampler sampler({});
  std::vector<float> x = {NAN, 1.0f, 3.0f, 3.0f};
  EXPECT_EQ(sampler.next(x, {}), 2);
  std::vector<float> nothing = {NAN, NAN};
  EXPECT_THROW(sampler.next(nothing, {}), c10::Error);
}

TEST_F(Sampling, DefaultsAreTheModelsThenTheLibrarys) {
  io::GenerationConfigJson model;
  model.temperature = 0.3;
  model.do_sample = true;
  const SamplingOptions o = resolve({}, model);
  EXPECT_TRUE(o.do_sample);
  EXPECT_EQ(o.temperature, 0.3);
  EXPECT_EQ(o.top_k, 50);
  EXPECT_FALSE(resolve({}, {}).do_sample);
  EXPECT_TRUE(resolve({.top_p = 0.9}, {}).do_sample);
  EXPECT_FALSE(resolve({.temperature = 0.0}, model).do_sample);
  EXPECT_FALSE(resolve({.do_sample = false, .temperature = 0.7}, model).do_sample);
}

TEST_F(Sampling, BadOptionsAreNamed) {
  const GenerationConfig bad[] = {{.max_new_tokens = 0},
                                  {.temperature = -1.0},
                                  {.temperature = INFINITY},
                                  {.top_k = -1},
                                  {.top_p = 0.0},
                                  {.top_p = 1.5},
                                  {.min_p = -0.1},
                                  {.repetition_penalty = 0.0},
                                  {.temperature = std::nan("")}};
  for (const GenerationConfig& config : bad) EXPECT_THROW(resolve(config, {}), c10::Error);
}

}  // namespace
}  // namespace lowbit::llm
