#include "lowbit/optim/pytorch_lars.h"

#include <ATen/ATen.h>
#include <torch/optim/serialize.h>
#include <torch/serialize/archive.h>
#include <torch/utils.h>

#include "ops/check.h"

namespace lowbit::optim {

using torch::serialize::InputArchive;
using torch::serialize::OutputArchive;

namespace {

constexpr const char* kOp = "lowbit::optim::PytorchLARS";

void check(const PytorchLARSOptions& o) {
  LOWBIT_CHECK(o.lr() >= 0, kOp, "lr", "at least 0", o.lr());
  LOWBIT_CHECK(o.momentum() >= 0, kOp, "momentum", "at least 0", o.momentum());
  LOWBIT_CHECK(o.weight_decay() >= 0, kOp, "weight_decay", "at least 0", o.weight_decay());
  LOWBIT_CHECK(o.max_unorm() >= 0, kOp, "max_unorm", "at least 0", o.max_unorm());
  LOWBIT_CHECK(!o.nesterov() || (o.momentum() > 0 && o.dampening() == 0), kOp, "nesterov",
               "false without momentum or with dampening", "true");
}

}  // namespace

void PytorchLARSOptions::serialize(OutputArchive& archive) const {
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(lr);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(momentum);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(dampening);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(weight_decay);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(nesterov);
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(max_unorm);
}

void PytorchLARSOptions::serialize(InputArchive& archive) {
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(double, lr);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(double, momentum);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(double, dampening);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(double, weight_decay);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(bool, nesterov);
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(double, max_unorm);
}

void PytorchLARSParamState::serialize(OutputArchive& archive) const {
  _TORCH_OPTIM_SERIALIZE_TORCH_ARG(momentum_buffer);
}

void PytorchLARSParamState::serialize(InputArchive& archive) {
  _TORCH_OPTIM_DESERIALIZE_TORCH_ARG(torch::Tensor, momentum_buffer);
}

PytorchLARS::PytorchLARS(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                         PytorchLARSOptions defaults)
    : Optimizer(groups, std::make_unique<PytorchLARSOptions>(defaults)) {
  check(defaults);
}

PytorchLARS::PytorchLARS(std::vector<torch::Tensor> params, PytorchLARSOptions defaults)
    : PytorchLARS({torch::optim::OptimizerParamGroup(std::move(params))}, std::move(defaults)) {}

torch::Tensor PytorchLARS::step(LossClosure closure) {
  torch::Tensor loss;
  if (closure != nullptr) {
    const at::AutoGradMode enable_grad(true);
    loss = closure();
  }
  const torch::NoGradGuard no_grad;
  for (auto& group : param_groups_) {
    const auto& o = static_cast<const PytorchLARSOptions&>(group.options());
    check(o);
    for (at::Tensor& p : group.params()) {
      if (!p.grad().defined()) continue;
      at::Tensor update = o.weight_decay() != 0 ? p.grad().add(p, o.weight_decay()) : p.grad();
      if (o.momentum() != 0) {
        auto& state = state_[p.unsafeGetTensorImpl()];
        if (state == nullptr) {
          auto made = std::make_unique<PytorchLARSParamState>();
          made->momentum_buffer(update.clone());
          state = std::move(made);
        } else {
          static_cast<PytorchLARSParamState&>(*state)
              .momentum_buffer()
              .mul_(o.momentum())
              .add_(update, 1 - o.dampening());
        }
        const at::Tensor& buffer = static_cast<PytorchLARSParamState&>(*state).momentum_buffer();
        update = o.nesterov() ? update.add(buffer, o.momentum()) : buffer;
      }
      at::Tensor factor = at::ones({}, p.options());
      if (o.max_unorm() > 0) {
        const at::Tensor bound = p.norm() * o.max_unorm(), norm = update.norm();
        factor = at::where(norm > bound, bound / norm, factor);
      }
      p.sub_(update * factor * o.lr());
    }
  }
  return loss;
}

void PytorchLARS::save(OutputArchive& archive) const {
  torch::optim::serialize<PytorchLARSParamState, PytorchLARSOptions>(archive, *this);
}

void PytorchLARS::load(InputArchive& archive) {
  torch::optim::serialize<PytorchLARSParamState, PytorchLARSOptions>(archive, *this);
}

}  // namespace lowbit::optim
