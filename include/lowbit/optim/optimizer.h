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

struct State;

/// Values that replace those of the group for one parameter. betas: two values (one for SGD and
/// RMSprop is enough; three for AdEMAMix). optim_bits, min_8bit_size count when the state is made.
struct ParameterOverride {
  std::optional<double> lr = {}, eps = {}, weight_decay = {}, alpha = {};
  std::optional<std::vector<double>> betas = {};
  std::optional<int64_t> t_alpha = {}, t_beta3 = {}, optim_bits = {}, min_8bit_size = {};
  std::optional<double> max_unorm = {};
  std::optional<bool> skip_zeros = {};
};

/// Memory of paged states, in bytes.
struct PagedBytes {
  int64_t managed = 0;
  int64_t pinned = 0;
  /// Why states are pinned that should be managed; empty when none are.
  std::string note = {};
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
///
/// A step waits for no device. On CUDA it takes one launch for up to 480 parameters of one dtype
/// and kind of state. It can be captured in a CUDA graph with capturable(true), once a step was
/// made outside.
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
  /// Of them, those in paged memory.
  PagedBytes paged_bytes() const;

  /// capturable(true): brings the groups' learning rates to the device, where captured steps read
  /// them: to be called between a scheduler's step and a graph's replay. step() does it itself,
  /// except while a graph is captured. Rates set by overrides are constants of the graph.
  void sync_learning_rates();
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
  struct Call;
  /// The learning rate of a group in device memory.
  struct Rate {
    size_t group;
    double value;
    at::Tensor tensor;  ///< float32 [1]
  };

  const Options& options_of(const torch::optim::OptimizerParamGroup& group) const;
  StepGuards guards() const { return static_cast<const Options&>(*defaults_).guards(); }
  /// What counts for parameter p of a group.
  Update update_of(size_t group, const at::Tensor& p) const;
  /// Its two parts: what the options of a group say, and what concerns one parameter.
  Update update_of_group(size_t group) const;
  void apply_wishes(const at::Tensor& p, Update& update) const;
  std::vector<Update> collect() const;
  void prepare_states(std::vector<Update>& updates);
  void prepare_counts(std::vector<Update>& updates);
  void prepare_rates(std::vector<Update>& updates);
  void page(const Update& update, State& state, int64_t& managed);
  std::vector<Call> calls_of(const std::vector<Update>& updates) const;
  at::Tensor map(bool is_signed, at::Device device);
  /// Where states of so many bytes go, when `managed` bytes are already in managed memory.
  PagedMemory choose_paged(const StepConfig& config, at::Device device, int64_t bytes,
                           int64_t managed);

  std::string name_;  // "lowbit::optim::AdamW8bit"
  Variant variant_;
  Overrides overrides_;
  std::vector<std::pair<bool, at::Tensor>> maps_;
  std::vector<Rate> rates_;
  std::string paged_note_;
};

}  // namespace lowbit::optim
