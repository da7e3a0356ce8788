// What an optimizer remembers of one parameter.
#pragma once

#include <torch/optim/optimizer.h>

#include <cstdint>

#include "lowbit/optim/options.h"

namespace lowbit::optim {

struct State : torch::optim::OptimizerCloneableParamState<State> {
  int64_t step = 0;
  at::Tensor state1, state2, qmap1, qmap2, absmax1, absmax2, unorm_vec;
  /// capturable: the number of the step, float32 [1] on p's device, in place of `step`. Parameters
  /// that have always stepped together share it.
  at::Tensor step_value;
  /// Of state1 and state2; none: ordinary memory of p's device.
  std::optional<PagedMemory> paged;

  bool blockwise() const { return state1.defined() && state1.scalar_type() == at::kByte; }
};

/// Calls f(name, tensor) for every member.
template <class S, class F>
void for_each_tensor(S& state, const F& f) {
  f("state1", state.state1);
  f("state2", state.state2);
  f("qmap1", state.qmap1);
  f("qmap2", state.qmap2);
  f("absmax1", state.absmax1);
  f("absmax2", state.absmax2);
  f("unorm_vec", state.unorm_vec);
}

}  // namespace lowbit::optim
