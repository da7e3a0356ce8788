// LARS in plain tensor operations: to compare with, on any dtype and device.
#pragma once

#include <torch/arg.h>
#include <torch/optim/optimizer.h>

#include <memory>
#include <vector>

namespace lowbit::optim {

struct PytorchLARSOptions : public torch::optim::OptimizerCloneableOptions<PytorchLARSOptions> {
  PytorchLARSOptions(double lr = 0.01) : lr_(lr) {}
  TORCH_ARG(double, lr);
  TORCH_ARG(double, momentum) = 0.0;
  TORCH_ARG(double, dampening) = 0.0;
  TORCH_ARG(double, weight_decay) = 0.0;
  TORCH_ARG(bool, nesterov) = false;
  TORCH_ARG(double, max_unorm) = 0.02;

 public:
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  double get_lr() const override { return lr_; }
  void set_lr(const double lr) override { lr_ = lr; }
};

struct PytorchLARSParamState
    : public torch::optim::OptimizerCloneableParamState<PytorchLARSParamState> {
  TORCH_ARG(torch::Tensor, momentum_buffer);

 public:
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
};

/// SGD with momentum, dampening, Nesterov and coupled weight decay, whose update u is scaled by
/// min(1, max_unorm |p| / |u|). https://arxiv.org/abs/1708.03888
class PytorchLARS : public torch::optim::Optimizer {
 public:
  explicit PytorchLARS(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                       PytorchLARSOptions defaults = {});
  explicit PytorchLARS(std::vector<torch::Tensor> params, PytorchLARSOptions defaults = {});

  torch::Tensor step(LossClosure closure = nullptr) override;
  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;
};

}  // namespace lowbit::optim
