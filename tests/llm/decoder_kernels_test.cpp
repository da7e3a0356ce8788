// The decoder kernels against the scalar reference, for every instruction set of this machine.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "lowbit/kernels/cpu.h"
#include "lowbit/kernels/decoder.h"
#include "scalar.h"

namespace lowbit::kernels {
namespace {

constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

class DecoderKernels : public ::testing::TestWithParam<cpu::Isa> {
 protected:
  void SetUp() override {
    if (cpu::set_isa(GetParam()) != GetParam()) {
      GTEST_SKIP() << "no " << cpu::isa_name(GetParam()) << " on this processor";
    }
    seed_ = std::random_device{}();
    random_.seed(seed_);
    RecordProperty("seed", static_cast<int>(seed_));
  }
  void TearDown() override {
    cpu::set_isa(cpu::detect_isa());
    if (HasFailure()) std::printf("seed %u\n", seed_);
  }
  std::vector<float> normal(int64_t count, float scale = 1.0f) {
    std::normal_distribution<float> d(0.0f, scale);
    std::vector<float> v(static_cast<size_t>(count));
    for (float& x : v) x = d(random_);
    return v;
  }
  int64_t uniform(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }
  std::mt19937 random_;
  unsigned seed_ = 0;
};

std::vector<float> poisoned(size_t count) { return std::vector<float>(count, kPoison); }

/// |a - b| <= tolerance * (1 + |b|); NaN fails.
void expect_near(const std::vector<float>& a, const std::vector<float>& b, float tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_TRUE(std::fabs(a[i] - b[i]) <= tolerance * (1.0f + std::fabs(b[i])))
        << i << ": " << a[i] << " and " << b[i];
  }
}

std::vector<uint8_t> as_type(const std::vector<float>& values, DType dtype) {
  std::vector<uint8_t> bytes(values.size() * static_cast<size_t>(itemsize(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    store_element(bytes.data(), dtype, static_cast<int64_t>(i), values[i]);
  }
  return bytes;
}

constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

TEST_P(DecoderKernels, RmsNormAddsAndNormalizes) {
  for (const int64_t cols : {1, 7, 16, 64, 576, 579}) {
    const int64_t rows = uniform(1, 4);
    const auto hidden = normal(rows * cols), delta = normal(rows * cols), weight = normal(cols);
    for (const bool add : {false, true}) {
      auto h = hidden, expected_h = hidden;
      auto out = poisoned(hidden.size()), expected = out;
      RmsNormParams p{.hidden = h.data(),
                      .delta = add ? delta.data() : nullptr,
                      .weight = weight.data(),
                      .output = out.data(),
                      .rows = rows,
                      .cols = cols};
      ASSERT_TRUE(cpu::rms_norm(p, 0, rows).ok());
      p.hidden = expected_h.data();
      p.output = expected.data();
      ASSERT_TRUE(ref::rms_norm(p, 0, rows).ok());
      EXPECT_EQ(h, expected_h);
      expect_near(out, expected, 1e-5f);
    }
  }
}

TEST_P(DecoderKernels, RotaryAppendFillsTheCache) {
  for (const DType type : kTypes) {
    for (const int64_t dim : {2, 6, 16, 64}) {
      const int64_t tokens = uniform(1, 5), kv_heads = uniform(1, 3), heads = kv_heads * 2;
      const int64_t past = uniform(0, 3), capacity = past + tokens + 2;
      const auto query = normal(tokens * heads * dim), key = normal(tokens * kv_heads * dim);
      const auto value = normal(tokens * kv_heads * dim);
      std::vector<float> cos, sin;
      for (int64_t i = 0; i < tokens * dim / 2; ++i) {
        const float angle = normal(1)[0];
        cos.push_back(std::cos(angle));
        sin.push_back(std::sin(angle));
      }
      auto q = query, expected_q = query;
      const auto poison = as_type(poisoned(static_cast<size_t>(kv_heads * capacity * dim)), type);
      auto k = poison, v = poison, expected_k = poison, expected_v = poison;
      RotaryAppendParams p{.query = q.data(),
                           .key = key.data(),
                           .value = value.data(),
                           .cos = cos.data(),
                           .sin = sin.data(),
                           .key_cache = k.data(),
                           .value_cache = v.data(),
                           .cache_dtype = type,
                           .tokens = tokens,
                           .heads = heads,
                           .kv_heads = kv_heads,
                           .head_dim = dim,
                           .capacity = capacity,
                           .past = past};
      ASSERT_TRUE(cpu::rotary_append(p, 0, tokens).ok());
      p.query = expected_q.data();
      p.key_cache = expected_k.data();
      p.value_cache = expected_v.data();
      ASSERT_TRUE(ref::rotary_append(p, 0, tokens).ok());
      EXPECT_EQ(q, expected_q);
      EXPECT_EQ(k, expected_k);
      EXPECT_EQ(v, expected_v);
    }
  }
}

struct AttentionCase {
  int64_t tokens, past, kv_heads, group, dim, window;
};

TEST_P(DecoderKernels, AttentionMatchesTheOracle) {
  const AttentionCase cases[] = {
      {1, 0, 3, 3, 64, 0},   {1, 200, 3, 3, 64, 0},  {7, 0, 2, 2, 16, 0},    {33, 5, 1, 4, 32, 0},
      {100, 0, 2, 1, 64, 0}, {70, 90, 1, 3, 16, 20}, {1, 300, 2, 4, 80, 64}, {40, 0, 1, 8, 128, 1},
      {5, 3, 2, 2, 24, 0},   {64, 64, 1, 9, 16, 7}};
  for (const auto& c : cases) {
    for (const DType type : kTypes) {
      const int64_t heads = c.kv_heads * c.group, capacity = c.past + c.tokens + uniform(0, 9);
      const auto query = normal(c.tokens * heads * c.dim, 2.0f);
      const auto key = as_type(normal(c.kv_heads * capacity * c.dim), type);
      const auto value = as_type(normal(c.kv_heads * capacity * c.dim), type);
      auto out = poisoned(query.size()), expected = out;
      AttentionParams p{.query = query.data(),
                        .key_cache = key.data(),
                        .value_cache = value.data(),
                        .cache_dtype = type,
                        .tokens = c.tokens,
                        .heads = heads,
                        .kv_heads = c.kv_heads,
                        .head_dim = c.dim,
                        .capacity = capacity,
                        .past = c.past,
                        .window = c.window,
                        .scale = 1.0f / std::sqrt(static_cast<float>(c.dim)),
                        .output = out.data()};
      auto workspace = poisoned(static_cast<size_t>(attention_workspace(p)));
      p.workspace = workspace.data();
      const int64_t units = attention_units(p), middle = uniform(0, units);
      ASSERT_TRUE(cpu::attention(p, middle, units).ok());
      ASSERT_TRUE(cpu::attention(p, 0, middle).ok());
      p.output = expected.data();
      ASSERT_TRUE(ref::attention(p, 0, units).ok());
      SCOPED_TRACE(testing::Message() << c.tokens << " tokens, past " << c.past << ", dim " << c.dim
                                      << ", window " << c.window);
      expect_near(out, expected, 2e-5f);
    }
  }
}

TEST_P(DecoderKernels, AttentionKeepsNaN) {
  const auto query = normal(16), value = normal(16 * 3);
  auto key = normal(16 * 3);
  key[20] = kPoison;
  std::vector<float> out(16, 0.0f);
  AttentionParams p{.query = query.data(),
                    .key_cache = key.data(),
                    .value_cache = value.data(),
                    .tokens = 1,
                    .heads = 1,
                    .kv_heads = 1,
                    .head_dim = 16,
                    .capacity = 3,
                    .past = 2,
                    .scale = 0.25f,
                    .output = out.data()};
  std::vector<float> workspace(static_cast<size_t>(attention_workspace(p)));
  p.workspace = workspace.data();
  ASSERT_TRUE(cpu::attention(p, 0, 1).ok());
  EXPECT_TRUE(std::isnan(out[0]));
}

TEST_P(DecoderKernels, SiluMul) {
  auto gate = normal(1003, 20.0f), up = normal(1003);
  gate[5] = -200.0f;
  gate[6] = 200.0f;
  auto out = poisoned(gate.size()), expected = out;
  SiluMulParams p{.gate = gate.data(), .up = up.data(), .output = out.data(), .count = 1003};
  ASSERT_TRUE(cpu::silu_mul(p, 0, 500).ok());
  ASSERT_TRUE(cpu::silu_mul(p, 500, 1003).ok());
  p.output = expected.data();
  ASSERT_TRUE(ref::silu_mul(p, 0, 1003).ok());
  expect_near(out, expected, 1e-6f);
}

TEST_P(DecoderKernels, LinearDense) {
  for (const DType type : kTypes) {
    for (const int64_t k : {1, 31, 64, 576, 1025}) {
      for (int64_t m = 1; m <= 7; ++m) {
        const int64_t n = uniform(1, 40);
        const auto x = normal(m * k), bias = normal(n);
        const auto weight = as_type(normal(n * k), type);
        auto out = poisoned(static_cast<size_t>(m * n)), expected = out;
        LinearDenseParams p{.input = x.data(),
                            .weight = weight.data(),
                            .weight_dtype = type,
                            .bias = uniform(0, 1) != 0 ? bias.data() : nullptr,
                            .output = out.data(),
                            .m = m,
                            .n = n,
                            .k = k};
        const int64_t middle = uniform(0, n);
        ASSERT_TRUE(cpu::linear_dense(p, 0, middle).ok());
        ASSERT_TRUE(cpu::linear_dense(p, middle, n).ok());
        p.output = expected.data();
        ASSERT_TRUE(ref::linear_dense(p, 0, n).ok());
        expect_near(out, expected, 1e-4f);
      }
    }
  }
}

TEST_P(DecoderKernels, WidenIsExact) {
  for (const DType type : kTypes) {
    const auto input = as_type(normal(77, 100.0f), type);
    auto out = poisoned(77), expected = out;
    WidenParams p{.input = input.data(), .input_dtype = type, .output = out.data(), .count = 77};
    ASSERT_TRUE(cpu::widen(p, 0, 77).ok());
    p.output = expected.data();
    ASSERT_TRUE(ref::widen(p, 0, 77).ok());
    EXPECT_EQ(out, expected);
  }
}

TEST_P(DecoderKernels, BadArgumentsWriteNothing) {
  float x = 1.0f;
  EXPECT_EQ(cpu::rms_norm({.hidden = nullptr, .rows = 1, .cols = 1}, 0, 1).code,
            StatusCode::kInvalidArgument);
  EXPECT_EQ(cpu::silu_mul({.gate = &x, .up = &x, .output = &x, .count = 1}, 0, 2).code,
            StatusCode::kInvalidArgument);
  EXPECT_EQ(x, 1.0f);
  AttentionParams a{.query = &x,
                    .key_cache = &x,
                    .value_cache = &x,
                    .tokens = 2,
                    .heads = 1,
                    .kv_heads = 1,
                    .head_dim = 16,
                    .capacity = 2,
                    .past = 1,
                    .output = &x,
                    .workspace = &x};
  EXPECT_EQ(cpu::attention(a, 0, 1).code, StatusCode::kInvalidArgument);
  a.past = 0;
  a.heads = 3;
  a.kv_heads = 2;
  EXPECT_EQ(cpu::attention(a, 0, 1).code, StatusCode::kInvalidArgument);
  RotaryAppendParams r{.query = &x,
                       .key = &x,
                       .value = &x,
                       .cos = &x,
                       .sin = &x,
                       .key_cache = &x,
                       .value_cache = &x,
                       .tokens = 1,
                       .heads = 1,
                       .kv_heads = 1,
                       .head_dim = 3,
                       .capacity = 1};
  EXPECT_EQ(cpu::rotary_append(r, 0, 1).code, StatusCode::kInvalidArgument);
  EXPECT_TRUE(cpu::silu_mul({}, 0, 0).ok());
}

INSTANTIATE_TEST_SUITE_P(Isa, DecoderKernels,
                         ::testing::Values(cpu::Isa::kScalar, cpu::Isa::kAVX2, cpu::Isa::kAVX512),
                         [](const auto& info) { return cpu::isa_name(info.param); });

}  // namespace
}  // namespace lowbit::kernels
