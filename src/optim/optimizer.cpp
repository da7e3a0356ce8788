#include "lowbit/optim/optimizer.h"

#include <ATen/ATen.h>

#include "lowbit/functional.h"
#include "optim/overrides.h"
#include "optim/update.h"
#include "tensor/state_hint.h"

namespace lowbit::optim {

Optimizer::Optimizer(const Variant& variant,
                     const std::vector<torch::optim::OptimizerParamGroup>& groups,
                     std::unique_ptr<Options> defaults)
    : torch::optim::Optimizer(groups, std::move(defaults)), name_(variant.name), variant_(variant) {
  for (const auto& group : param_groups_) options_of(group);
}

void Optimizer::add_param_group(const torch::optim::OptimizerParamGroup& group) {
  if (group.has_options()) options_of(group);
  torch::optim::Optimizer::add_param_group(group);
}

const Options& Optimizer::options_of(const torch::optim::OptimizerParamGroup& group) const {
  const auto* options = dynamic_cast<const Options*>(&group.options());
  LOWBIT_CHECK(options != nullptr && typeid(*options) == typeid(*defaults_), name_, "options",
               "options of this optimizer's class in every group", "options of another class");
  options->check(name_.c_str());
  if (variant_.optim_bits != 0) {
    const int64_t bits = options->config().optim_bits;
    LOWBIT_CHECK(bits == 32 || bits == variant_.optim_bits, name_, "optim_bits",
                 c10::str(variant_.optim_bits, ", which the name says"), bits);
  }
  return *options;
}

Optimizer::Update Optimizer::update_of_group(size_t group) const {
  const Options& options = options_of(param_groups_[group]);
  Update update{
      .group = group, .p = {}, .g = {}, .values = options.values(), .config = options.config()};
  if (variant_.optim_bits != 0) update.config.optim_bits = variant_.optim_bits;
  update.config.is_paged = update.config.is_paged || variant_.is_paged;
  return update;
}

void Optimizer::apply_wishes(const at::Tensor& p, Update& update) const {
  if (tensor::requests_float32_states(p)) update.config.optim_bits = 32;
  if (const ParameterOverride* o = overrides_.find(p)) {
    apply(*o, update.values, update.config);
    update.own_rate = o->lr.has_value();
  }
}

Optimizer::Update Optimizer::update_of(size_t group, const at::Tensor& p) const {
  Update update = update_of_group(group);
  apply_wishes(p, update);
  update.p = p;
  return update;
}

at::Tensor Optimizer::map(bool is_signed, at::Device device) {
  for (const auto& [known, tensor] : maps_) {
    if (known == is_signed && tensor.device() == device) return tensor;
  }
  return maps_.emplace_back(is_signed, create_dynamic_map(is_signed).to(device)).second;
}

int64_t Optimizer::state_bytes() const {
  int64_t bytes = 0;
  for (const auto& [key, state] : state_) {
    const auto& s = static_cast<const State&>(*state);
    for (const at::Tensor* t : {&s.state1, &s.state2, &s.absmax1, &s.absmax2, &s.unorm_vec}) {
      if (t->defined()) bytes += static_cast<int64_t>(t->nbytes());
    }
  }
  return bytes;
}

}  // namespace lowbit::optim
