#include "lowbit/optim/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "lowbit/functional.h"
#include "ops/optimizer.h"
#include "optim/overrides.h"
#include "optim/state.h"
#include "tensor/state_hint.h"

namespace lowbit::optim {
namespace {

using kernels::OptimizerHyper;
using kernels::OptimizerKind;

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
          .skip_zeros = config.skip_zeros};
}

bool same(const OptimizerHyper& a, const OptimizerHyper& b) {
  return a.lr == b.lr && a.beta1 == b.beta1 && a.beta2 == b.beta2 && a.beta3 == b.beta3 &&
         a.alpha == b.alpha && a.eps == b.eps && a.weight_decay == b.weight_decay &&
         a.step == b.step && a.gnorm_scale == b.gnorm_scale && a.max_unorm == b.max_unorm &&
         a.skip_zeros == b.skip_zeros && a.gnorm_scale_value == b.gnorm_scale_value;
}

/// Gradient norm clipping as one factor on the device of the gradients: min(1, max_norm / norm).
at::Tensor clip_factor(const std::vector<at::Tensor>& gradients, double max_norm) {
  std::vector<at::Tensor> norms;
  const at::Device device = gradients[0].device();
  for (const at::Tensor& g : gradients) {
    norms.push_back(at::linalg_vector_norm(g, 2, {}, false, at::kFloat).to(device, true));
  }
  const at::Tensor norm = at::linalg_vector_norm(at::stack(norms), 2);
  return (max_norm / (norm + 1e-6)).clamp_max(1.0).to(at::kFloat).reshape({1});
}

}  // namespace

/// One parameter of a step.
struct Optimizer::Update {
  at::Tensor p, g;
  StepValues values;
  StepConfig config;
  State* state = nullptr;  ///< null: to be made
};

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

std::vector<Optimizer::Update> Optimizer::collect() const {
  std::vector<Update> updates;
  const std::string algorithm = variant_.algorithm;
  for (const auto& group : param_groups_) {
    const Options& options = options_of(group);
    const StepValues values = options.values();
    StepConfig config = options.config();
    if (variant_.optim_bits != 0) config.optim_bits = variant_.optim_bits;
    config.is_paged = config.is_paged || variant_.is_paged;
    for (const at::Tensor& p : group.params()) {
      LOWBIT_CHECK(p.defined(), name_, "parameters", "defined tensors", "an undefined one");
      const at::Tensor& grad = p.grad();
      if (!grad.defined()) continue;
      Update update{.p = p, .g = grad, .values = values, .config = config};
      ops::check_float(name_.c_str(), "parameters", p);
      LOWBIT_CHECK(grad.layout() == at::kStrided, name_, "gradients", "dense", grad.layout(),
                   "Sparse gradients are not supported.");
      ops::check_float(name_.c_str(), "gradients", grad);
      ops::check_device(name_.c_str(), "gradients", grad, p.device());
      LOWBIT_CHECK(grad.sizes() == p.sizes(), name_, "gradients",
                   c10::str("of the parameter's shape ", p.sizes()),
                   c10::str("shape ", grad.sizes()));
      if (grad.scalar_type() != p.scalar_type()) update.g = grad.to(p.scalar_type());
      if (tensor::requests_float32_states(p)) update.config.optim_bits = 32;
      if (const ParameterOverride* o = overrides_.find(p)) apply(*o, update.values, update.config);
      LOWBIT_CHECK(update.config.max_unorm == 0 || algorithm == "adam" || algorithm == "momentum" ||
                       algorithm == "rmsprop",
                   name_, "max_unorm", "0 for this optimizer", update.config.max_unorm);
      if (const auto found = state_.find(p.unsafeGetTensorImpl()); found != state_.end()) {
        update.state = static_cast<State*>(found->second.get());
        const int64_t rows = algorithm == "ademamix" ? 2 : 1;
        LOWBIT_CHECK(update.state->state1.numel() == rows * p.numel(), name_, "parameters",
                     "as large as when their states were made",
                     c10::str("shape ", p.sizes(), " with a state of ",
                              update.state->state1.numel() / rows, " elements"));
      }
      updates.push_back(std::move(update));
    }
  }
  return updates;
}

void Optimizer::check_finite(const std::vector<Update>& updates) const {
  int64_t bad = 0;
  for (const Update& u : updates) bad += (~at::isfinite(u.g)).sum().item<int64_t>();
  LOWBIT_CHECK(bad == 0, name_, "gradients", "finite",
               c10::str(bad, " elements that are NaN or infinite"),
               "error_if_nonfinite(false) lets them through.");
}

at::Tensor Optimizer::map(bool is_signed, at::Device device) {
  for (const auto& [known, tensor] : maps_) {
    if (known == is_signed && tensor.device() == device) return tensor;
  }
  return maps_.emplace_back(is_signed, create_dynamic_map(is_signed).to(device)).second;
}

