// Random optimizer steps over several tensors, runnable by any implementation.
#pragma once

#include <memory>
#include <random>
#include <vector>

#include "lowbit/kernels/maps.h"
#include "lowbit/kernels/optimizer.h"
#include "random_buffers.h"

namespace lowbit::kernels::testing {

inline constexpr OptimizerKind kOptimizerKinds[] = {
    OptimizerKind::kAdam,    OptimizerKind::kAdEMAMix, OptimizerKind::kMomentum,
    OptimizerKind::kRMSprop, OptimizerKind::kAdagrad,  OptimizerKind::kLion};

/// Parameters, gradients and states of one call, in guarded buffers.
class OptimizerProblem {
 public:
  OptimizerKind kind = OptimizerKind::kAdam;
  bool blockwise = false;
  DType dtype = DType::kFloat32;
  std::vector<OptimizerHyper> hypers;

  struct Tensor {
    GuardedBuffer p, g, state1, state2, absmax1, absmax2;
    float unorm = NAN;
    int64_t numel;
    int32_t hyper;
  };
  std::vector<std::unique_ptr<Tensor>> tensors;

  /// States are zeros. `shift`: bytes off alignment of p, g and 8-bit states.
  Tensor& add(int64_t numel, int32_t hyper = 0, int64_t shift = 0) {
    const int64_t rows = state1_rows(kind), size = blockwise ? 1 : 4;
    const int64_t blocks = ceil_div(numel, kOptimizerBlocksize);
    const int64_t second = has_second_state(kind) ? numel : 0;
    const int64_t off = shift * itemsize(dtype), state_off = blockwise ? shift : 4 * shift;
    tensors.push_back(std::make_unique<Tensor>(Tensor{{numel, itemsize(dtype), off},
                                                      {numel, itemsize(dtype), off},
                                                      {rows * numel, size, state_off},
                                                      {second, size, state_off},
                                                      {blockwise ? rows * blocks : 0, 4},
                                                      {blockwise && second > 0 ? blocks : 0, 4},
                                                      NAN,
                                                      numel,
                                                      hyper}));
    Tensor& t = *tensors.back();
    for (GuardedBuffer* b : {&t.state1, &t.state2, &t.absmax1, &t.absmax2}) {
      std::memset(b->data(), 0, b->bytes());
    }
    return t;
  }

  /// A copy with its own memory.
  OptimizerProblem clone() const {
    OptimizerProblem copy;
    copy.kind = kind, copy.blockwise = blockwise, copy.dtype = dtype, copy.hypers = hypers;
    for (const auto& t : tensors) {
      Tensor& c = copy.add(t->numel, t->hyper);
      const auto take = [](GuardedBuffer& to, GuardedBuffer& from) {
        std::memcpy(to.data(), from.data(), from.bytes());
      };
      take(c.p, t->p), take(c.g, t->g), take(c.state1, t->state1), take(c.state2, t->state2);
      take(c.absmax1, t->absmax1), take(c.absmax2, t->absmax2);
    }
    return copy;
  }

  /// Valid until the problem changes.
  const OptimizerParams& params() {
    views_.clear();
    for (const auto& t : tensors) {
      views_.push_back({t->p.data(), t->g.data(), t->state1.data(), t->state2.data(),
                        blockwise ? t->absmax1.as<float>() : nullptr,
                        blockwise ? t->absmax2.as<float>() : nullptr, &t->unorm, t->numel,
                        t->hyper});
    }
    params_ = {kind,
               blockwise,
               dtype,
               views_.data(),
               static_cast<int64_t>(views_.size()),
               hypers.data(),
               static_cast<int64_t>(hypers.size()),
               blockwise ? dynamic_map(true) : nullptr,
               blockwise ? dynamic_map(false) : nullptr,
               nullptr};
    workspace_.assign(static_cast<size_t>(optimizer_workspace_bytes(params_)) / sizeof(float), NAN);
    params_.workspace = workspace_.empty() ? nullptr : workspace_.data();
    return params_;
  }
  const std::vector<float>& workspace() const { return workspace_; }

  /// All chunks in two ranges.
  void step_on_cpu(int64_t cut = 0) {
    const OptimizerParams& p = params();
    const int64_t chunks = optimizer_chunks(p);
    cut = std::min(cut, chunks);
    if (p.workspace != nullptr) {
      ASSERT_TRUE(cpu::optimizer_norms(p, cut, chunks).ok());
      ASSERT_TRUE(cpu::optimizer_norms(p, 0, cut).ok());
      ASSERT_TRUE(cpu::optimizer_limits(p, 0, p.ntensors).ok());
    }
    ASSERT_TRUE(cpu::optimizer_step(p, cut, chunks).ok());
    ASSERT_TRUE(cpu::optimizer_step(p, 0, cut).ok());
  }
  void step_on_ref() {
    const OptimizerParams& p = params();
    const int64_t chunks = optimizer_chunks(p);
    if (p.workspace != nullptr) {
      ASSERT_TRUE(ref::optimizer_norms(p, 0, chunks).ok());
      ASSERT_TRUE(cpu::optimizer_limits(p, 0, p.ntensors).ok());
    }
    ASSERT_TRUE(ref::optimizer_step(p, 0, chunks).ok());
  }

  bool guards_intact() const {
    for (const auto& t : tensors) {
      for (const GuardedBuffer* b :
           {&t->p, &t->g, &t->state1, &t->state2, &t->absmax1, &t->absmax2}) {
        if (!b->guards_intact()) return false;
      }
    }
    return true;
  }

 private:
  std::vector<OptimizerTensor> views_;
  std::vector<float> workspace_;
  OptimizerParams params_;
};

/// Plausible random hyper-parameters of a rule.
template <typename Random>
OptimizerHyper random_hyper(OptimizerKind kind, Random& random) {
  const auto uniform = [&](float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(random);
  };
  OptimizerHyper h;
  h.lr = uniform(1e-5f, 1e-1f);
  h.beta1 = kind == OptimizerKind::kAdagrad ? 0.0f : uniform(0.0f, 0.99f);
  h.beta2 = uniform(0.0f, 0.9999f);
  h.beta3 = uniform(0.9f, 0.9999f);
  h.alpha = uniform(0.0f, 8.0f);
  h.eps = random() % 4 == 0 ? 0.0f : uniform(1e-10f, 1e-6f);
  h.weight_decay = random() % 2 == 0 ? 0.0f : uniform(0.0f, 0.2f);
  h.step = 1 + static_cast<int64_t>(random() % 1000);
  if (random() % 3 == 0) h.step = 1;
  if (random() % 3 == 0) h.gnorm_scale = uniform(0.1f, 3.0f);
  if (random() % 3 == 0) h.skip_zeros = true;
  if (has_update_limit(kind) && random() % 2 == 0) h.max_unorm = uniform(0.001f, 2.0f);
  return h;
}

}  // namespace lowbit::kernels::testing
