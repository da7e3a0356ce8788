// Saving, loading, resuming.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "families.h"
#include "lowbit/error.h"
#include "lowbit/io/safetensors.h"
#include "support/error.h"
#include "support/golden.h"
#include "support/random.h"

namespace lowbit {
namespace {

using optim::Optimizer;
using optim::OptimizerStateDict;

class OptimizerState : public test::RandomTest {
 protected:
  OptimizerState() { std::filesystem::create_directories(folder_); }
  ~OptimizerState() override { std::filesystem::remove_all(folder_); }

  std::vector<at::Tensor> parameters() {
    return {normal({70, 80}).requires_grad_(), normal({4500}, at::kBFloat16).requires_grad_(),
            normal({30}, at::kHalf).requires_grad_()};
  }
  static std::vector<at::Tensor> copies(const std::vector<at::Tensor>& params) {
    std::vector<at::Tensor> result;
    for (const at::Tensor& p : params) result.push_back(p.detach().clone().requires_grad_());
    return result;
  }
  void gradients(std::vector<at::Tensor>& a, std::vector<at::Tensor>* b = nullptr) {
    for (size_t i = 0; i < a.size(); ++i) {
      a[i].mutable_grad() = normal(a[i].sizes(), a[i].scalar_type());
      if (b != nullptr) (*b)[i].mutable_grad() = a[i].grad().clone();
    }
  }

