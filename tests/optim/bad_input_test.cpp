// What optimizers refuse, in which words, and that nothing has changed then.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "families.h"
#include "support/error.h"
#include "support/random.h"

namespace lowbit {
namespace {

using test::message_of;
using namespace optim;

class OptimizerBadInput : public test::RandomTest {
 protected:
  std::vector<at::Tensor> params_{normal({5000}).requires_grad_()};
  void refused(const std::string& part, const std::function<void()>& call) {
    const std::string message = message_of(call);
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
};

TEST_F(OptimizerBadInput, Options) {
  const auto adamw = [&](AdamWOptions o) { return [=, this] { AdamW8bit(params_, o); }; };
  refused("lowbit::optim::AdamW8bit: `lr` must be a number, at least 0, got -1.",
          adamw(AdamWOptions(-1.0)));
  refused("`lr` must be", adamw(AdamWOptions(NAN)));
  refused("`betas[0]` must be in [0, 1), got 1.", adamw(AdamWOptions().betas({1.0, 0.9})));
  refused("`betas[1]`", adamw(AdamWOptions().betas({0.9, -0.1})));
  refused("`eps`", adamw(AdamWOptions().eps(-1e-8)));
  refused("`weight_decay`", adamw(AdamWOptions().weight_decay(-0.1)));
  refused("`amsgrad` must be false", adamw(AdamWOptions().amsgrad(true)));
  refused("`optim_bits` must be 32 or 8, got 16", adamw(AdamWOptions().optim_bits(16)));
  refused("`min_8bit_size`", adamw(AdamWOptions().min_8bit_size(-1)));
  refused("`max_unorm`", adamw(AdamWOptions().max_unorm(-1)));
  refused("`gnorm_scale`", adamw(AdamWOptions().gnorm_scale(-1)));
  refused("`optim_bits` must be 32, which the name says",
          [&] { AdamW32bit(params_, AdamWOptions().optim_bits(8)); });
  refused("`momentum` must be in (0, 1), got 0.", [&] { SGD8bit(params_, SGDOptions(0.1)); });
  refused("`dampening` must be 0",
          [&] { SGD8bit(params_, SGDOptions(0.1).momentum(0.9).dampening(0.5)); });
  refused("`nesterov` must be false",
          [&] { SGD(params_, SGDOptions(0.1).momentum(0.9).nesterov(true)); });
  refused("`momentum`", [&] { LARS(params_, LARSOptions(0.1)); });
  refused("`nesterov`", [&] { LARS8bit(params_, LARSOptions(0.1).momentum(0.9).nesterov(true)); });
  refused("`alpha`", [&] { RMSprop8bit(params_, RMSpropOptions().alpha(0.0)); });
  refused("`momentum` must be 0", [&] { RMSprop(params_, RMSpropOptions().momentum(0.9)); });
  refused("`centered`", [&] { RMSprop(params_, RMSpropOptions().centered(true)); });
  refused("`lr_decay`", [&] { Adagrad(params_, AdagradOptions().lr_decay(0.1)); });
  refused("`initial_accumulator_value`",
          [&] { Adagrad8bit(params_, AdagradOptions().initial_accumulator_value(0.1)); });
  refused("`bias_correction` must be true",
          [&] { LAMB(params_, LAMBOptions().bias_correction(false)); });
  refused("`adam_w_mode`", [&] { LAMB(params_, LAMBOptions().adam_w_mode(false)); });
  refused("`amsgrad`", [&] { LAMB8bit(params_, LAMBOptions().amsgrad(true)); });
  refused("`betas[2]`", [&] { AdEMAMix(params_, AdEMAMixOptions().betas({0.9, 0.9, 1.5})); });
  refused("`t_alpha`", [&] { AdEMAMix8bit(params_, AdEMAMixOptions().t_alpha(0)); });
  refused("`error_if_nonfinite` must be false with capturable(true)",
          adamw(AdamWOptions().capturable(true).error_if_nonfinite(true)));
  refused("`t_alpha and t_beta3` must be none with capturable(true)",
          [&] { AdEMAMix(params_, AdEMAMixOptions().t_alpha(9).capturable(true)); });
  AdEMAMix captured(params_, AdEMAMixOptions().capturable(true));
  captured.overrides().set(params_[0], {.t_beta3 = 9});
  params_[0].mutable_grad() = normal({5000});
  refused("`t_alpha and t_beta3` must be none with capturable(true), got an override",
          [&] { captured.step(); });
  refused("`paged_budget` must be at least 0", adamw(AdamWOptions().paged_budget(-1)));
  refused("options of another class", [&] {
    AdamW8bit({torch::optim::OptimizerParamGroup(
        params_, std::make_unique<torch::optim::AdamWOptions>(1e-3))});
  });
  AdamW8bit good(params_);
  refused("`lr`", [&] {
    good.add_param_group(torch::optim::OptimizerParamGroup({normal({3}).requires_grad_()},
                                                           std::make_unique<AdamWOptions>(-1.0)));
  });
  EXPECT_EQ(good.param_groups().size(), 1u);
  refused("`optim_bits`", [&] { good.overrides().set(params_[0], {.optim_bits = 4}); });
  refused("`betas`",
          [&] { good.overrides().set(params_[0], {.betas = std::vector<double>{1.0}}); });
}

TEST_F(OptimizerBadInput, ANewRateIsCheckedAtTheStep) {
  AdamW8bit optimizer(params_);
  params_[0].mutable_grad() = normal({5000});
  const at::Tensor before = params_[0].detach().clone();
  optimizer.param_groups()[0].options().set_lr(-1.0);
  refused("`lr`", [&] { optimizer.step(); });
  EXPECT_TRUE(at::equal(params_[0], before));
}

/// A second, good parameter must not have moved when the first one is refused.
TEST_F(OptimizerBadInput, Gradients) {
  at::Tensor good = normal({5000}).requires_grad_();
  const auto check = [&](const std::string& part, at::Tensor bad, const at::Tensor& gradient,
                         bool error_if_nonfinite = false) {
    AdamW8bit optimizer({good, bad}, AdamWOptions().error_if_nonfinite(error_if_nonfinite));
    good.mutable_grad() = normal({5000});
    const at::Tensor before = good.detach().clone();
    bad.mutable_grad() = gradient;
    refused(part, [&] { optimizer.step(); });
    EXPECT_TRUE(at::equal(good, before)) << part;
    EXPECT_TRUE(optimizer.state().empty()) << part;
  };
  at::Tensor matrix = normal({10, 4}).requires_grad_();
  check("`gradients` must be dense, got Sparse", matrix,
        at::ones_like(matrix).detach().to_sparse());
  check("`parameters` must be float32, float16 or bfloat16, got float64",
        normal({8}, at::kDouble).requires_grad_(), normal({8}, at::kDouble));
  check("`parameters` must be float32, float16 or bfloat16",
        at::complex(normal({8}), normal({8})).requires_grad_(),
        at::complex(normal({8}), normal({8})));
  at::Tensor nan = normal({8});
  nan[3] = NAN;
  nan[5] = HUGE_VAL;
  check("`gradients` must be finite, got 2 elements that are NaN or infinite",
        normal({8}).requires_grad_(), nan, true);
}

TEST_F(OptimizerBadInput, AParameterThatChangedItsSize) {
  AdamW8bit optimizer(params_);
  params_[0].mutable_grad() = normal({5000});
  optimizer.step();
  params_[0].mutable_grad() = at::Tensor();
  params_[0].set_data(normal({6000}));
  params_[0].mutable_grad() = normal({6000});
  const at::Tensor before = params_[0].detach().clone();
  refused("as large as when their states were made", [&] { optimizer.step(); });
  EXPECT_TRUE(at::equal(params_[0], before));
  optimizer.param_groups()[0].params()[0] = at::Tensor();
  refused("defined tensors", [&] { optimizer.step(); });
}

}  // namespace
}  // namespace lowbit
