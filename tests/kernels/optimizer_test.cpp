// Optimizer steps: every instruction set against the scalar truth, and the scalar truth against
// float64 arithmetic.
#include "lowbit/kernels/optimizer.h"

#include <cmath>

#include "instruction_sets.h"
#include "optimizer_problem.h"

namespace lowbit::kernels {
namespace {

using namespace testing;

class Optimizer : public EachInstructionSet {
 protected:
  OptimizerProblem random_problem(Content content) {
    OptimizerProblem problem;
    problem.kind = kOptimizerKinds[below(6)];
    problem.blockwise = below(2) == 0;
    problem.dtype = kDTypes[below(3)];
    const int32_t hypers = 1 + static_cast<int32_t>(below(2));
    for (int32_t i = 0; i < hypers; ++i) {
      problem.hypers.push_back(random_hyper(problem.kind, random_));
    }
    const uint32_t count = 1 + below(4);
    for (uint32_t i = 0; i < count; ++i) {
      const int64_t numel = below(3) == 0 ? below(600) : below(10000);
      auto& t = problem.add(numel, static_cast<int32_t>(below(2)) % hypers, below(7));
      fill_random(t.p.data(), problem.dtype, numel, random_, content);
      fill_random(t.g.data(), problem.dtype, numel, random_, content);
      for (int64_t j = 0; j < numel; ++j) {
        if (below(8) == 0) store_element(t.g.data(), problem.dtype, j, 0.0f);
      }
    }
    return problem;
  }

  void fill_gradients(OptimizerProblem& problem, Content content) {
    for (auto& t : problem.tensors) {
      fill_random(t->g.data(), problem.dtype, t->numel, random_, content);
    }
  }

  void expect_same(OptimizerProblem& a, OptimizerProblem& b) {
    for (size_t i = 0; i < a.tensors.size(); ++i) {
      auto &x = *a.tensors[i], &y = *b.tensors[i];
      ASSERT_TRUE(same_elements(x.p.data(), y.p.data(), a.dtype, x.numel)) << "p of tensor " << i;
      const auto same_states = [&](GuardedBuffer& s, GuardedBuffer& t) {
        if (!a.blockwise) {
          return same_elements(s.data(), t.data(), DType::kFloat32,
                               static_cast<int64_t>(s.bytes() / 4));
        }
        for (size_t j = 0; j < s.bytes(); ++j) {
          if (s.as<uint8_t>()[j] != t.as<uint8_t>()[j]) {
            return ::testing::AssertionFailure() << "code " << j << ": " << int{s.as<uint8_t>()[j]}
                                                 << " and " << int{t.as<uint8_t>()[j]};
          }
        }
        return ::testing::AssertionSuccess();
      };
      ASSERT_TRUE(same_states(x.state1, y.state1)) << "state1 of tensor " << i;
      ASSERT_TRUE(same_states(x.state2, y.state2)) << "state2 of tensor " << i;
      for (auto [s, t] : {std::pair{&x.absmax1, &y.absmax1}, std::pair{&x.absmax2, &y.absmax2}}) {
        ASSERT_TRUE(same_elements(s->data(), t->data(), DType::kFloat32,
                                  static_cast<int64_t>(s->bytes() / 4)))
            << "absmax of tensor " << i;
      }
      ASSERT_TRUE(same_elements(&x.unorm, &y.unorm, DType::kFloat32, 1)) << "unorm of tensor " << i;
    }
    ASSERT_TRUE(same_elements(a.workspace().data(), b.workspace().data(), DType::kFloat32,
                              static_cast<int64_t>(a.workspace().size())));
  }
};
LOWBIT_EACH_INSTRUCTION_SET(Optimizer);

TEST_P(Optimizer, IsTheReference) {
  for (int trial = 0; trial < 300; ++trial) {
    const Content content = kContents[below(5)];
    OptimizerProblem ours = random_problem(content), truth = ours.clone();
    SCOPED_TRACE(::testing::Message()
                 << "kind " << int(ours.kind) << " blockwise " << ours.blockwise << " dtype "
                 << int(ours.dtype) << " content " << int(content) << " max_unorm "
                 << ours.hypers[0].max_unorm << " skip " << ours.hypers[0].skip_zeros);
    for (int step = 0; step < 3; ++step) {
      ours.step_on_cpu(below(5));
      truth.step_on_ref();
      expect_same(ours, truth);
      if (HasFatalFailure()) return;
      fill_gradients(ours, content);
      for (size_t i = 0; i < ours.tensors.size(); ++i) {
        auto &x = *ours.tensors[i], &y = *truth.tensors[i];
        std::memcpy(y.g.data(), x.g.data(), x.g.bytes());
      }
      for (OptimizerHyper& h : ours.hypers) ++h.step;
      truth.hypers = ours.hypers;
    }
    ASSERT_TRUE(ours.guards_intact());
  }
}

/// One element in float64. Betas are float32 numbers, as is 1 - beta.
struct Truth {
  double p = 0, m = 0, slow = 0, v = 0;

