// capturable(true): the number of the step and the learning rates as values in device memory, so
// that a captured step counts on and follows its scheduler when the graph is replayed.
#include <ATen/ATen.h>

#include <unordered_map>

#include "ops/paged.h"
#include "optim/update.h"

namespace lowbit::optim {
namespace {

at::Tensor value_on(at::Device device, double value) {
  return at::full({1}, value, at::TensorOptions().device(device).dtype(at::kFloat));
}

}  // namespace

/// Gives every state its count, and counts.
void Optimizer::prepare_counts(std::vector<Update>& updates) {
  // Parameters that begin together share a count.
  std::vector<std::pair<int64_t, at::Tensor>> begun;
  for (Update& u : updates) {
    State& s = *u.state;
    if (s.step_value.defined() && s.step_value.device() == u.p.device()) continue;
    if (s.step_value.defined()) s.step = s.step_value.item<int64_t>();  // p has moved
    for (const auto& [step, tensor] : begun) {
      if (step == s.step && tensor.device() == u.p.device()) s.step_value = tensor;
    }
    if (!s.step_value.defined() || s.step_value.device() != u.p.device()) {
      s.step_value = value_on(u.p.device(), static_cast<double>(s.step));
      begun.emplace_back(s.step, s.step_value);
    }
  }
  // Those that step without the others of their count get one of their own.
  std::unordered_map<const void*, size_t> stepping, holding;
  std::unordered_map<const void*, at::Tensor> counts;
  for (const auto& [key, state] : state_) {
    const at::Tensor& count = static_cast<const State&>(*state).step_value;
    if (count.defined()) ++holding[count.unsafeGetTensorImpl()];
  }
  for (const Update& u : updates) ++stepping[u.state->step_value.unsafeGetTensorImpl()];
  for (Update& u : updates) {
    at::Tensor& shared = u.state->step_value;
    const void* key = shared.unsafeGetTensorImpl();
    at::Tensor& count = counts[key];
    if (!count.defined()) count = holding[key] == stepping[key] ? shared : shared.clone();
    shared = count;
  }
  for (auto& [key, count] : counts) count.add_(1);
}

void Optimizer::prepare_rates(std::vector<Update>& updates) {
  for (Update& u : updates) {
    if (u.own_rate) continue;
    const auto fits = [&](const Rate& rate) {
      return rate.group == u.group && rate.tensor.device() == u.p.device();
    };
    auto rate = std::find_if(rates_.begin(), rates_.end(), fits);
    if (rate == rates_.end()) {
      rate = rates_.insert(rate, {u.group, u.values.lr, value_on(u.p.device(), u.values.lr)});
    }
    u.rate_value = static_cast<const float*>(rate->tensor.const_data_ptr());
  }
}

void Optimizer::sync_learning_rates() {
  const at::NoGradGuard no_grad;
  for (Rate& rate : rates_) {
    const double lr = param_groups_[rate.group].options().get_lr();
    if (lr == rate.value || ops::is_capturing(rate.tensor.device())) continue;
    rate.tensor.fill_(lr);
    rate.value = lr;
  }
}

}  // namespace lowbit::optim
