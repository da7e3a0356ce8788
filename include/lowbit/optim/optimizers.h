// The optimizers. Names, arguments and defaults are the ecosystem's.
//
// Adam, AdamW, AdEMAMix, Lion: Name, Name8bit, Name32bit, PagedName, PagedName8bit, PagedName32bit.
// LAMB, LARS, RMSprop, Adagrad, SGD: Name, Name8bit, Name32bit. A name without bits has those of
// its options. 8-bit classes keep float32 states of parameters with fewer than min_8bit_size
// elements, and of the embeddings of lowbit::nn.
#pragma once

#include <memory>
#include <vector>

#include "lowbit/optim/optimizer.h"

namespace lowbit::optim {

// NOLINTBEGIN(bugprone-macro-parentheses): names of classes cannot be in parentheses
#define LOWBIT_OPTIMIZER_CLASS(Name, OptionsType, algorithm, bits, paged, default_options)     \
  class Name : public Optimizer {                                                              \
   public:                                                                                     \
    explicit Name(const std::vector<torch::optim::OptimizerParamGroup>& groups,                \
                  OptionsType defaults default_options)                                        \
        : Optimizer({"lowbit::optim::" #Name, algorithm, bits, paged}, groups,                 \
                    std::make_unique<OptionsType>(std::move(defaults))) {}                     \
    explicit Name(std::vector<torch::Tensor> params, OptionsType defaults default_options)     \
        : Name({torch::optim::OptimizerParamGroup(std::move(params))}, std::move(defaults)) {} \
  }

#define LOWBIT_OPTIMIZER_FAMILY(Name, OptionsType, algorithm, ...)                   \
  LOWBIT_OPTIMIZER_CLASS(Name, OptionsType, algorithm, 0, false, __VA_ARGS__);       \
  LOWBIT_OPTIMIZER_CLASS(Name##8bit, OptionsType, algorithm, 8, false, __VA_ARGS__); \
  LOWBIT_OPTIMIZER_CLASS(Name##32bit, OptionsType, algorithm, 32, false, __VA_ARGS__)

/// States of parameters of at least 100000 elements in memory that the GPU may spill; on the CPU
/// the same as without "Paged".
#define LOWBIT_OPTIMIZER_PAGED_FAMILY(Name, OptionsType, algorithm)                 \
  LOWBIT_OPTIMIZER_FAMILY(Name, OptionsType, algorithm, = {});                      \
  LOWBIT_OPTIMIZER_CLASS(Paged##Name, OptionsType, algorithm, 0, true, = {});       \
  LOWBIT_OPTIMIZER_CLASS(Paged##Name##8bit, OptionsType, algorithm, 8, true, = {}); \
  LOWBIT_OPTIMIZER_CLASS(Paged##Name##32bit, OptionsType, algorithm, 32, true, = {})

LOWBIT_OPTIMIZER_PAGED_FAMILY(Adam, AdamOptions, "adam");
LOWBIT_OPTIMIZER_PAGED_FAMILY(AdamW, AdamWOptions, "adam");
LOWBIT_OPTIMIZER_PAGED_FAMILY(AdEMAMix, AdEMAMixOptions, "ademamix");
LOWBIT_OPTIMIZER_PAGED_FAMILY(Lion, LionOptions, "lion");
LOWBIT_OPTIMIZER_FAMILY(LAMB, LAMBOptions, "adam", = {});
LOWBIT_OPTIMIZER_FAMILY(RMSprop, RMSpropOptions, "rmsprop", = {});
LOWBIT_OPTIMIZER_FAMILY(Adagrad, AdagradOptions, "adagrad", = {});
// lr has no default.
LOWBIT_OPTIMIZER_FAMILY(LARS, LARSOptions, "momentum", );
LOWBIT_OPTIMIZER_FAMILY(SGD, SGDOptions, "momentum", );

// NOLINTEND(bugprone-macro-parentheses)
#undef LOWBIT_OPTIMIZER_PAGED_FAMILY
#undef LOWBIT_OPTIMIZER_FAMILY
#undef LOWBIT_OPTIMIZER_CLASS

}  // namespace lowbit::optim