  void step(OptimizerKind kind, const OptimizerHyper& h, double gradient) {
    const double g = h.gnorm_scale * gradient, decay = 1.0 - double{h.lr} * h.weight_decay;
    const double rest1 = 1.0f - h.beta1, rest2 = 1.0f - h.beta2, rest3 = 1.0f - h.beta3;
    const auto t = static_cast<double>(h.step);
    const double c1 = 1 - std::pow(double{h.beta1}, t);
    const double c2 = std::sqrt(1 - std::pow(double{h.beta2}, t));
    const double coupled = g + h.weight_decay * p;
    switch (kind) {
      case OptimizerKind::kAdam:
      case OptimizerKind::kAdEMAMix:
        m = h.beta1 * m + rest1 * g;
        v = h.beta2 * v + rest2 * g * g;
        if (kind == OptimizerKind::kAdEMAMix) slow = h.beta3 * slow + rest3 * g;
        p -= h.lr * (m / c1 + (kind == OptimizerKind::kAdEMAMix ? h.alpha * slow : 0.0)) /
             (std::sqrt(v) / c2 + h.eps);
        p *= decay;
        return;
      case OptimizerKind::kMomentum:
        m = h.step == 1 ? coupled : h.beta1 * m + coupled;
        p -= h.lr * m;
        return;
      case OptimizerKind::kRMSprop:
        m = h.beta1 * m + rest1 * coupled * coupled;
        p -= h.lr * coupled / (std::sqrt(m) + h.eps);
        return;
      case OptimizerKind::kAdagrad:
        m += coupled * coupled;
        p -= h.lr * coupled / (std::sqrt(m) + h.eps);
        return;
      case OptimizerKind::kLion: {
        const double direction = h.beta1 * m + rest1 * g;
        p = p * decay - h.lr * ((direction > 0) - (direction < 0));
        m = h.beta2 * m + rest2 * g;
        return;
      }
    }
  }
};

/// Float32 states and parameters follow float64 for many steps, with gradients of either sign and
/// of many magnitudes.
TEST_P(Optimizer, Float32FollowsFloat64) {
  for (const OptimizerKind kind : kOptimizerKinds) {
    OptimizerProblem problem;
    problem.kind = kind;
    OptimizerHyper h = random_hyper(kind, random_);
    h.skip_zeros = false, h.max_unorm = 0, h.step = 1, h.eps = 1e-8f, h.lr = 1e-3f;
    h.beta1 = kind == OptimizerKind::kAdagrad ? 0.0f : 0.9f, h.beta2 = 0.999f;
    problem.hypers = {h};
    const int64_t n = 1000;
    auto& t = problem.add(n);
    fill_random(t.p.data(), DType::kFloat32, n, random_, Content::kNormal);
    std::vector<Truth> truth(n);
    for (int64_t i = 0; i < n; ++i) truth[i].p = t.p.as<float>()[i];
    for (int step = 1; step <= 50; ++step) {
      for (int64_t i = 0; i < n; ++i) {
        const float g =
            std::ldexp(random_element(random_, Content::kNormal), -static_cast<int>(i % 20));
        t.g.as<float>()[i] = g;
        problem.hypers[0].step = step;
        truth[i].step(kind, problem.hypers[0], g);
      }
      problem.step_on_cpu();
    }
    double worst = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double moved = 50 * h.lr, error = std::fabs(truth[i].p - t.p.as<float>()[i]);
      // 50 roundings of p, and errors of 1e-6 in what it moves (several lr a step, at most).
      const double allowed = 50 * 0x1p-24 * std::fabs(truth[i].p) + 3e-5 * moved;
      // Lion's direction is a sign, which a rounding error can turn around near zero.
      if (kind != OptimizerKind::kLion) worst = std::max(worst, error / allowed);
      // A sum that cancels has the error of its terms; h carries the error of p.
      const double of_terms = 5e-6 * std::ldexp(h.gnorm_scale, -static_cast<int>(i % 20));
      const double of_h = 10 * h.weight_decay * allowed;
      ASSERT_NEAR(t.state1.as<float>()[i], truth[i].m,
                  3e-6 * std::fabs(truth[i].m) + 1e-8 + of_terms + of_h)
          << int(kind) << " element " << i;
    }
    EXPECT_LE(worst, 1.0) << int(kind);
  }
}

/// One 8-bit step from decoded states is the float32 step, whatever the reference's own 8-bit
/// kernels do: the numerator of RMSprop and Adagrad is h, with weight decay and scale.
TEST_P(Optimizer, EightBitNumeratorHasWeightDecay) {
  for (const OptimizerKind kind : {OptimizerKind::kRMSprop, OptimizerKind::kAdagrad}) {
    OptimizerProblem problem;
    problem.kind = kind;
    problem.blockwise = true;
    problem.hypers = {
        {.lr = 1e-3f, .beta1 = 0.99f, .eps = 1e-8f, .weight_decay = 0.1f, .gnorm_scale = 0.5f}};
    const int64_t n = 700;
    auto& t = problem.add(n);
    fill_random(t.p.data(), DType::kFloat32, n, random_, Content::kNormal);
    std::vector<Truth> truth(n);
    for (int64_t i = 0; i < n; ++i) {
      truth[i].p = t.p.as<float>()[i];
      // h nearly cancels: the raw gradient over the root of a small state would explode.
      const float g = static_cast<float>(-0.2 * truth[i].p * (1.0 - 1e-3 * (1 + i % 5)));
      t.g.as<float>()[i] = g;
      truth[i].step(kind, problem.hypers[0], g);
    }
    problem.step_on_cpu();
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_NEAR(t.p.as<float>()[i], truth[i].p, 1e-4 * 1e-2 + 1e-6 * std::fabs(truth[i].p)) << i;
    }
  }
}

