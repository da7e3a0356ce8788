// A step: what has a gradient is collected and checked, then updated with one call for each device,
// dtype and kind of state.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "ops/paged.h"
#include "optim/paging.h"
#include "optim/update.h"

namespace lowbit::optim {
namespace {

using kernels::OptimizerHyper;
using kernels::OptimizerKind;

/// Managed states are fetched and updated so many bytes at a time: what is fetched must not push
/// out what was fetched before it and is not yet used.
constexpr int64_t kPagedBytes = int64_t{256} << 20;

/// float32 hyper-parameters of step `step`; AdEMAMix's schedules in double.
OptimizerHyper hyper_of(const StepValues& v, const StepConfig& config, int64_t step) {
  double alpha = v.alpha, beta3 = v.beta3;
  const auto t = static_cast<double>(step);
  if (v.t_alpha) alpha = std::min(t * v.alpha / static_cast<double>(*v.t_alpha), v.alpha);
  if (v.t_beta3) {
    const double s = t / static_cast<double>(*v.t_beta3);
    const double b1 = std::log(v.beta1), b3 = std::log(v.beta3);
    beta3 = std::min(std::exp(b1 * b3 / ((1 - s) * b3 + s * b1)), v.beta3);
    if (s >= 1) beta3 = v.beta3;
  }
  return {.lr = static_cast<float>(v.lr),
          .beta1 = static_cast<float>(v.beta1),
          .beta2 = static_cast<float>(v.beta2),
          .beta3 = static_cast<float>(beta3),
          .alpha = static_cast<float>(alpha),
          .eps = static_cast<float>(v.eps),
          .weight_decay = static_cast<float>(v.weight_decay),
          .step = step,
          .gnorm_scale = static_cast<float>(config.gnorm_scale),
          .max_unorm = static_cast<float>(config.max_unorm),
          .skip_zeros = config.skip_zeros,
          .stochastic_rounding = config.stochastic_rounding,
          .rounding_seed = static_cast<uint32_t>(config.rounding_seed)};
}

bool same(const OptimizerHyper& a, const OptimizerHyper& b) {
  return a.lr == b.lr && a.beta1 == b.beta1 && a.beta2 == b.beta2 && a.beta3 == b.beta3 &&
         a.alpha == b.alpha && a.eps == b.eps && a.weight_decay == b.weight_decay &&
         a.step == b.step && a.gnorm_scale == b.gnorm_scale && a.max_unorm == b.max_unorm &&
         a.skip_zeros == b.skip_zeros && a.stochastic_rounding == b.stochastic_rounding &&
         a.rounding_seed == b.rounding_seed && a.lr_value == b.lr_value &&
         a.step_value == b.step_value && a.gnorm_scale_value == b.gnorm_scale_value;
}

/// Gradients of one device and dtype, for which torch has fused kernels.
template <class Updates>
std::vector<std::vector<at::Tensor>> gradients_by_kind(const Updates& updates) {
  std::vector<std::vector<at::Tensor>> lists;
  for (const auto& u : updates) {
    const auto fits = [&](const std::vector<at::Tensor>& list) {
      return list[0].device() == u.g.device() && list[0].scalar_type() == u.g.scalar_type();
    };
    auto list = std::find_if(lists.begin(), lists.end(), fits);
    if (list == lists.end()) list = lists.emplace(list);
    list->push_back(u.g);
  }
  return lists;
}

/// Throws when a gradient is not finite. The host reads one number of each device.
template <class Updates>
void check_finite(const std::string& op, const Updates& updates) {
  std::map<std::string, at::Tensor> counts;
  for (const auto& u : updates) {
    const at::Tensor bad = at::isfinite(u.g).logical_not_().sum();
    at::Tensor& count = counts[u.g.device().str()];
    count = count.defined() ? count.add(bad) : bad;
  }
  int64_t bad = 0;
  for (const auto& [device, count] : counts) bad += count.template item<int64_t>();
  LOWBIT_CHECK(bad == 0, op, "gradients", "finite",
               c10::str(bad, " elements that are NaN or infinite"),
               "error_if_nonfinite(false) lets them through.");
}

/// Clipping of the norm of all gradients together as one factor, min(1, max_norm / norm), which the
/// kernels read: no gradient is written, and the host reads nothing.
template <class Updates>
at::Tensor clip_factor(const Updates& updates, double max_norm) {
  std::vector<at::Tensor> norms;
  const at::Device device = updates[0].g.device();
  for (const auto& list : gradients_by_kind(updates)) {
    for (const at::Tensor& norm : at::_foreach_norm(list, 2, at::kFloat)) {
      norms.push_back(norm.to(device, /*non_blocking=*/true));
    }
  }
  const at::Tensor norm = at::linalg_vector_norm(at::stack(norms), 2);
  return (max_norm / (norm + 1e-6)).clamp_max(1.0).reshape({1});
}

}  // namespace

std::vector<Optimizer::Update> Optimizer::collect() const {
  const char* op = name_.c_str();
  const OptimizerKind kind = ops::parse_optimizer(op, variant_.algorithm).kind;
  const bool capturable = guards().capturable;
  std::vector<Update> updates;
  size_t count = 0;
  for (const auto& group : param_groups_) count += group.params().size();
  updates.reserve(count);
  // Of the last device asked: the answer costs more than all else here.
  std::pair<at::Device, bool> capturing{at::kCPU, false};
  for (size_t group = 0; group < param_groups_.size(); ++group) {
    const Update of_group = update_of_group(group);
    for (const at::Tensor& p : param_groups_[group].params()) {
      LOWBIT_CHECK(p.defined(), op, "parameters", "defined tensors", "an undefined one");
      const at::Tensor& grad = p.grad();
      if (!grad.defined()) continue;
      ops::check_float(op, "parameters", p);
      LOWBIT_CHECK(grad.layout() == at::kStrided, op, "gradients", "dense", grad.layout(),
                   "Sparse gradients are not supported.");
      ops::check_float(op, "gradients", grad);
      ops::check_device(op, "gradients", grad, p.device());
      LOWBIT_CHECK(grad.sizes() == p.sizes(), op, "gradients",
                   c10::str("of the parameter's shape ", p.sizes()),
                   c10::str("shape ", grad.sizes()));
      Update& update = updates.emplace_back(of_group);
      apply_wishes(p, update);
      update.p = p;
      update.g = grad.scalar_type() == p.scalar_type() ? grad : grad.to(p.scalar_type());
      LOWBIT_CHECK(update.config.max_unorm == 0 || has_update_limit(kind), op, "max_unorm",
                   "0 for this optimizer", update.config.max_unorm);
      LOWBIT_CHECK(!capturable || !(update.values.t_alpha || update.values.t_beta3), op,
                   "t_alpha and t_beta3", "none with capturable(true)", "an override");
      if (const auto found = state_.find(p.unsafeGetTensorImpl()); found != state_.end()) {
        update.state = static_cast<State*>(found->second.get());
        const int64_t size = update.state->state1.numel() / state1_rows(kind);
        LOWBIT_CHECK(size == p.numel(), op, "parameters", "as large as when their states were made",
                     c10::str("shape ", p.sizes(), " with a state of ", size, " elements"));
      }
      if (capturing.first != p.device()) {
        capturing = {p.device(), ops::is_capturing(p.device())};
      }
      if (capturing.second) {
        LOWBIT_CHECK(guards().capturable, op, "capturable", "true while a CUDA graph is captured",
                     "false");
        LOWBIT_CHECK(update.state != nullptr && update.state->step_value.defined(), op, "step()",
                     "called once before it is captured", "a parameter without state");
      }
    }
  }
  return updates;
}

void Optimizer::prepare_states(std::vector<Update>& updates) {
  const OptimizerKind kind = ops::parse_optimizer(name_.c_str(), variant_.algorithm).kind;
  const bool two_rows = kernels::state1_rows(kind) == 2, second = has_second_state(kind);
  for (Update& u : updates) {
    const at::Device device = u.p.device();
    const auto floats = at::TensorOptions().device(device).dtype(at::kFloat);
    if (u.state == nullptr) {
      auto made = std::make_unique<State>();
      std::vector<int64_t> shape = u.p.sizes().vec();
      if (two_rows) shape.insert(shape.begin(), 2);
      const bool blockwise = u.config.optim_bits == 8 && u.p.numel() >= u.config.min_8bit_size;
      const at::ScalarType dtype = blockwise ? at::kByte : at::kFloat;
      if (is_paged(u.config, u.p)) {
        const int64_t bytes = u.p.numel() * (state1_rows(kind) + (second ? 1 : 0)) *
                              static_cast<int64_t>(c10::elementSize(dtype));
        made->paged = choose_paged(u.config, device, bytes, paged_bytes().managed);
      }
      const auto zeros = [&](at::IntArrayRef sizes) {
        return made->paged ? paged_zeros(name_.c_str(), sizes, dtype, device, *made->paged)
                           : at::zeros(sizes, floats.dtype(dtype));
      };
      made->state1 = zeros(shape);
      if (second) made->state2 = zeros(u.p.sizes());
      if (blockwise) {
        const int64_t blocks = kernels::ceil_div(u.p.numel(), kernels::kOptimizerBlocksize);
        made->qmap1 = map(!u.config.unsigned_state, device);
        made->absmax1 = two_rows ? at::zeros({2, blocks}, floats) : at::zeros({blocks}, floats);
        if (second) made->qmap2 = map(false, device), made->absmax2 = at::zeros({blocks}, floats);
      }
      u.state = made.get();
      state_[u.p.unsafeGetTensorImpl()] = std::move(made);
    }
    if (u.config.max_unorm > 0 && !u.state->unorm_vec.defined()) {
      u.state->unorm_vec = at::zeros({1}, floats);
    }
    // The parameter may have moved since.
    for_each_tensor(*u.state, [&](const char*, at::Tensor& tensor) {
      if (!tensor.defined() || tensor.device() == device) return;
      tensor = tensor.to(device);
      u.state->paged.reset();
    });
  }
}

std::vector<Optimizer::Call> Optimizer::calls_of(const std::vector<Update>& updates) const {
  const OptimizerKind kind = ops::parse_optimizer(name_.c_str(), variant_.algorithm).kind;
  std::vector<Call> calls;
  for (const Update& u : updates) {
    const State& s = *u.state;
    const bool managed = s.paged == PagedMemory::kManaged;
    const auto fits = [&](const Call& known) {
      const ops::OptimizerCall& call = known.call;
      const at::Tensor& p = *call.tensors[0].p;
      return p.device() == u.p.device() && p.scalar_type() == u.p.scalar_type() &&
             call.blockwise == s.blockwise() && call.map1.is_same(s.qmap1) &&
             call.map2.is_same(s.qmap2) && managed == !known.prefetched.empty() &&
             known.paged_bytes < kPagedBytes;
    };
    auto found = std::find_if(calls.begin(), calls.end(), fits);
    if (found == calls.end()) {
      found = calls.insert(found, {.call = {.kind = kind, .blockwise = s.blockwise()}});
      found->call.map1 = s.qmap1;
      found->call.map2 = s.qmap2;
      found->call.tensors.reserve(updates.size());
    }
    for (const at::Tensor* state : {&s.state1, &s.state2}) {
      if (!managed || !state->defined()) continue;
      found->prefetched.push_back(*state);
      found->paged_bytes += static_cast<int64_t>(state->nbytes());
    }
    OptimizerHyper hyper = hyper_of(u.values, u.config, s.step + 1);
    if (s.step_value.defined()) {
      hyper.step = 0;
      hyper.step_value = static_cast<const float*>(s.step_value.const_data_ptr());
    }
    if (u.rate_value != nullptr) hyper.lr_value = u.rate_value, hyper.lr = 0;
    hyper.gnorm_scale_value = u.clip_value;
    std::vector<OptimizerHyper>& hypers = found->call.hypers;
    auto known = std::find_if(hypers.begin(), hypers.end(),
                              [&](const OptimizerHyper& h) { return same(h, hyper); });
    if (known == hypers.end()) known = hypers.insert(known, hyper);
    found->call.tensors.push_back({.p = &u.p,
                                   .g = &u.g,
                                   .state1 = &s.state1,
                                   .state2 = &s.state2,
                                   .absmax1 = &s.absmax1,
                                   .absmax2 = &s.absmax2,
                                   .unorm = u.config.max_unorm > 0 ? &s.unorm_vec : nullptr,
                                   .hyper = static_cast<int32_t>(known - hypers.begin())});
  }
  return calls;
}

torch::Tensor Optimizer::step(LossClosure closure) {
  torch::Tensor loss;
  if (closure != nullptr) {
    const at::AutoGradMode enable_grad(true);
    loss = closure();
  }
  const at::NoGradGuard no_grad;
  std::vector<Update> updates = collect();
  if (updates.empty()) return loss;
  if (guards().error_if_nonfinite) check_finite(name_, updates);

  std::map<std::string, at::Tensor> factors;  // by device
  if (guards().max_grad_norm > 0) {
    const at::Tensor factor = clip_factor(updates, guards().max_grad_norm);
    for (Update& u : updates) {
      at::Tensor& here = factors[u.p.device().str()];
      if (!here.defined()) here = factor.to(u.p.device(), /*non_blocking=*/true);
      u.clip_value = static_cast<const float*>(here.const_data_ptr());
    }
  }
  prepare_states(updates);
  std::vector<Call> calls = calls_of(updates);
  for (const Call& call : calls) ops::check_optimizer_call(name_.c_str(), call.call);
  if (guards().capturable) {
    prepare_counts(updates);
    prepare_rates(updates);
    sync_learning_rates();
    calls = calls_of(updates);  // the same tensors, with values in device memory
  }
  for (const Call& call : calls) {
    for (const at::Tensor& state : call.prefetched) {
      if constexpr (ops::kHasCuda) {
        if (!ops::is_capturing(state.device())) ops::cuda::prefetch(state);
      }
    }
    ops::run_optimizer_call(name_.c_str(), call.call);
  }
  for (const Update& u : updates) ++u.state->step;
  return loss;
}

}  // namespace lowbit::optim
