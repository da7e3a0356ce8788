// What the optimizers share: the step, per-parameter overrides, saving and loading.
#pragma once

#include <torch/optim/optimizer.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "lowbit/optim/options.h"
#include "lowbit/optim/state_dict.h"

namespace lowbit::optim {

/// Values that replace those of the group for one parameter. betas: two values (one for SGD and
/// RMSprop is enough; three for AdEMAMix). optim_bits, min_8bit_size count when the state is made.
struct ParameterOverride {
  std::optional<double> lr = {}, eps = {}, weight_decay = {}, alpha = {};
  std::optional<std::vector<double>> betas = {};
  std::optional<int64_t> t_alpha = {}, t_beta3 = {}, optim_bits = {}, min_8bit_size = {};
  std::optional<double> max_unorm = {};
  std::optional<bool> skip_zeros = {};
};

/// By identity of the tensor. Not saved.
class Overrides {
 public:
  /// Merges with what was set before. Throws c10::Error for values out of range.
  void set(const at::Tensor& parameter, const ParameterOverride& override);
  void clear(const at::Tensor& parameter);
  void clear() { entries_.clear(); }
  /// Null when there is none.
  const ParameterOverride* find(const at::Tensor& parameter) const;

 private:
  struct Entry {
    at::Tensor parameter;  // keeps the address from being used again
    ParameterOverride values;
  };
  std::unordered_map<const void*, Entry> entries_;
};

/// Base of all optimizers here: a torch::optim::Optimizer (groups, closures, schedulers, zero_grad)
/// whose states are float32 or 8-bit block-wise (https://arxiv.org/abs/2110.02861).
///
/// Parameters: float32, float16 or bfloat16, mixed as you like, any layout. A gradient of another
/// dtype is cast to the parameter's. Arithmetic is float32, the parameter is rounded once a step.
/// States are made at the first step that sees a gradient. Steps count for each parameter.
/// Gradients that are not finite propagate into the parameter, except that 8-bit Adam, AdamW, LAMB
/// and AdEMAMix skip the element and set its states to 0.
class Optimizer : public torch::optim::Optimizer {
 public:
  /// One update of every parameter that has a gradient. Returns what the closure returns. Throws
  /// c10::Error, having changed nothing, for sparse gradients, dtypes, sizes and devices that do
  /// not fit, and options out of range.
  torch::Tensor step(LossClosure closure = nullptr) override;

  /// Throws c10::Error for options of another class or out of range.
  void add_param_group(const torch::optim::OptimizerParamGroup& group);

  /// Per-parameter values: opt.overrides().set(embedding->weight, {.optim_bits = 32}).
  Overrides& overrides() noexcept { return overrides_; }

  /// Tensors share the optimizer's memory.
  OptimizerStateDict state_dict() const;
  /// Takes copies on the parameters' devices. Throws c10::Error for another algorithm, other groups
  /// or sizes; then nothing has changed. Tensors under other names are ignored.
  void load_state_dict(const OptimizerStateDict& dict);
  /// torch::save and torch::load.
  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;

  /// Bytes of all states, without maps that are shared: 2 + 8 / 256 a parameter of 8-bit Adam.
  int64_t state_bytes() const;
  const std::string& name() const noexcept { return name_; }

 protected:
  /// What a class is.
  struct Variant {
    const char* name;
    const char* algorithm;  ///< of OptimizerStateDict
    int64_t optim_bits;     ///< 0: the options'
    bool is_paged;          ///< false: the options'
  };
  Optimizer(const Variant& variant, const std::vector<torch::optim::OptimizerParamGroup>& groups,
            std::unique_ptr<Options> defaults);

 private:
  struct Update;
  struct Plan;

  const Options& options_of(const torch::optim::OptimizerParamGroup& group) const;
  std::vector<Update> collect() const;
  void check_finite(const std::vector<Update>& updates) const;
  void prepare_states(std::vector<Update>& updates);
  at::Tensor map(bool is_signed, at::Device device);

  std::string name_;  // "lowbit::optim::AdamW8bit"
  Variant variant_;
  Overrides overrides_;
  std::vector<std::pair<bool, at::Tensor>> maps_;
};

}  // namespace lowbit::optim