/// Codes are the nearest ones of state / absmax (in the format's words), with the sign of the
/// state; states of squares that are positive do not become zero.
TEST_P(Optimizer, CodesAreTheNearestOnes) {
  for (int trial = 0; trial < 60; ++trial) {
    const bool momentum = trial % 2 == 0;
    OptimizerProblem problem;
    problem.kind = momentum ? OptimizerKind::kMomentum : OptimizerKind::kAdagrad;
    problem.blockwise = true;
    problem.hypers = {{.lr = 1e-3f, .beta1 = 0.9f, .eps = 1e-10f}};
    const int64_t n = 256 * 64;
    auto& t = problem.add(n);
    fill_random(t.p.data(), DType::kFloat32, n, random_, Content::kNormal);
    const Content contents[] = {Content::kNormal, Content::kTiny, Content::kWide};
    fill_random(t.g.data(), DType::kFloat32, n, random_, contents[below(3)]);
    problem.step_on_cpu();
    const float* map = dynamic_map(true);
    for (int64_t i = 0; i < n; ++i) {
      // From zero states the new ones are exactly g and g^2.
      const float g = flush(t.g.as<float>()[i]);
      const float state = momentum ? g : multiply_flushed(g, g);
      const float absmax = t.absmax1.as<float>()[i / 256];
      const int code = t.state1.as<uint8_t>()[i];
      if (absmax == 0.0f) {
        ASSERT_EQ(code, 0);
        continue;
      }
      const double y = double{state} / absmax;
      double best = HUGE_VAL;
      for (int k = 0; k < 256; ++k) best = std::min(best, std::fabs(y - map[k]));
      const double distance = std::fabs(y - map[code]);
      const double rounding = 0x1p-22 * std::fabs(y);  // of y, and of the middle between values
      if (momentum) {
        ASSERT_TRUE(state == 0.0f || map[code] == 0.0f || (map[code] > 0) == (state > 0));
        // -5.5e-7 in place of 0 is the one choice that is not the nearest.
        ASSERT_TRUE(distance <= best + rounding || (code == 126 && std::signbit(y)))
            << y << " " << code;
      } else {
        ASSERT_EQ(map[code] > 0.0f, y >= FLT_MIN);
        ASSERT_TRUE(distance <= best + rounding || code == 128) << y << " " << code;
      }
    }
  }
}

