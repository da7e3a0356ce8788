// Hyper-parameters of the optimizers, with the ecosystem's names and defaults. Each struct is given
// to an optimizer's constructor, or to one parameter group.
#pragma once

#include <torch/arg.h>
#include <torch/optim/optimizer.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>
#include <variant>
#include <vector>

namespace lowbit::optim {

using Betas = std::tuple<double, double>;
using ThreeBetas = std::tuple<double, double, double>;

/// A hyper-parameter that schedulers may change and state dicts carry: its name in the ecosystem's
/// param_groups, and the member. (There betas[0] is the momentum of SGD and the alpha of RMSprop.)
struct OptionField {
  const char* name;
  std::variant<double*, Betas*, ThreeBetas*, std::optional<int64_t>*> value;
};

/// The values of one step, whatever the family calls them.
struct StepValues {
  double lr = 0, beta1 = 0, beta2 = 0, beta3 = 0, alpha = 0, eps = 0, weight_decay = 0;
  std::optional<int64_t> t_alpha = std::nullopt, t_beta3 = std::nullopt;
};

/// Where a paged state lives. kManaged: memory whose pages the driver moves; it is on the device as
/// long as there is room, and spilled to the host when something else needs it. kPinned: host
/// memory, which every step reads and writes over the bus. What the device cannot page, and what
/// exceeds paged_budget, is pinned.
enum class PagedMemory { kManaged, kPinned };

/// What is decided when states are made, and limits of the update.
struct StepConfig {
  int64_t optim_bits = 32;       ///< 32 or 8
  int64_t min_8bit_size = 4096;  ///< smaller parameters have float32 states
  double max_unorm = 0;          ///< > 0: |update| is at most max_unorm * |p|
  bool skip_zeros = false;       ///< elements with gradient 0 stay as they are
  bool is_paged = false;
  PagedMemory paged_memory = PagedMemory::kManaged;
  std::optional<int64_t> paged_budget = std::nullopt;
  double gnorm_scale = 1;  ///< factor of the gradient
  bool unsigned_state = false;
  bool stochastic_rounding = false;
  int64_t rounding_seed = 0;
};

/// What concerns all groups together.
struct StepGuards {
  double max_grad_norm = 0;
  bool error_if_nonfinite = false;
  bool capturable = false;
};

/// Base of all options.
class Options : public torch::optim::OptimizerOptions {
 public:
  virtual std::vector<OptionField> fields() = 0;
  virtual StepValues values() const = 0;
  virtual StepConfig config() const = 0;
  virtual StepGuards guards() const = 0;
  /// Throws c10::Error naming `op` for values out of range, and for what no kernel here does.
  virtual void check(const char* op) const = 0;
};

template <class Derived>
class CloneableOptions : public Options {
 public:
  std::unique_ptr<torch::optim::OptimizerOptions> clone() const override {
    return std::make_unique<Derived>(static_cast<const Derived&>(*this));
  }
};

/// Of every family. optim_bits is read by the classes without bits in their name.
/// max_grad_norm, error_if_nonfinite and capturable count for all groups and are read from the
/// defaults.
#define LOWBIT_OPTIM_COMMON_ARGS                                                         \
  TORCH_ARG(int64_t, optim_bits) = 32;                                                   \
  TORCH_ARG(int64_t, min_8bit_size) = 4096;                                              \
  TORCH_ARG(bool, skip_zeros) = false;                                                   \
  /** Gradients are multiplied by it. */                                                 \
  TORCH_ARG(double, gnorm_scale) = 1.0;                                                  \
  /** > 0: gradients of all groups together are scaled down to this norm. */             \
  TORCH_ARG(double, max_grad_norm) = 0.0;                                                \
  /** A step with NaN or infinite gradients throws, and changes nothing. The elements    \
   * are counted on the device, and the count is waited for. */                          \
  TORCH_ARG(bool, error_if_nonfinite) = false;                                           \
  /** lr and the number of the step are values in device memory: step() may be captured  \
   * in a CUDA graph. See Optimizer::sync_learning_rates(). */                           \
  TORCH_ARG(bool, capturable) = false;                                                   \
  /** bfloat16 parameters are rounded up or down at random, so that updates below half a \
   * unit in the last place are not lost. The random bits follow from the seed and the   \
   * step. On the CPU much slower than rounding to nearest. */                           \
  TORCH_ARG(bool, stochastic_rounding) = false;                                          \
  TORCH_ARG(int64_t, rounding_seed) = 0;                                                 \
                                                                                         \
 public:                                                                                 \
  std::vector<OptionField> fields() override;                                            \
  StepValues values() const override;                                                    \
  StepConfig config() const override;                                                    \
  StepGuards guards() const override {                                                   \
    return {max_grad_norm_, error_if_nonfinite_, capturable_};                           \
  }                                                                                      \
  void check(const char* op) const override;                                             \
  double get_lr() const override { return lr_; }                                         \
  void set_lr(const double lr) override { lr_ = lr; }

/// Of the families with paged classes. paged_budget: bytes of managed memory that the states may
/// take together; none: never more than the device has free when a state is made.
#define LOWBIT_OPTIM_PAGED_ARGS                                 \
  TORCH_ARG(bool, is_paged) = false;                            \
  TORCH_ARG(PagedMemory, paged_memory) = PagedMemory::kManaged; \
  TORCH_ARG(std::optional<int64_t>, paged_budget) = std::nullopt;

/// Adam and AdamW are one algorithm (decoupled weight decay, after the step) with two defaults.
template <bool kAdamW>
struct AdamOptionsOf : CloneableOptions<AdamOptionsOf<kAdamW>> {
  AdamOptionsOf(double lr = 1e-3) : lr_(lr) {}
  TORCH_ARG(double, lr);
  TORCH_ARG(Betas, betas) = {0.9, 0.999};
  TORCH_ARG(double, eps) = 1e-8;
  TORCH_ARG(double, weight_decay) = kAdamW ? 1e-2 : 0.0;
  TORCH_ARG(bool, amsgrad) = false;  ///< true is refused
  TORCH_ARG(double, max_unorm) = 0.0;
  LOWBIT_OPTIM_PAGED_ARGS
  LOWBIT_OPTIM_COMMON_ARGS
};
using AdamOptions = AdamOptionsOf<false>;
using AdamWOptions = AdamOptionsOf<true>;

/// https://arxiv.org/abs/2409.03137. t_alpha, t_beta3: steps over which alpha and beta3 rise.
struct AdEMAMixOptions : CloneableOptions<AdEMAMixOptions> {
  AdEMAMixOptions(double lr = 1e-3) : lr_(lr) {}
  TORCH_ARG(double, lr);
  TORCH_ARG(ThreeBetas, betas) = {0.9, 0.999, 0.9999};
  TORCH_ARG(double, alpha) = 5.0;
  TORCH_ARG(std::optional<int64_t>, t_alpha);
  TORCH_ARG(std::optional<int64_t>, t_beta3);
  TORCH_ARG(double, eps) = 1e-8;
  TORCH_ARG(double, weight_decay) = 1e-2;
  LOWBIT_OPTIM_PAGED_ARGS
  LOWBIT_OPTIM_COMMON_ARGS
};

/// https://arxiv.org/abs/2302.06675
struct LionOptions : CloneableOptions<LionOptions> {
  LionOptions(double lr = 1e-4) : lr_(lr) {}
  TORCH_ARG(double, lr);
  TORCH_ARG(Betas, betas) = {0.9, 0.99};
  TORCH_ARG(double, weight_decay) = 0.0;
  LOWBIT_OPTIM_PAGED_ARGS
  LOWBIT_OPTIM_COMMON_ARGS
};

/// Adam whose update is limited to max_unorm * |p|. https://arxiv.org/abs/1904.00962
struct LAMBOptions : CloneableOptions<LAMBOptions> {
  LAMBOptions(double lr = 1e-3) : lr_(lr) {}
  TORCH_ARG(double, lr);
  TORCH_ARG(bool, bias_correction) = true;  ///< false is refused
  TORCH_ARG(Betas, betas) = {0.9, 0.999};
  TORCH_ARG(double, eps) = 1e-8;
  TORCH_ARG(double, weight_decay) = 0.0;
  TORCH_ARG(bool, amsgrad) = false;     ///< true is refused
  TORCH_ARG(bool, adam_w_mode) = true;  ///< false is refused
  TORCH_ARG(double, max_unorm) = 1.0;
  LOWBIT_OPTIM_COMMON_ARGS
};

/// SGD with momentum, weight decay coupled. momentum must be positive.
struct SGDOptions : CloneableOptions<SGDOptions> {
  SGDOptions(double lr) : lr_(lr) {}
  TORCH_ARG(double, lr);
  TORCH_ARG(double, momentum) = 0.0;
  TORCH_ARG(double, dampening) = 0.0;  ///< others are refused
  TORCH_ARG(double, weight_decay) = 0.0;
  TORCH_ARG(bool, nesterov) = false;  ///< true is refused
  TORCH_ARG(double, max_unorm) = 0.0;
  LOWBIT_OPTIM_COMMON_ARGS
};

/// SGD whose update is limited to max_unorm * |p|. https://arxiv.org/abs/1708.03888
struct LARSOptions : CloneableOptions<LARSOptions> {
  LARSOptions(double lr) : lr_(lr) {}
  TORCH_ARG(double, lr);
  TORCH_ARG(double, momentum) = 0.0;
  TORCH_ARG(double, dampening) = 0.0;  ///< others are refused
  TORCH_ARG(double, weight_decay) = 0.0;
  TORCH_ARG(bool, nesterov) = false;  ///< true is refused
  TORCH_ARG(double, max_unorm) = 0.02;
  LOWBIT_OPTIM_COMMON_ARGS
};

struct RMSpropOptions : CloneableOptions<RMSpropOptions> {
  RMSpropOptions(double lr = 1e-2) : lr_(lr) {}
  TORCH_ARG(double, lr);
  TORCH_ARG(double, alpha) = 0.99;
  TORCH_ARG(double, eps) = 1e-8;
  TORCH_ARG(double, weight_decay) = 0.0;
  TORCH_ARG(double, momentum) = 0.0;  ///< others are refused
  TORCH_ARG(bool, centered) = false;  ///< true is refused
  TORCH_ARG(double, max_unorm) = 0.0;
  /// 8-bit states in the unsigned map, twice as fine; not the ecosystem's files.
  TORCH_ARG(bool, unsigned_state) = false;
  LOWBIT_OPTIM_COMMON_ARGS
};

struct AdagradOptions : CloneableOptions<AdagradOptions> {
  AdagradOptions(double lr = 1e-2) : lr_(lr) {}
  TORCH_ARG(double, lr);
  TORCH_ARG(double, lr_decay) = 0.0;  ///< others are refused
  TORCH_ARG(double, weight_decay) = 0.0;
  TORCH_ARG(double, initial_accumulator_value) = 0.0;  ///< others are refused
  TORCH_ARG(double, eps) = 1e-10;
  /// As in RMSpropOptions.
  TORCH_ARG(bool, unsigned_state) = false;
  LOWBIT_OPTIM_COMMON_ARGS
};

#undef LOWBIT_OPTIM_PAGED_ARGS
#undef LOWBIT_OPTIM_COMMON_ARGS

}  // namespace lowbit::optim
