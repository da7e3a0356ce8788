// Every optimizer class by name, made with one call.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lowbit/optim/optimizers.h"

namespace lowbit::test {

struct Family {
  std::string name;
  bool blockwise;
  std::function<std::unique_ptr<optim::Optimizer>(std::vector<at::Tensor>)> make;
};

template <class Class, class Options>
Family family(const std::string& name, bool blockwise, const Options& options) {
  return {name, blockwise, [options](std::vector<at::Tensor> params) {
            return std::make_unique<Class>(std::move(params), options);
          }};
}

/// With weight decay and learning rates at which small problems converge.
inline std::vector<Family> families() {
  using namespace optim;
  const auto adam = AdamOptions(1e-2).weight_decay(1e-3);
  const auto adamw = AdamWOptions(1e-2);
  const auto mix =
      AdEMAMixOptions(1e-2).betas({0.9, 0.999, 0.99}).alpha(2).t_alpha(200).t_beta3(200);
  const auto lion = LionOptions(3e-3).weight_decay(1e-2);
  const auto lamb = LAMBOptions(2e-2).weight_decay(1e-3);
  const auto lars = LARSOptions(0.1).momentum(0.9).weight_decay(1e-3).max_unorm(0.1);
  const auto sgd = SGDOptions(1e-2).momentum(0.9).weight_decay(1e-3);
  const auto rms = RMSpropOptions(1e-2).weight_decay(1e-3);
  const auto ada = AdagradOptions(1.5e-1).weight_decay(1e-3);
  return {family<Adam32bit>("Adam32bit", false, adam),
          family<Adam8bit>("Adam8bit", true, adam),
          family<AdamW32bit>("AdamW32bit", false, adamw),
          family<AdamW8bit>("AdamW8bit", true, adamw),
          family<PagedAdamW8bit>("PagedAdamW8bit", true, adamw),
          family<AdEMAMix32bit>("AdEMAMix32bit", false, mix),
          family<AdEMAMix8bit>("AdEMAMix8bit", true, mix),
          family<Lion32bit>("Lion32bit", false, lion),
          family<Lion8bit>("Lion8bit", true, lion),
          family<LAMB32bit>("LAMB32bit", false, lamb),
          family<LAMB8bit>("LAMB8bit", true, lamb),
          family<LARS32bit>("LARS32bit", false, lars),
          family<LARS8bit>("LARS8bit", true, lars),
          family<SGD32bit>("SGD32bit", false, sgd),
          family<SGD8bit>("SGD8bit", true, sgd),
          family<RMSprop32bit>("RMSprop32bit", false, rms),
          family<RMSprop8bit>("RMSprop8bit", true, rms),
          family<Adagrad32bit>("Adagrad32bit", false, ada),
          family<Adagrad8bit>("Adagrad8bit", true, ada)};
}

}  // namespace lowbit::test