TEST_P(Optimizer, NonFiniteGradients) {
  for (const float bad : {NAN, HUGE_VALF, -HUGE_VALF}) {
    for (const OptimizerKind kind : kOptimizerKinds) {
      for (const bool blockwise : {false, true}) {
        OptimizerProblem problem;
        problem.kind = kind, problem.blockwise = blockwise;
        problem.hypers = {{.lr = 0.1f,
                           .beta1 = 0.9f,
                           .beta2 = 0.99f,
                           .beta3 = 0.999f,
                           .alpha = 2.0f,
                           .eps = 1e-8f,
                           .weight_decay = 0.1f}};
        auto& t = problem.add(300);
        fill_random(t.p.data(), DType::kFloat32, 300, random_, Content::kNormal);
        fill_random(t.g.data(), DType::kFloat32, 300, random_, Content::kNormal);
        problem.step_on_cpu();
        const float before = t.p.as<float>()[7];
        t.g.as<float>()[7] = bad;
        problem.hypers[0].step = 2;
        problem.step_on_cpu();
        if (blockwise && has_second_state(kind)) {  // skipped; the states restart at 0
          EXPECT_EQ(t.p.as<float>()[7], before);
          EXPECT_EQ(t.state1.as<uint8_t>()[7], 127);
          EXPECT_EQ(t.state2.as<uint8_t>()[7], 0);
        } else if (!blockwise) {
          EXPECT_FALSE(std::isfinite(t.state1.as<float>()[7])) << int(kind);
        }
        for (int i : {6, 8, 299}) EXPECT_TRUE(std::isfinite(t.p.as<float>()[i]));
      }
    }
  }
}

/// The limit against the norms in float64; the trust ratio of LAMB and LARS with 8-bit states is
/// the one with float32 states at the first step.
TEST_P(Optimizer, UpdateLimit) {
  for (const OptimizerKind kind :
       {OptimizerKind::kAdam, OptimizerKind::kMomentum, OptimizerKind::kRMSprop}) {
    for (const bool blockwise : {false, true}) {
      OptimizerProblem problem;
      problem.kind = kind, problem.blockwise = blockwise;
      OptimizerHyper h{
          .lr = 0.01f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.01f};
      h.max_unorm = 0.02f;
      problem.hypers = {h};
      const int64_t n = 30000;
      auto& t = problem.add(n);
      fill_random(t.p.data(), DType::kFloat32, n, random_, Content::kNormal);
      fill_random(t.g.data(), DType::kFloat32, n, random_, Content::kNormal);
      double p2 = 0, u2 = 0;
      std::vector<double> expected(n);
      for (int64_t i = 0; i < n; ++i) {
        const double p = t.p.as<float>()[i], g = t.g.as<float>()[i];
        p2 += p * p;
        Truth free{.p = p};
        OptimizerHyper undecayed = h;
        undecayed.weight_decay = 0;
        free.step(kind, undecayed, g);
        u2 += (free.p - p) / h.lr * ((free.p - p) / h.lr);
      }
      const double limit = std::min(1.0, 0.02 * std::sqrt(p2 / u2));
      ASSERT_LT(limit, 0.9);
      for (int64_t i = 0; i < n; ++i) {
        const double p = t.p.as<float>()[i];
        Truth limited{.p = p};
        OptimizerHyper scaled = h;
        scaled.weight_decay = kind == OptimizerKind::kAdam ? 0 : h.weight_decay;
        limited.step(kind, scaled, t.g.as<float>()[i]);
        expected[i] = p + limit * (limited.p - p);
        if (kind == OptimizerKind::kAdam) expected[i] *= 1 - double{h.lr} * h.weight_decay;
      }
      problem.step_on_cpu(3);
      EXPECT_NEAR(t.unorm, u2, 1e-5 * u2);
      for (int64_t i = 0; i < n; ++i) {
        ASSERT_NEAR(t.p.as<float>()[i], expected[i], 2e-7 * std::fabs(expected[i]) + 1e-8)
            << int(kind) << " " << blockwise << " " << i;
      }
    }
  }
}

/// Values in memory take the place of those in the struct.
TEST_P(Optimizer, ValuesReadWhenTheStepRuns) {
  OptimizerProblem problem;
  problem.blockwise = true;
  problem.hypers = {
      {.lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f, .step = 7, .gnorm_scale = 0.125f}};
  auto& t = problem.add(5000);
  fill_random(t.p.data(), DType::kFloat32, 5000, random_, Content::kNormal);
  fill_random(t.g.data(), DType::kFloat32, 5000, random_, Content::kNormal);
  OptimizerProblem other = problem.clone();
  const float lr = 1e-2f, step = 7.0f, scale = 0.25f;
  OptimizerHyper& h = other.hypers[0];
  h.lr = NAN, h.step = 0, h.gnorm_scale = 0.5f;
  h.lr_value = &lr, h.step_value = &step, h.gnorm_scale_value = &scale;
  problem.step_on_cpu();
  other.step_on_cpu();
  expect_same(problem, other);
}

}  // namespace
}  // namespace lowbit::kernels