  const std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("lowbit_optim_" + std::to_string(::getpid()));
  const std::string file_ = (folder_ / "state.safetensors").string();
};

/// k steps, save, load, k steps are 2k steps, to the bit.
TEST_F(OptimizerState, ResumingIsExact) {
  const std::vector<std::function<void(Optimizer&, Optimizer&)>> ways = {
      [](Optimizer& from, Optimizer& to) { to.load_state_dict(from.state_dict()); },
      [](Optimizer& from, Optimizer& to) {
        std::stringstream stream;
        torch::save(from, stream);
        torch::load(to, stream);
      },
      [&](Optimizer& from, Optimizer& to) {
        optim::save_state_dict(from.state_dict(), file_);
        to.load_state_dict(optim::read_state_dict(file_));
      }};
  for (const test::Family& family : test::families()) {
    for (size_t way = 0; way < ways.size(); ++way) {
      std::vector<at::Tensor> params = parameters();
      const auto straight = family.make(params);
      for (int step = 0; step < 3; ++step) gradients(params), straight->step();
      std::vector<at::Tensor> others = copies(params);
      const auto resumed = family.make(others);
      ways[way](*straight, *resumed);
      for (int step = 0; step < 3; ++step) {
        gradients(params, &others);
        straight->step();
        resumed->step();
      }
      for (size_t i = 0; i < params.size(); ++i) {
        EXPECT_TRUE(test::same_bytes(params[i].detach().cpu(), others[i].detach().cpu()))
            << family.name << " parameter " << i << " way " << way;
      }
      const auto a = straight->state_dict(), b = resumed->state_dict();
      for (const auto& [number, state] : a.state) {
        EXPECT_EQ(state.step, 6);
        EXPECT_EQ(b.state.at(number).step, 6);
        for (const auto& [name, tensor] : state.tensors) {
          EXPECT_TRUE(test::same_bytes(tensor.cpu(), b.state.at(number).tensors.at(name).cpu()))
              << family.name << " " << name;
        }
      }
    }
  }
}

TEST_F(OptimizerState, NamesShapesAndDtypesOfTheEcosystem) {
  std::vector<at::Tensor> params = {normal({70, 80}).requires_grad_(),
                                    normal({30}).requires_grad_()};
  optim::AdEMAMix8bit optimizer(params, optim::AdEMAMixOptions(2e-3).t_alpha(7));
  gradients(params);
  optimizer.step();
  optim::save_state_dict(optimizer.state_dict(), file_);
  const auto file = io::SafetensorsFile::open(file_);
  const auto expect = [&](const std::string& name, io::DType dtype, std::vector<int64_t> shape) {
    const io::TensorView view = file.tensor(name);
    EXPECT_EQ(view.dtype, dtype) << name;
    EXPECT_EQ(view.shape, shape) << name;
  };
  const std::string first = "state.0.__bnb_optimizer_quant_state__.";
  expect("state.0.step", io::DType::kI64, {});
  expect(first + "state1", io::DType::kU8, {2, 70, 80});
  expect(first + "state2", io::DType::kU8, {70, 80});
  expect(first + "absmax1", io::DType::kF32, {2, 22});
  expect(first + "absmax2", io::DType::kF32, {22});
  expect(first + "qmap1", io::DType::kF32, {256});
  expect(first + "qmap2", io::DType::kF32, {256});
  expect("state.1.__bnb_optimizer_quant_state__.state1", io::DType::kF32, {2, 30});
  EXPECT_EQ(file.names().size(), 2u + 6u + 2u);
  EXPECT_EQ(file.metadata().at("param_groups"),
            R"([{"alpha":5.0,"betas":[0.9,0.999,0.9999],"eps":1e-08,"lr":0.002,"params":[0,1],)"
            R"("t_alpha":7.0,"t_beta3":null,"weight_decay":0.01}])");
}

/// Options are part of the state, as in torch.
TEST_F(OptimizerState, OptionsAreLoaded) {
  std::vector<at::Tensor> params = parameters();
  optim::AdamW8bit from(params, optim::AdamWOptions(0.5).betas({0.8, 0.9}).weight_decay(0.25));
  optim::AdamW8bit to(params);
  to.load_state_dict(from.state_dict());
  const auto& options = static_cast<const optim::AdamWOptions&>(to.param_groups()[0].options());
  EXPECT_EQ(options.lr(), 0.5);
  EXPECT_EQ(options.betas(), (optim::Betas{0.8, 0.9}));
  EXPECT_EQ(options.weight_decay(), 0.25);
}

TEST_F(OptimizerState, WhatDoesNotFitChangesNothing) {
  std::vector<at::Tensor> params = parameters();
  optim::AdamW8bit optimizer(params);
  gradients(params);
  optimizer.step();
  const OptimizerStateDict good = optimizer.state_dict();
  const auto check = [&](const std::string& part,
                         const std::function<void(OptimizerStateDict&)>& spoil) {
    OptimizerStateDict bad = good;
    spoil(bad);
    const std::string message = test::message_of([&] { optimizer.load_state_dict(bad); });
    EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_EQ(optimizer.state_dict().state.at(0).step, 1);
    EXPECT_EQ(optimizer.param_groups()[0].options().get_lr(), 1e-3);
  };
  check("of the algorithm \"adam\", got \"lion\"", [](auto& d) { d.algorithm = "lion"; });
  check("of 1 parameter groups, got 2 groups",
        [](auto& d) { d.param_groups.push_back(d.param_groups[0]); });
  check("of 3 parameters in group 0, got 2", [](auto& d) { d.param_groups[0].params.pop_back(); });
  check("`lr` must be", [](auto& d) { d.param_groups[0].options["lr"] = {-1.0}; });
  check("`betas` must be enough numbers",
        [](auto& d) { d.param_groups[0].options["betas"] = {0.9}; });
  check("`state1` must be",
        [](auto& d) { d.state[0].tensors["state1"] = test::zeros({3}, at::kByte); });
  check("`state1` must be", [](auto& d) { d.state[0].tensors.erase("state1"); });
  check("`state1` must be float32", [](auto& d) {
    d.state[0].tensors["state1"] = test::zeros({70, 80}, at::kHalf);
  });
  check("`state2` must be a tensor", [](auto& d) { d.state[0].tensors.erase("state2"); });
  check("`absmax1` must be", [](auto& d) { d.state[0].tensors["absmax1"] = test::zeros({21}); });
  check("`qmap1` must be", [](auto& d) { d.state[0].tensors.erase("qmap1"); });
  check("`step` must be", [](auto& d) { d.state[0].step = -1; });
  optim::Lion8bit lion(params);
  OptimizerStateDict two_moments = good;
  two_moments.algorithm = "";
  EXPECT_NE(
      test::message_of([&] { lion.load_state_dict(two_moments); }).find("`state2` must be absent"),
      std::string::npos);
  std::stringstream stream;
  torch::save(lion, stream);
  EXPECT_NE(test::message_of([&] { torch::load(optimizer, stream); }).find("lion"),
            std::string::npos);
}

/// Run by python/optimizer_state_test.py on a pickle that the script converted.
TEST_F(OptimizerState, AConvertedFileContinues) {
  const char* path = std::getenv("LOWBIT_OPTIMIZER_STATE");
  const OptimizerStateDict dict = path != nullptr ? optim::read_state_dict(path) : [&] {
    std::vector<at::Tensor> params = {normal({70, 80}).requires_grad_(),
                                      normal({9}).requires_grad_(), normal({30}).requires_grad_()};
    optim::AdamW8bit writer(params, optim::AdamWOptions(2e-3));
    for (int step = 0; step < 3; ++step) {
      gradients(params);
      params[1].mutable_grad() = at::Tensor();
      if (step > 0) params[2].mutable_grad() = at::Tensor();
      writer.step();
    }
    return writer.state_dict();
  }();
  std::vector<at::Tensor> params = {normal({70, 80}).requires_grad_(), normal({9}).requires_grad_(),
                                    normal({30}).requires_grad_()};
  optim::AdamW8bit optimizer(params);
  optimizer.load_state_dict(dict);
  EXPECT_EQ(optimizer.param_groups()[0].options().get_lr(), 2e-3);
  const auto state = optimizer.state_dict().state;
  EXPECT_EQ(state.at(0).step, 3);
  EXPECT_EQ(state.at(2).step, 1);
  EXPECT_EQ(state.count(1), 0u);
  for (const auto& [name, tensor] : dict.state.at(0).tensors) {
    EXPECT_TRUE(test::same_bytes(state.at(0).tensors.at(name), tensor)) << name;
  }
  gradients(params);
  optimizer.step();
  EXPECT_EQ(optimizer.state_dict().state.at(0).step, 4);
}

TEST_F(OptimizerState, FilesThatHoldSomethingElse) {
  const std::vector<float> x(4);
  const io::TensorView view{
      io::DType::kF32, {4}, reinterpret_cast<const std::byte*>(x.data()), 16, nullptr};
  const auto refused = [&](const std::string& name, const io::SafetensorsMetadata& metadata) {
    io::write_safetensors(file_, {{name, view}}, metadata);
    EXPECT_THROW(optim::read_state_dict(file_), FormatError) << name;
  };
  refused("weight", {{"param_groups", "[]"}});
  refused("state.x.state1", {{"param_groups", "[]"}});
  refused("state.0.step", {{"param_groups", "[]"}});
  refused("state.0.state1", {});
  refused("state.0.state1", {{"param_groups", "{"}});
  refused("state.0.state1", {{"param_groups", "[{}]"}});
  refused("state.0.state1", {{"param_groups", R"([{"params":["a"]}])"}});
  refused("state.0.state1", {{"param_groups", R"([{"params":[0],"lr":"fast"}])"}});
}

}  // namespace
}  // namespace lowbit
