#include "lowbit/optim/options.h"

#include <string>

#include "ops/check.h"

namespace lowbit::optim {
namespace {

void at_least_0(const char* op, const char* name, double value) {
  LOWBIT_CHECK(value >= 0.0 && value < HUGE_VAL, op, name, "a number, at least 0", value);
}

void in_unit_interval(const char* op, const char* name, double value) {
  LOWBIT_CHECK(value >= 0.0 && value < 1.0, op, name, "in [0, 1)", value);
}

void only(const char* op, const char* name, bool other, const char* value) {
  LOWBIT_CHECK(!other, op, name, value, "another value", "Nothing else is supported.");
}

/// What all families have.
template <class Options>
void check_common(const char* op, const Options& o) {
  const StepValues v = o.values();
  at_least_0(op, "lr", v.lr);
  at_least_0(op, "eps", v.eps);
  at_least_0(op, "weight_decay", v.weight_decay);
  at_least_0(op, "alpha", v.alpha);
  in_unit_interval(op, "betas[0]", v.beta1);
  in_unit_interval(op, "betas[1]", v.beta2);
  in_unit_interval(op, "betas[2]", v.beta3);
  LOWBIT_CHECK(v.t_alpha.value_or(1) > 0, op, "t_alpha", "positive or none", *v.t_alpha);
  LOWBIT_CHECK(v.t_beta3.value_or(1) > 0, op, "t_beta3", "positive or none", *v.t_beta3);
  const StepConfig c = o.config();
  LOWBIT_CHECK(c.optim_bits == 32 || c.optim_bits == 8, op, "optim_bits", "32 or 8", c.optim_bits);
  LOWBIT_CHECK(c.min_8bit_size >= 0, op, "min_8bit_size", "at least 0", c.min_8bit_size);
  at_least_0(op, "max_unorm", c.max_unorm);
  at_least_0(op, "gnorm_scale", c.gnorm_scale);
  at_least_0(op, "max_grad_norm", o.max_grad_norm());
  LOWBIT_CHECK(c.paged_budget.value_or(0) >= 0, op, "paged_budget", "at least 0 bytes, or none",
               *c.paged_budget);
  only(op, "error_if_nonfinite", o.capturable() && o.error_if_nonfinite(),
       "false with capturable(true)");
  only(op, "t_alpha and t_beta3", o.capturable() && (v.t_alpha || v.t_beta3),
       "none with capturable(true)");
}

template <class Options>
StepConfig common_config(const Options& o) {
  return {.optim_bits = o.optim_bits(),
          .min_8bit_size = o.min_8bit_size(),
          .skip_zeros = o.skip_zeros(),
          .gnorm_scale = o.gnorm_scale(),
          .stochastic_rounding = o.stochastic_rounding(),
          .rounding_seed = o.rounding_seed()};
}

/// What the families with paged classes add.
template <class Options>
StepConfig paged_config(const Options& o) {
  StepConfig config = common_config(o);
  config.is_paged = o.is_paged();
  config.paged_memory = o.paged_memory();
  config.paged_budget = o.paged_budget();
  return config;
}

template <class Options>
void check_momentum(const char* op, const Options& o) {
  LOWBIT_CHECK(o.momentum() > 0.0 && o.momentum() < 1.0, op, "momentum", "in (0, 1)", o.momentum(),
               "Without momentum there is no state: use torch::optim::SGD.");
  only(op, "dampening", o.dampening() != 0.0, "0");
  only(op, "nesterov", o.nesterov(), "false");
  check_common(op, o);
}

}  // namespace

template <bool kAdamW>
std::vector<OptionField> AdamOptionsOf<kAdamW>::fields() {
  return {{"lr", &lr_}, {"betas", &betas_}, {"eps", &eps_}, {"weight_decay", &weight_decay_}};
}
template <bool kAdamW>
StepValues AdamOptionsOf<kAdamW>::values() const {
  return {.lr = lr_,
          .beta1 = std::get<0>(betas_),
          .beta2 = std::get<1>(betas_),
          .eps = eps_,
          .weight_decay = weight_decay_};
}
template <bool kAdamW>
StepConfig AdamOptionsOf<kAdamW>::config() const {
  StepConfig config = paged_config(*this);
  config.max_unorm = max_unorm_;
  return config;
}
template <bool kAdamW>
void AdamOptionsOf<kAdamW>::check(const char* op) const {
  only(op, "amsgrad", amsgrad_, "false");
  check_common(op, *this);
}
template struct AdamOptionsOf<false>;
template struct AdamOptionsOf<true>;

std::vector<OptionField> AdEMAMixOptions::fields() {
  return {{"lr", &lr_},
          {"betas", &betas_},
          {"alpha", &alpha_},
          {"t_alpha", &t_alpha_},
          {"t_beta3", &t_beta3_},
          {"eps", &eps_},
          {"weight_decay", &weight_decay_}};
}
StepValues AdEMAMixOptions::values() const {
  return {.lr = lr_,
          .beta1 = std::get<0>(betas_),
          .beta2 = std::get<1>(betas_),
          .beta3 = std::get<2>(betas_),
          .alpha = alpha_,
          .eps = eps_,
          .weight_decay = weight_decay_,
          .t_alpha = t_alpha_,
          .t_beta3 = t_beta3_};
}
StepConfig AdEMAMixOptions::config() const { return paged_config(*this); }
void AdEMAMixOptions::check(const char* op) const {
  check_common(op, *this);
  LOWBIT_CHECK(!t_beta3_ || (std::get<0>(betas_) > 0 && std::get<2>(betas_) > 0), op, "betas",
               "positive where beta3 has a schedule", "0");
}

std::vector<OptionField> LionOptions::fields() {
  return {{"lr", &lr_}, {"betas", &betas_}, {"weight_decay", &weight_decay_}};
}
StepValues LionOptions::values() const {
  return {.lr = lr_,
          .beta1 = std::get<0>(betas_),
          .beta2 = std::get<1>(betas_),
          .weight_decay = weight_decay_};
}
StepConfig LionOptions::config() const { return paged_config(*this); }
void LionOptions::check(const char* op) const { check_common(op, *this); }

std::vector<OptionField> LAMBOptions::fields() {
  return {{"lr", &lr_}, {"betas", &betas_}, {"eps", &eps_}, {"weight_decay", &weight_decay_}};
}
StepValues LAMBOptions::values() const {
  return {.lr = lr_,
          .beta1 = std::get<0>(betas_),
          .beta2 = std::get<1>(betas_),
          .eps = eps_,
          .weight_decay = weight_decay_};
}
StepConfig LAMBOptions::config() const {
  StepConfig config = common_config(*this);
  config.max_unorm = max_unorm_;
  return config;
}
void LAMBOptions::check(const char* op) const {
  only(op, "bias_correction", !bias_correction_, "true");
  only(op, "amsgrad", amsgrad_, "false");
  only(op, "adam_w_mode", !adam_w_mode_, "true");
  check_common(op, *this);
}

std::vector<OptionField> SGDOptions::fields() {
  return {{"lr", &lr_}, {"betas", &momentum_}, {"weight_decay", &weight_decay_}};
}
StepValues SGDOptions::values() const {
  return {.lr = lr_, .beta1 = momentum_, .weight_decay = weight_decay_};
}
StepConfig SGDOptions::config() const {
  StepConfig config = common_config(*this);
  config.max_unorm = max_unorm_;
  return config;
}
void SGDOptions::check(const char* op) const { check_momentum(op, *this); }

std::vector<OptionField> LARSOptions::fields() {
  return {{"lr", &lr_}, {"betas", &momentum_}, {"weight_decay", &weight_decay_}};
}
StepValues LARSOptions::values() const {
  return {.lr = lr_, .beta1 = momentum_, .weight_decay = weight_decay_};
}
StepConfig LARSOptions::config() const {
  StepConfig config = common_config(*this);
  config.max_unorm = max_unorm_;
  return config;
}
void LARSOptions::check(const char* op) const { check_momentum(op, *this); }

std::vector<OptionField> RMSpropOptions::fields() {
  return {{"lr", &lr_}, {"betas", &alpha_}, {"eps", &eps_}, {"weight_decay", &weight_decay_}};
}
StepValues RMSpropOptions::values() const {
  return {.lr = lr_, .beta1 = alpha_, .eps = eps_, .weight_decay = weight_decay_};
}
StepConfig RMSpropOptions::config() const {
  StepConfig config = common_config(*this);
  config.max_unorm = max_unorm_;
  config.unsigned_state = unsigned_state_;
  return config;
}
void RMSpropOptions::check(const char* op) const {
  LOWBIT_CHECK(alpha_ > 0.0 && alpha_ < 1.0, op, "alpha", "in (0, 1)", alpha_);
  only(op, "momentum", momentum_ != 0.0, "0");
  only(op, "centered", centered_, "false");
  check_common(op, *this);
}

std::vector<OptionField> AdagradOptions::fields() {
  return {{"lr", &lr_}, {"eps", &eps_}, {"weight_decay", &weight_decay_}};
}
StepValues AdagradOptions::values() const {
  return {.lr = lr_, .eps = eps_, .weight_decay = weight_decay_};
}
StepConfig AdagradOptions::config() const {
  StepConfig config = common_config(*this);
  config.unsigned_state = unsigned_state_;
  return config;
}
void AdagradOptions::check(const char* op) const {
  only(op, "lr_decay", lr_decay_ != 0.0, "0");
  only(op, "initial_accumulator_value", initial_accumulator_value_ != 0.0, "0");
  check_common(op, *this);
}

}  // namespace lowbit::optim
