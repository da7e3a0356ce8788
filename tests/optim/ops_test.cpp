// The optimizer ops through the dispatcher: they are the classes, and say what does not fit.
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "lowbit/functional.h"
#include "lowbit/optim/optimizers.h"
#include "support/error.h"
#include "support/random.h"

namespace lowbit {
namespace {

using test::message_of;

class OptimizerOps : public test::RandomTest {
 protected:
  static void call(const std::string& op, std::vector<c10::IValue> stack) {
    const at::NoGradGuard no_grad;
    c10::Dispatcher::singleton().findSchemaOrThrow(("lowbit::" + op).c_str(), "").callBoxed(stack);
  }
  at::Tensor p_ = normal({5000}), g_ = normal({5000});
  const c10::IValue none_;
};

TEST_F(OptimizerOps, Update32bit) {
  at::Tensor q = p_.clone().requires_grad_();
  at::Tensor state1 = test::zeros({5000}), state2 = test::zeros({5000}), unorm = test::zeros({1});
  optim::LAMB32bit lamb({q}, optim::LAMBOptions(0.1).max_unorm(0.01).weight_decay(0.1));
  for (int64_t step = 1; step <= 2; ++step) {
    const double norm = p_.norm().item<double>();
    call("optimizer_update_32bit", {"lamb", g_, p_, state1, state2, unorm, 0.01, norm, 0.9, 0.999,
                                    0.0, 0.0, 1e-8, 0.1, step, 0.1, 1.0, false});
    q.mutable_grad() = g_.clone();
    lamb.step();
    EXPECT_TRUE(at::allclose(p_, q, 1e-6, 1e-7));
  }
  EXPECT_GT(unorm.item<float>(), 0.0f);
  EXPECT_TRUE(at::equal(state1, lamb.state_dict().state.at(0).tensors.at("state1")));
}

TEST_F(OptimizerOps, Update8bitBlockwise) {
  at::Tensor q = p_.clone().requires_grad_();
  at::Tensor state1 = test::zeros({5000}, at::kByte), absmax1 = test::zeros({20});
  const at::Tensor map = create_dynamic_map().to(test::device());
  optim::Lion8bit lion({q}, optim::LionOptions(0.1));
  const int64_t version = p_._version();
  for (int64_t step = 1; step <= 3; ++step) {
    call("optimizer_update_8bit_blockwise",
         {"lion", g_, p_, state1, none_, 0.9, 0.99, 0.0, 0.0, 0.0, step, 0.1, map, none_, absmax1,
          none_, 0.0, 1.0, false});
    q.mutable_grad() = g_.clone();
    lion.step();
    EXPECT_TRUE(at::equal(p_, q));
  }
  EXPECT_GT(p_._version(), version);  // autograd notices
  EXPECT_TRUE(at::equal(absmax1, lion.state_dict().state.at(0).tensors.at("absmax1")));
}

TEST_F(OptimizerOps, MultiTensorSteps) {
  // optimizer_step_multi_tensor_8bit and optimizer_step_multi_tensor_32bit, with lr and step as
  // values.
  for (const bool blockwise : {true, false}) {
    std::vector<at::Tensor> p{normal({5000}), normal({30, 200})},
        g{normal({5000}), normal({30, 200})};
    std::vector<at::Tensor> q, state1, state2, absmax1, absmax2;
    const auto dtype = blockwise ? at::kByte : at::kFloat;
    for (size_t i = 0; i < p.size(); ++i) {
      q.push_back(p[i].clone().requires_grad_());
      q[i].mutable_grad() = g[i].clone();
      state1.push_back(test::zeros(p[i].sizes(), dtype));
      state2.push_back(test::zeros(p[i].sizes(), dtype));
      const int64_t blocks = (p[i].numel() + 255) / 256;
      absmax1.push_back(test::zeros({blocks}));
      absmax2.push_back(test::zeros({blocks}));
    }
    optim::AdamW adamw(q, optim::AdamWOptions(0.01).optim_bits(blockwise ? 8 : 32));
    const c10::List<at::Tensor> empty;
    const at::Tensor lr = test::full({1}, 0.01), step = test::ones({1});
    std::vector<c10::IValue> stack{"adam", g, p, state1, state2};
    if (blockwise) {
      stack.insert(stack.end(), {create_dynamic_map(true).to(test::device()),
                                 create_dynamic_map(false).to(test::device()), absmax1, absmax2});
    }
    stack.insert(stack.end(), {empty, 0.0, 0.9, 0.999, 0.0, 0.0, 1e-8, 0.01, int64_t{0}, 100.0, 1.0,
                               false, lr, step, none_});
    const std::string op =
        blockwise ? "optimizer_step_multi_tensor_8bit" : "optimizer_step_multi_tensor_32bit";
    for (int i = 0; i < 2; ++i) {
      call(op, stack);
      step.add_(1);
      adamw.step();
    }
    // The device's powers may differ from the host's in the last bit.
    for (size_t i = 0; i < p.size(); ++i) {
      EXPECT_TRUE(test::on_cuda() ? at::allclose(p[i], q[i], 1e-6, 1e-8) : at::equal(p[i], q[i]))
          << op << " " << i;
    }
  }
}

TEST_F(OptimizerOps, Errors) {
  const at::Tensor state = test::zeros({5000}), map = create_dynamic_map().to(test::device());
  const auto error = [&](std::vector<c10::IValue> stack) {
    return message_of([&] { call("optimizer_update_32bit", std::move(stack)); });
  };
  const auto stack = [&](const std::string& name, const at::Tensor& g, const at::Tensor& p,
                         const c10::IValue& state1, int64_t step = 1, double max_unorm = 0) {
    return std::vector<c10::IValue>{name, g,   p,   state1, none_, none_, max_unorm, 0.0, 0.9,
                                    0.99, 0.0, 0.0, 1e-8,   0.0,   step,  0.1,       1.0, false};
  };
  const at::Tensor before = p_.clone();
  EXPECT_EQ(error(stack("sgdm", g_, p_, state)).substr(0, 64),
            "lowbit::optimizer_update_32bit: `optimizer_name` must be \"adam\",");
  EXPECT_EQ(error(stack("lion", g_.to(at::kHalf), p_, state)),
            "lowbit::optimizer_update_32bit: `g` must be float32, got float16.");
  EXPECT_EQ(error(stack("lion", g_.slice(0, 0, 10), p_, state)),
            "lowbit::optimizer_update_32bit: `g` must be of p's shape [5000], got shape [10].");
  EXPECT_EQ(error(stack("lion", g_, p_, test::zeros({10}))),
            "lowbit::optimizer_update_32bit: `state1` must be 5000 elements long, got shape [10].");
  EXPECT_EQ(error(stack("adam", g_, p_, state)),
            "lowbit::optimizer_update_32bit: `state2` must be a tensor, got none.");
  EXPECT_EQ(error(stack("lion", g_, p_, state, 0)),
            "lowbit::optimizer_update_32bit: `step` must be at least 1, got 0.");
  EXPECT_EQ(error(stack("lion", g_, p_, state, 1, 1.0)),
            "lowbit::optimizer_update_32bit: `max_unorm` must be 0 for this optimizer, got 1.");
  EXPECT_TRUE(at::equal(p_, before));
}

}  // namespace
}  // namespace lowbit