void Optimizer::prepare_states(std::vector<Update>& updates) {
  const std::string algorithm = variant_.algorithm;
  const bool two_rows = algorithm == "ademamix";
  const bool second = two_rows || algorithm == "adam";
  for (Update& u : updates) {
    const at::Device device = u.p.device();
    if (u.state == nullptr) {
      auto made = std::make_unique<State>();
      std::vector<int64_t> shape = u.p.sizes().vec();
      if (two_rows) shape.insert(shape.begin(), 2);
      const bool blockwise = u.config.optim_bits == 8 && u.p.numel() >= u.config.min_8bit_size;
      const auto options =
          at::TensorOptions().device(device).dtype(blockwise ? at::kByte : at::kFloat);
      made->state1 = at::zeros(shape, options);
      if (second) made->state2 = at::zeros(u.p.sizes(), options);
      if (blockwise) {
        const int64_t blocks = kernels::ceil_div(u.p.numel(), kernels::kOptimizerBlocksize);
        const auto floats = options.dtype(at::kFloat);
        made->qmap1 = map(!u.config.unsigned_state, device);
        made->absmax1 = two_rows ? at::zeros({2, blocks}, floats) : at::zeros({blocks}, floats);
        if (second) made->qmap2 = map(false, device), made->absmax2 = at::zeros({blocks}, floats);
      }
      u.state = made.get();
      state_[u.p.unsafeGetTensorImpl()] = std::move(made);
    }
    if (u.config.max_unorm > 0 && !u.state->unorm_vec.defined()) {
      u.state->unorm_vec = at::zeros({1}, at::TensorOptions().device(device).dtype(at::kFloat));
    }
    // The parameter may have moved since.
    for_each_tensor(*u.state, [&](const char*, at::Tensor& tensor) {
      if (tensor.defined() && tensor.device() != device) tensor = tensor.to(device);
    });
  }
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
  const StepGuards guards = static_cast<const Options&>(*defaults_).guards();
  if (guards.error_if_nonfinite) check_finite(updates);

  std::map<at::Device, at::Tensor, bool (*)(const at::Device&, const at::Device&)> factors(
      [](const at::Device& a, const at::Device& b) { return a.str() < b.str(); });
  if (guards.max_grad_norm > 0) {
    std::vector<at::Tensor> gradients;
    for (const Update& u : updates) gradients.push_back(u.g);
    const at::Tensor factor = clip_factor(gradients, guards.max_grad_norm);
    for (const Update& u : updates) {
      if (!factors.count(u.p.device())) factors.emplace(u.p.device(), factor.to(u.p.device()));
    }
  }
  prepare_states(updates);

  // One call for each device, dtype and kind of state.
  const OptimizerKind kind = ops::parse_optimizer(name_.c_str(), variant_.algorithm).kind;
  std::vector<ops::OptimizerCall> calls;
  for (const Update& u : updates) {
    const State& s = *u.state;
    const auto fits = [&](const ops::OptimizerCall& call) {
      const at::Tensor& p = call.tensors[0].p;
      return p.device() == u.p.device() && p.scalar_type() == u.p.scalar_type() &&
             call.blockwise == s.blockwise() && call.map1.is_same(s.qmap1) &&
             call.map2.is_same(s.qmap2);
    };
    auto call = std::find_if(calls.begin(), calls.end(), fits);
    if (call == calls.end()) {
      call = calls.emplace(calls.end());
      call->kind = kind;
      call->blockwise = s.blockwise();
      call->map1 = s.qmap1;
      call->map2 = s.qmap2;
    }
    OptimizerHyper hyper = hyper_of(u.values, u.config, s.step + 1);
    if (const auto found = factors.find(u.p.device()); found != factors.end()) {
      hyper.gnorm_scale_value = static_cast<const float*>(found->second.const_data_ptr());
    }
    auto known = std::find_if(call->hypers.begin(), call->hypers.end(),
                              [&](const OptimizerHyper& h) { return same(h, hyper); });
    if (known == call->hypers.end()) known = call->hypers.insert(known, hyper);
    call->tensors.push_back({.p = u.p,
                             .g = u.g,
                             .state1 = s.state1,
                             .state2 = s.state2,
                             .absmax1 = s.absmax1,
                             .absmax2 = s.absmax2,
                             .unorm = u.config.max_unorm > 0 ? s.unorm_vec : at::Tensor(),
                             .hyper = static_cast<int32_t>(known - call->hypers.begin())});
  }
  for (const ops::OptimizerCall& call : calls) ops::check_optimizer_call(name_.c_str(), call);
  for (const ops::OptimizerCall& call : calls) ops::optimizer_step(name_.c_str(), call);
  for (const Update& u : updates) ++u.state->step;
  return loss;
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
