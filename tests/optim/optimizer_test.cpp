// Optimizers as torch users drive them.
#include "lowbit/optim/optimizer.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdio>
#include <sstream>

#include "families.h"
#include "lowbit/nn/embedding.h"
#include "lowbit/optim/pytorch_lars.h"
#include "support/random.h"
#include "support/tolerance.h"

namespace lowbit {
namespace {

using optim::AdamW8bit;
using optim::AdamWOptions;

class OptimizerTest : public test::RandomTest {
 protected:
  at::Tensor parameter(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) {
    return normal(sizes, dtype).requires_grad_();
  }
  void set_gradient(const at::Tensor& p, double scale = 1.0) {
    p.mutable_grad() = normal(p.sizes(), p.scalar_type(), scale);
  }
};

/// The mean squared distance to eight samples, one a step: its gradients have noise, and its least
/// value is not 0. (A moment with slow averages in 8 bits does not follow gradients that change
/// slowly and without noise: a hundredth of the difference is less than half a code.) A class with
/// 8-bit states follows the one with float32 states in front of it.
TEST_F(OptimizerTest, EveryFamilyConvergesOnAQuadratic) {
  const at::Tensor samples = normal({8, 80, 64}), start = samples.mean(0) + normal({80, 64});
  const auto loss = [&](const at::Tensor& x) {
    return (samples - x).square().mean().item<double>();
  };
  const double first = loss(start), least = loss(samples.mean(0));
  double full = 0;
  for (const test::Family& family : test::families()) {
    at::Tensor x = start.clone().requires_grad_();
    const auto optimizer = family.make({x});
    const double lr = optimizer->param_groups()[0].options().get_lr();
    for (int step = 0; step < 1000; ++step) {
      // A rate that falls to a tenth: rules whose steps do not shrink by themselves come to rest.
      optimizer->param_groups()[0].options().set_lr(lr * (1.0 - 0.9 * step / 1000));
      x.mutable_grad() = x.detach() - samples.select(0, step % 8);
      optimizer->step();
    }
    const double last = loss(x.detach());
    EXPECT_LT(last - least, 0.15 * (first - least)) << family.name;
    if (family.blockwise) {
      EXPECT_LE(last, (1 + test::kEightBitLoss) * full) << family.name;
    } else {
      full = last;
    }
    std::printf("%s: %.4f, %.4f of float32 states\n", family.name.c_str(), last, last / full);
  }
}

/// A small network on targets with noise, new ones each step: the loss on others, with 8-bit
/// states, after training.
TEST_F(OptimizerTest, EightBitTrainsLikeFloat32) {
  const at::Tensor w = normal({32, 8}, at::kFloat, 0.3), x = normal({4096, 32});
  const auto targets = [&](const at::Tensor& inputs) {
    return torch::tanh(torch::mm(inputs, w)) + normal({inputs.size(0), 8}, at::kFloat, 0.3);
  };
  const at::Tensor y = targets(x);
  std::vector<std::pair<at::Tensor, at::Tensor>> batches;
  for (int step = 0; step < 1000; ++step) {
    const at::Tensor inputs = normal({64, 32});
    batches.emplace_back(inputs, targets(inputs));
  }
  const int threads = at::get_num_threads();
  at::set_num_threads(1);  // the products are tiny
  double full = 0;
  for (const test::Family& family : test::families()) {
    torch::manual_seed(7);
    torch::nn::Sequential net(torch::nn::Linear(32, 128), torch::nn::Tanh(),
                              torch::nn::Linear(128, 8));
    net->to(test::device());
    const auto optimizer = family.make(net->parameters());
    for (const at::Tensor& p : net->parameters()) {
      optimizer->overrides().set(p, {.min_8bit_size = 256});
    }
    auto& options = optimizer->param_groups()[0].options();
    // Adam's rate for LAMB, too: at twice the rate the noise of the steps is what remains, and
    // second moments that 8 bits take for 0 add 2-3 % to it.
    const bool is_lamb = family.name.rfind("LAMB", 0) == 0;
    const double lr = (is_lamb ? 0.15 : 0.3) * options.get_lr();
    for (int step = 0; step < 1000; ++step) {
      options.set_lr(lr * (1.0 - step / 1000.0));  // to rest
      optimizer->zero_grad();
      torch::mse_loss(net->forward(batches[step].first), batches[step].second).backward();
      optimizer->step();
    }
    const at::NoGradGuard no_grad;
    const double last = torch::mse_loss(net->forward(x), y).item<double>();
    EXPECT_LT(last, 0.7 * y.square().mean().item<double>()) << family.name;
    if (family.blockwise) {
      EXPECT_LE(last, (1 + test::kEightBitLoss) * full) << family.name;
    } else {
      full = last;
    }
    std::printf("%s: %.4f, %.4f of float32 states\n", family.name.c_str(), last, last / full);
  }
  at::set_num_threads(threads);
}

TEST_F(OptimizerTest, BytesOfStates) {
  const int64_t n = 1 << 16;
  at::Tensor p = parameter({n});
  const auto bytes = [&](auto&& optimizer) {
    set_gradient(p);
    optimizer.step();
    std::printf("%s: %.5f bytes of state per parameter\n", optimizer.name().c_str(),
                static_cast<double>(optimizer.state_bytes()) / n);
    return optimizer.state_bytes();
  };
  EXPECT_EQ(bytes(optim::Adam8bit({p})), n * 2 + n / 256 * 8);  // 2 + 8 / 256 bytes each
  EXPECT_EQ(bytes(optim::Adam32bit({p})), n * 8);
  EXPECT_EQ(bytes(optim::Lion8bit({p})), n + n / 256 * 4);
  EXPECT_EQ(bytes(optim::AdEMAMix8bit({p})), n * 3 + n / 256 * 12);
  EXPECT_EQ(bytes(optim::Adam({p}, optim::AdamOptions().optim_bits(8))), n * 2 + n / 256 * 8);
}

TEST_F(OptimizerTest, MixedParametersInOneOptimizer) {
  // dtypes, sizes below and above min_8bit_size, layouts, a missing gradient, an empty parameter.
  std::vector<at::Tensor> all = {
      parameter({70, 80}),
      parameter({70, 80}, at::kBFloat16),
      parameter({5000}, at::kHalf),
      parameter({10}),
      parameter({0, 4}),
      normal({80, 70}).t().requires_grad_(),
      normal({2, 8, 20, 20}).contiguous(at::MemoryFormat::ChannelsLast).requires_grad_(),
      parameter({6000})};
  std::vector<at::Tensor> alone;
  for (const at::Tensor& p : all) alone.push_back(p.detach().clone().requires_grad_());
  AdamW8bit together(all);
  std::vector<std::unique_ptr<AdamW8bit>> singles;
  for (at::Tensor& p : alone) {
    singles.push_back(std::make_unique<AdamW8bit>(std::vector<at::Tensor>{p}));
  }
  for (int step = 0; step < 3; ++step) {
    for (size_t i = 0; i + 1 < all.size(); ++i) {
      if (step == 1 && i == 1) {
        all[i].mutable_grad() = alone[i].mutable_grad() = at::Tensor();
        continue;
      }
      set_gradient(all[i]);
      alone[i].mutable_grad() = all[i].grad().clone();
    }
    together.step();
    for (auto& optimizer : singles) optimizer->step();
    for (size_t i = 0; i < all.size(); ++i) EXPECT_TRUE(at::equal(all[i], alone[i])) << i;
  }
  const auto dict = together.state_dict();
  EXPECT_EQ(dict.state.at(1).step, 2);
  EXPECT_EQ(dict.state.at(0).step, 3);
  EXPECT_EQ(dict.state.count(7), 0u);  // never had a gradient
  EXPECT_EQ(dict.state.at(0).tensors.at("state1").scalar_type(), at::kByte);
  EXPECT_EQ(dict.state.at(3).tensors.at("state1").scalar_type(), at::kFloat);
}

TEST_F(OptimizerTest, GroupsClosuresSchedulersAndZeroGrad) {
  at::Tensor a = parameter({64}), b = parameter({64}), c = parameter({64});
  optim::AdamW32bit optimizer({torch::optim::OptimizerParamGroup({a})}, AdamWOptions(0.1));
  optimizer.add_param_group(torch::optim::OptimizerParamGroup(
      {b}, std::make_unique<AdamWOptions>(AdamWOptions(0.0).weight_decay(0.0))));
  const at::Tensor b_before = b.detach().clone();
  torch::optim::StepLR scheduler(optimizer, 1, 0.5);
  int calls = 0;
  const auto closure = [&] {
    ++calls;
    EXPECT_TRUE(at::GradMode::is_enabled());
    optimizer.zero_grad();
    at::Tensor loss = (a + b + c).square().sum();
    loss.backward();
    return loss;
  };
  EXPECT_TRUE(optimizer.step(closure).defined());
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(at::equal(b, b_before));  // lr 0
  scheduler.step();                     // torch's first call only counts
  scheduler.step();
  EXPECT_EQ(optimizer.param_groups()[0].options().get_lr(), 0.05);
  const at::Tensor before = a.detach().clone();
  optimizer.step(closure);
  EXPECT_NEAR((a - before).abs().max().item<double>(), 0.05, 0.01);
  optimizer.zero_grad();
  EXPECT_FALSE(a.grad().defined());
  EXPECT_FALSE(optimizer.step().defined());
}

TEST_F(OptimizerTest, Overrides) {
  at::Tensor a = parameter({5000}), b = parameter({5000}), c = parameter({5000});
  const at::Tensor c_before = c.detach().clone();
  AdamW8bit optimizer({a, b, c}, AdamWOptions(0.1));
  optimizer.overrides().set(b, {.optim_bits = 32});
  optimizer.overrides().set(c, {.lr = 0.0});
  optimizer.overrides().set(c, {.weight_decay = 0.0});
  for (const at::Tensor& p : {a, b, c}) set_gradient(p);
  optimizer.step();
  const auto dict = optimizer.state_dict();
  EXPECT_EQ(dict.state.at(0).tensors.at("state1").scalar_type(), at::kByte);
  EXPECT_EQ(dict.state.at(1).tensors.at("state1").scalar_type(), at::kFloat);
  EXPECT_TRUE(at::equal(c, c_before));
  optimizer.overrides().clear(c);
  optimizer.step();
  EXPECT_FALSE(at::equal(c, c_before));
}

TEST_F(OptimizerTest, EmbeddingsOfLowbitKeepFloat32States) {
  nn::Embedding plain(100, 64);
  nn::StableEmbedding stable(100, 64);
  torch::nn::Embedding ordinary(100, 64);
  plain->to(test::device());
  stable->to(test::device());
  ordinary->to(test::device());
  AdamW8bit optimizer({plain->weight, stable->weight, ordinary->weight});
  for (const at::Tensor& p : {plain->weight, stable->weight, ordinary->weight}) set_gradient(p);
  optimizer.step();
  const auto dict = optimizer.state_dict();
  EXPECT_EQ(dict.state.at(0).tensors.at("state1").scalar_type(), at::kFloat);
  EXPECT_EQ(dict.state.at(1).tensors.at("state1").scalar_type(), at::kFloat);
  EXPECT_EQ(dict.state.at(2).tensors.at("state1").scalar_type(), at::kByte);
}

TEST_F(OptimizerTest, SkipZerosLeavesElementsAlone) {
  for (const test::Family& family : test::families()) {
    at::Tensor p = parameter({5000});
    const auto optimizer = family.make({p});
    optimizer->overrides().set(p, {.weight_decay = 0.0, .skip_zeros = true});
    set_gradient(p);
    optimizer->step();
    const at::Tensor before = p.detach().clone();
    at::Tensor g = normal({5000});
    const at::Tensor zero = g > 0;
    p.mutable_grad() = g.masked_fill(zero, 0.0);
    optimizer->step();
    EXPECT_TRUE(at::equal(p.detach().masked_select(zero), before.masked_select(zero)))
        << family.name;
    EXPECT_FALSE(at::equal(p.detach(), before)) << family.name;
  }
}

TEST_F(OptimizerTest, ScalesAndClipsGradients) {
  at::Tensor a = parameter({300}), b = parameter({50});
  at::Tensor a2 = a.detach().clone().requires_grad_(), b2 = b.detach().clone().requires_grad_();
  optim::SGD32bit clipped({a, b}, optim::SGDOptions(0.1).momentum(0.9).max_grad_norm(0.5));
  optim::SGD32bit plain({a2, b2}, optim::SGDOptions(0.1).momentum(0.9).gnorm_scale(2.0));
  set_gradient(a), set_gradient(b);
  const double norm = at::cat({a.grad(), b.grad()}).norm().item<double>();
  a2.mutable_grad() = a.grad() * (0.25 / norm);
  b2.mutable_grad() = b.grad() * (0.25 / norm);
  clipped.step();
  plain.step();
  EXPECT_TRUE(at::allclose(a, a2, 1e-5, 1e-7));
  EXPECT_TRUE(at::allclose(b, b2, 1e-5, 1e-7));
}

/// max_unorm: |update| without weight decay is at most max_unorm * |p|, for both kinds of states.
TEST_F(OptimizerTest, UpdateNormIsLimited) {
  const auto check = [&](optim::Optimizer& optimizer, at::Tensor& p, double limit, double lr) {
    set_gradient(p, 100.0);
    const at::Tensor before = p.detach().clone();
    optimizer.step();
    const double moved = (p - before).norm().item<double>() / lr;
    EXPECT_NEAR(moved, limit * before.norm().item<double>(), 1e-3 * moved) << optimizer.name();
  };
  for (const int64_t bits : {32, 8}) {
    at::Tensor p = parameter({9000});
    optim::LAMB lamb({p}, optim::LAMBOptions(1e-3).max_unorm(0.1).optim_bits(bits));
    check(lamb, p, 0.1, 1e-3);
    optim::LARS lars({p}, optim::LARSOptions(1e-3).momentum(0.9).optim_bits(bits));
    check(lars, p, 0.02, 1e-3);
    optim::RMSprop rms({p}, optim::RMSpropOptions(1e-3).max_unorm(0.05).optim_bits(bits));
    check(rms, p, 0.05, 1e-3);
  }
}

/// The kernels against plain tensor operations.
TEST_F(OptimizerTest, LARSIsPytorchLARS) {
  at::Tensor a = parameter({5000}), b = a.detach().clone().requires_grad_();
  optim::LARS32bit kernels({a}, optim::LARSOptions(0.1).momentum(0.9));
  optim::PytorchLARS plain({b}, optim::PytorchLARSOptions(0.1).momentum(0.9));
  for (int step = 0; step < 4; ++step) {
    if (step == 2) {
      std::stringstream stream;
      torch::save(plain, stream);
      torch::load(plain, stream);
    }
    set_gradient(a);
    b.mutable_grad() = a.grad().clone();
    kernels.step();
    plain.step();
  }
  EXPECT_TRUE(at::allclose(a, b, 1e-5, 1e-6));
}

/// RMSprop and Adagrad: squares in the unsigned map are twice as fine.
TEST_F(OptimizerTest, UnsignedStates) {
  at::Tensor p = parameter({8192});
  set_gradient(p);
  const at::Tensor expected = p.grad().square() * (1.0f - 0.99f);
  const auto error = [&](bool unsigned_state) {
    optim::RMSprop8bit optimizer({p}, optim::RMSpropOptions(1e-3).unsigned_state(unsigned_state));
    optimizer.step();
    const auto state = optimizer.state_dict().state.at(0).tensors;
    EXPECT_EQ(state.at("qmap1").min().item<float>() == 0.0f, unsigned_state);
    const at::Tensor decoded = state.at("qmap1").index({state.at("state1").to(at::kLong)}) *
                               state.at("absmax1").repeat_interleave(256);
    return (decoded - expected).abs().mean().item<double>();
  };
  EXPECT_LT(error(true), 0.7 * error(false));
}

/// A bfloat16 parameter that moves by 1/16 of its unit a step stands still when it is rounded to
/// nearest. Rounded at random it moves, on average by what it should; a second run is the same.
TEST_F(OptimizerTest, StochasticRounding) {
  const auto run = [&](bool stochastic, int64_t seed) {
    at::Tensor p = test::ones({20000}, at::kBFloat16).requires_grad_();
    optim::SGD32bit sgd({p}, optim::SGDOptions(0x1p-12)
                                 .momentum(1e-9)
                                 .stochastic_rounding(stochastic)
                                 .rounding_seed(seed));
    for (int step = 0; step < 16; ++step) {
      p.mutable_grad() = -at::ones_like(p).detach();
      sgd.step();
    }
    return p.detach().to(at::kFloat);
  };
  EXPECT_TRUE(at::equal(run(false, 0), test::ones({20000})));
  const at::Tensor moved = run(true, 1) - 1;
  // 16 steps of 2^-12: half a unit of 2^-7. The mean of 20000 has a deviation of 3e-5 at most.
  EXPECT_NEAR(moved.mean().item<double>(), 16 * 0x1p-12, 1.5e-4);
  EXPECT_GT(moved.std().item<double>(), 1e-3);
  EXPECT_TRUE(at::equal(run(true, 1) - 1, moved));
  EXPECT_FALSE(at::equal(run(true, 2) - 1, moved));
}

/// Steps and rates in device memory change no number, whoever joins or misses a step.
TEST_F(OptimizerTest, Capturable) {
  for (const int64_t bits : {32, 8}) {
    std::vector<at::Tensor> a{parameter({5000}), parameter({6000}), parameter({40})}, b;
    for (const at::Tensor& p : a) b.push_back(p.detach().clone().requires_grad_());
    const auto options = AdamWOptions(1e-2).optim_bits(bits);
    optim::AdamW plain(a, options), captured(b, AdamWOptions(options).capturable(true));
    for (int step = 0; step < 6; ++step) {
      for (size_t i = 0; i < a.size(); ++i) {
        a[i].mutable_grad() = b[i].mutable_grad() = at::Tensor();
        if ((i == 1 && step == 3) || (i == 2 && step < 2)) continue;
        set_gradient(a[i]);
        b[i].mutable_grad() = a[i].grad().clone();
      }
      for (optim::AdamW* optimizer : {&plain, &captured}) {
        optimizer->param_groups()[0].options().set_lr(1e-2 / (step + 1));
        optimizer->step();
      }
      // The device's powers may differ from the host's in the last bit.
      for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::allclose(a[i], b[i], 1e-6, 1e-8)) << i;
    }
    const auto one = plain.state_dict(), two = captured.state_dict();
    for (const auto& [number, state] : one.state) {
      EXPECT_EQ(state.step, two.state.at(number).step) << number;
    }
    EXPECT_EQ(two.state.at(1).step, 5);
    EXPECT_EQ(two.state.at(2).step, 4);
    captured.load_state_dict(two);
    captured.step();
    EXPECT_EQ(captured.state_dict().state.at(0).step, 7);
  }
}

TEST_F(OptimizerTest, ManyGroupsOfOneTensor) {
  std::vector<torch::optim::OptimizerParamGroup> groups;
  std::vector<at::Tensor> params, copies;
  for (int i = 0; i < 40; ++i) {
    params.push_back(parameter({1000}));
    copies.push_back(params[i].detach().clone().requires_grad_());
    auto options = std::make_unique<optim::LionOptions>(1e-3 * (i + 1));
    groups.emplace_back(std::vector<at::Tensor>{params[i]}, std::move(options));
  }
  optim::Lion32bit together(groups);
  for (int i = 0; i < 40; ++i) {
    set_gradient(params[i]);
    copies[i].mutable_grad() = params[i].grad().clone();
    optim::Lion32bit single({copies[i]}, optim::LionOptions(1e-3 * (i + 1)));
    single.step();
  }
  together.step();
  for (int i = 0; i < 40; ++i) EXPECT_TRUE(at::equal(params[i], copies[i])) << i;
}

}  // namespace
}  // namespace lowbit
