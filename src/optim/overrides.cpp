#include "optim/overrides.h"

#include "ops/check.h"

namespace lowbit::optim {
namespace {

constexpr const char* kOp = "lowbit::optim::Overrides::set";

template <class T>
void merge(std::optional<T>& into, const std::optional<T>& from) {
  if (from) into = from;
}

template <class T, class U>
void replace(T& value, const std::optional<U>& by) {
  if (by) value = *by;
}

void check(const ParameterOverride& o) {
  for (const auto& [name, value] :
       std::initializer_list<std::pair<const char*, std::optional<double>>>{
           {"lr", o.lr},
           {"eps", o.eps},
           {"weight_decay", o.weight_decay},
           {"alpha", o.alpha},
           {"max_unorm", o.max_unorm}}) {
    LOWBIT_CHECK(!value || (*value >= 0 && *value < HUGE_VAL), kOp, name, "a number, at least 0",
                 *value);
  }
  if (o.betas) {
    LOWBIT_CHECK(!o.betas->empty() && o.betas->size() <= 3, kOp, "betas", "one to three numbers",
                 o.betas->size());
    for (const double beta : *o.betas) {
      LOWBIT_CHECK(beta >= 0 && beta < 1, kOp, "betas", "in [0, 1)", beta);
    }
  }
  const int64_t bits = o.optim_bits.value_or(32);
  LOWBIT_CHECK(bits == 32 || bits == 8, kOp, "optim_bits", "32 or 8", bits);
  LOWBIT_CHECK(o.min_8bit_size.value_or(0) >= 0, kOp, "min_8bit_size", "at least 0",
               *o.min_8bit_size);
  LOWBIT_CHECK(o.t_alpha.value_or(1) > 0, kOp, "t_alpha", "positive", *o.t_alpha);
  LOWBIT_CHECK(o.t_beta3.value_or(1) > 0, kOp, "t_beta3", "positive", *o.t_beta3);
}

}  // namespace

void Overrides::set(const at::Tensor& parameter, const ParameterOverride& o) {
  LOWBIT_CHECK(parameter.defined(), kOp, "parameter", "a tensor", "none");
  check(o);
  Entry& entry = entries_[parameter.unsafeGetTensorImpl()];
  entry.parameter = parameter;
  ParameterOverride& into = entry.values;
  merge(into.lr, o.lr);
  merge(into.eps, o.eps);
  merge(into.weight_decay, o.weight_decay);
  merge(into.alpha, o.alpha);
  merge(into.betas, o.betas);
  merge(into.t_alpha, o.t_alpha);
  merge(into.t_beta3, o.t_beta3);
  merge(into.optim_bits, o.optim_bits);
  merge(into.min_8bit_size, o.min_8bit_size);
  merge(into.max_unorm, o.max_unorm);
  merge(into.skip_zeros, o.skip_zeros);
}

void Overrides::clear(const at::Tensor& parameter) {
  entries_.erase(parameter.unsafeGetTensorImpl());
}

const ParameterOverride* Overrides::find(const at::Tensor& parameter) const {
  const auto found = entries_.find(parameter.unsafeGetTensorImpl());
  return found == entries_.end() ? nullptr : &found->second.values;
}

void apply(const ParameterOverride& o, StepValues& values, StepConfig& config) {
  replace(values.lr, o.lr);
  replace(values.eps, o.eps);
  replace(values.weight_decay, o.weight_decay);
  replace(values.alpha, o.alpha);
  if (o.betas) {
    double* const betas[] = {&values.beta1, &values.beta2, &values.beta3};
    for (size_t i = 0; i < o.betas->size(); ++i) *betas[i] = (*o.betas)[i];
  }
  if (o.t_alpha) values.t_alpha = o.t_alpha;
  if (o.t_beta3) values.t_beta3 = o.t_beta3;
  replace(config.optim_bits, o.optim_bits);
  replace(config.min_8bit_size, o.min_8bit_size);
  replace(config.max_unorm, o.max_unorm);
  replace(config.skip_zeros, o.skip_zeros);
}

}  // namespace lowbit::optim
