#include "ops/optimizer.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <utility>

#include "ops/device.h"
#include "ops/rows.h"

namespace lowbit::ops {
namespace {

using kernels::OptimizerHyper;
using kernels::OptimizerKind;

constexpr std::array<std::pair<std::string_view, OptimizerRule>, 8> kRules = {{
    {"adam", {OptimizerKind::kAdam, false}},
    {"lamb", {OptimizerKind::kAdam, true}},
    {"ademamix", {OptimizerKind::kAdEMAMix, false}},
    {"momentum", {OptimizerKind::kMomentum, false}},
    {"lars", {OptimizerKind::kMomentum, true}},
    {"rmsprop", {OptimizerKind::kRMSprop, false}},
    {"adagrad", {OptimizerKind::kAdagrad, false}},
    {"lion", {OptimizerKind::kLion, false}},
}};

bool is_given(const at::Tensor* tensor) { return tensor != nullptr && tensor->defined(); }

/// A state: `numel` contiguous elements of `dtype` on p's device.
void check_state(const char* op, const char* argument, const at::Tensor* state,
                 at::ScalarType dtype, const c10::SymInt& numel, at::Device device) {
  LOWBIT_CHECK(is_given(state), op, argument, "a tensor", "none");
  check_device(op, argument, *state, device);
  check_dtype(op, argument, *state, dtype);
  LOWBIT_CHECK(state->sym_numel() == numel, op, argument, c10::str(numel, " elements long"),
               c10::str("shape ", state->sym_sizes()));
  LOWBIT_CHECK(state->is_contiguous(), op, argument, "contiguous", "a view with other strides");
}

/// The same questions without names and symbols, for the tensors of every step; false leaves the
/// answer to check_operand.
bool is_plain(const OptimizerCall& call, const OptimizerOperand& t, at::Device device,
              at::ScalarType dtype) {
  const at::Tensor &p = *t.p, &g = *t.g;
  const c10::TensorImpl* impl = p.unsafeGetTensorImpl();
  if (impl->has_symbolic_sizes_strides() || p.device() != device || g.device() != device) {
    return false;
  }
  if (p.scalar_type() != dtype || g.scalar_type() != dtype || !is_kernel_dtype(dtype) ||
      g.layout() != at::kStrided || g.sizes() != p.sizes()) {
    return false;
  }
  const int64_t numel = p.numel(), rows = kernels::state1_rows(call.kind);
  const auto fits = [&](const at::Tensor* state, at::ScalarType wanted, int64_t size) {
    return is_given(state) && state->scalar_type() == wanted && state->device() == device &&
           state->numel() == size && state->is_contiguous();
  };
  const bool second = has_second_state(call.kind);
  const at::ScalarType kept = call.blockwise ? at::kByte : at::kFloat;
  if (!fits(t.state1, kept, numel * rows) || (second && !fits(t.state2, kept, numel))) return false;
  if (call.blockwise) {
    const int64_t blocks = kernels::ceil_div(numel, kernels::kOptimizerBlocksize);
    if (!fits(t.absmax1, at::kFloat, blocks * rows)) return false;
    if (second && !fits(t.absmax2, at::kFloat, blocks)) return false;
  }
  return !is_given(t.unorm) || fits(t.unorm, at::kFloat, 1);
}

void check_operand(const char* op, const OptimizerCall& call, const OptimizerOperand& t) {
  const at::Tensor &p = *t.p, &g = *t.g;
  check_float(op, "p", p);
  const at::Device device = p.device();
  LOWBIT_CHECK(g.layout() == at::kStrided, op, "g", "a dense tensor", g.layout(),
               "Sparse gradients are not supported: use dense ones.");
  check_device(op, "g", g, device);
  check_dtype(op, "g", g, p.scalar_type());
  LOWBIT_CHECK(g.sym_sizes() == p.sym_sizes(), op, "g", c10::str("of p's shape ", p.sym_sizes()),
               c10::str("shape ", g.sym_sizes()));
  const c10::SymInt numel = p.sym_numel();
  const int64_t rows = kernels::state1_rows(call.kind);
  const at::ScalarType dtype = call.blockwise ? at::kByte : at::kFloat;
  check_state(op, "state1", t.state1, dtype, numel * rows, device);
  const bool second = has_second_state(call.kind);
  if (second) check_state(op, "state2", t.state2, dtype, numel, device);
  if (call.blockwise) {
    constexpr int64_t kBlocksize = kernels::kOptimizerBlocksize;
    const c10::SymInt blocks = (numel + (kBlocksize - 1)) / kBlocksize;
    check_state(op, "absmax1", t.absmax1, at::kFloat, blocks * rows, device);
    if (second) check_state(op, "absmax2", t.absmax2, at::kFloat, blocks, device);
  }
  if (is_given(t.unorm)) check_state(op, "unorm_vec", t.unorm, at::kFloat, 1, device);
}

void check_map(const char* op, const char* argument, const at::Tensor& map, at::Device device) {
  check_state(op, argument, &map, at::kFloat, 256, device);
}

/// Memory of dense operands, with copies of the others.
struct Operands {
  std::vector<kernels::OptimizerTensor> tensors;
  std::vector<std::pair<at::Tensor, at::Tensor>> back;  ///< p and the copy that was updated
  std::vector<at::Tensor> owners;

  explicit Operands(const OptimizerCall& call) {
    tensors.reserve(call.tensors.size());
    back.reserve(call.tensors.size());  // so that none of them moves
    owners.reserve(call.tensors.size());
    const auto memory = [](const at::Tensor* t) {
      return is_given(t) ? t->mutable_data_ptr() : nullptr;
    };
    for (const OptimizerOperand& t : call.tensors) {
      const at::Tensor *p = t.p, *g = t.g;
      if (!p->is_contiguous()) p = &back.emplace_back(*p, p->contiguous()).second;
      if (!g->is_contiguous()) g = &owners.emplace_back(g->contiguous());
      tensors.push_back({.p = p->mutable_data_ptr(),
                         .g = g->const_data_ptr(),
                         .state1 = memory(t.state1),
                         .state2 = memory(t.state2),
                         .absmax1 = static_cast<float*>(memory(t.absmax1)),
                         .absmax2 = static_cast<float*>(memory(t.absmax2)),
                         .unorm = static_cast<float*>(memory(t.unorm)),
                         .numel = p->numel(),
                         .hyper = t.hyper});
    }
  }
};

void step_on_cpu(const char* op, kernels::OptimizerParams& params) {
  const int64_t chunks = optimizer_chunks(params);
  const int64_t grain = grain_of(kernels::kOptimizerChunk);
  const Workspace workspace(optimizer_workspace_bytes(params));
  params.workspace = workspace.data();
  if (params.workspace != nullptr) {
    for_units(op, chunks, grain, [&](int64_t begin, int64_t end) {
      return kernels::cpu::optimizer_norms(params, begin, end);
    });
    check_status(op, kernels::cpu::optimizer_limits(params, 0, params.ntensors));
  }
  for_units(op, chunks, grain, [&](int64_t begin, int64_t end) {
    return kernels::cpu::optimizer_step(params, begin, end);
  });
}

void step_on(const char* op, at::Device device, kernels::OptimizerParams& params) {
  if constexpr (kHasCuda) {
    if (device.is_cuda()) {
      const int64_t bytes = optimizer_workspace_bytes(params);
      const at::Tensor workspace =
          bytes > 0 ? cuda::empty({bytes}, at::kByte, device) : at::Tensor();
      params.workspace = workspace.defined() ? workspace.mutable_data_ptr() : nullptr;
      const cuda::Scope scope(op, device);
      return cuda::check_launch(op, kernels::cuda::optimizer_step(params, scope.stream()));
    }
  }
  step_on_cpu(op, params);
}

}  // namespace

OptimizerRule parse_optimizer(const char* op, std::string_view name) {
  for (const auto& [known, rule] : kRules) {
    if (known == name) return rule;
  }
  LOWBIT_CHECK(false, op, "optimizer_name",
               "\"adam\", \"lamb\", \"ademamix\", \"momentum\", \"lars\", \"rmsprop\", "
               "\"adagrad\" or \"lion\"",
               c10::str('"', name, '"'));
}

void check_optimizer_call(const char* op, const OptimizerCall& call) {
  for (const OptimizerHyper& h : call.hypers) {
    LOWBIT_CHECK(h.step >= 1 || h.step_value != nullptr, op, "step", "at least 1", h.step);
    LOWBIT_CHECK(!(h.max_unorm > 0) || has_update_limit(call.kind), op, "max_unorm",
                 "0 for this optimizer", h.max_unorm);
  }
  if (call.tensors.empty()) return;
  const at::Tensor& first = *call.tensors[0].p;
  if (call.blockwise) {
    check_map(op, "qmap1", call.map1, first.device());
    if (has_second_state(call.kind)) check_map(op, "qmap2", call.map2, first.device());
  }
  for (const OptimizerOperand& t : call.tensors) {
    if (is_plain(call, t, first.device(), first.scalar_type())) continue;
    check_device(op, "p", *t.p, first.device());
    check_dtype(op, "p", *t.p, first.scalar_type());
    check_operand(op, call, t);
  }
}

void optimizer_step(const char* op, const OptimizerCall& call) {
  check_optimizer_call(op, call);
  run_optimizer_call(op, call);
}

void run_optimizer_call(const char* op, const OptimizerCall& call) {
  if (call.tensors.empty()) return;
  const at::NoGradGuard no_grad;
  const Operands operands(call);
  const auto floats = [](const at::Tensor& t) {
    return t.defined() ? static_cast<const float*>(t.const_data_ptr()) : nullptr;
  };
  kernels::OptimizerParams params{.kind = call.kind,
                                  .blockwise = call.blockwise,
                                  .dtype = kernel_dtype(call.tensors[0].p->scalar_type()),
                                  .tensors = operands.tensors.data(),
                                  .ntensors = static_cast<int64_t>(operands.tensors.size()),
                                  .hypers = call.hypers.data(),
                                  .nhypers = static_cast<int64_t>(call.hypers.size()),
                                  .map1 = floats(call.map1),
                                  .map2 = floats(call.map2)};
  step_on(op, call.tensors[0].p->device(), params);
  for (const auto& [p, copy] : operands.back) p.copy_(copy);
  for (const OptimizerOperand& t : call.tensors) {
    if (!t.p->is_inference()) t.p->unsafeGetTensorImpl()->bump_version();
  }
}

namespace {

using OptionalTensor = std::optional<at::Tensor>;

/// The float arguments of every schema here.
OptimizerHyper hyper_of(double beta1, double beta2, double beta3, double alpha, double eps,
                        double weight_decay, int64_t step, double lr, double gnorm_scale,
                        double max_unorm, bool skip_zeros) {
  return {.lr = static_cast<float>(lr),
          .beta1 = static_cast<float>(beta1),
          .beta2 = static_cast<float>(beta2),
          .beta3 = static_cast<float>(beta3),
          .alpha = static_cast<float>(alpha),
          .eps = static_cast<float>(eps),
          .weight_decay = static_cast<float>(weight_decay),
          .step = step,
          .gnorm_scale = static_cast<float>(gnorm_scale),
          .max_unorm = static_cast<float>(max_unorm),
          .skip_zeros = skip_zeros};
}

/// What is done with a call: optimizer_step, or on the meta device only its checks.
using Run = void (*)(const char* op, const OptimizerCall& call);

template <Run kRun>
void update_32bit(std::string_view optimizer_name, const at::Tensor& g, const at::Tensor& p,
                  const at::Tensor& state1, const OptionalTensor& state2,
                  const OptionalTensor& unorm_vec, double max_unorm, double param_norm,
                  double beta1, double beta2, double beta3, double alpha, double eps,
                  double weight_decay, int64_t step, double lr, double gnorm_scale,
                  bool skip_zeros) {
  constexpr const char* kOp = "lowbit::optimizer_update_32bit";
  OptimizerCall call{.kind = parse_optimizer(kOp, optimizer_name).kind};
  call.hypers = {hyper_of(beta1, beta2, beta3, alpha, eps, weight_decay, step, lr, gnorm_scale,
                          max_unorm, skip_zeros)};
  call.hypers[0].param_norm = static_cast<float>(param_norm);
  call.tensors = {{.p = &p,
                   .g = &g,
                   .state1 = &state1,
                   .state2 = &value_or_undefined(state2),
                   .unorm = &value_or_undefined(unorm_vec)}};
  kRun(kOp, call);
}

template <Run kRun>
void update_8bit_blockwise(std::string_view optimizer_name, const at::Tensor& g,
                           const at::Tensor& p, const at::Tensor& state1,
                           const OptionalTensor& state2, double beta1, double beta2, double beta3,
                           double alpha, double eps, int64_t step, double lr,
                           const at::Tensor& qmap1, const OptionalTensor& qmap2,
                           const at::Tensor& absmax1, const OptionalTensor& absmax2,
                           double weight_decay, double gnorm_scale, bool skip_zeros) {
  constexpr const char* kOp = "lowbit::optimizer_update_8bit_blockwise";
  const OptimizerRule rule = parse_optimizer(kOp, optimizer_name);
  LOWBIT_CHECK(!rule.limited, kOp, "optimizer_name", "an optimizer without update limit",
               c10::str('"', optimizer_name, '"'),
               "optimizer_step_multi_tensor_8bit takes max_unorm.");
  OptimizerCall call{.kind = rule.kind, .blockwise = true};
  call.hypers = {hyper_of(beta1, beta2, beta3, alpha, eps, weight_decay, step, lr, gnorm_scale, 0,
                          skip_zeros)};
  call.tensors = {{.p = &p,
                   .g = &g,
                   .state1 = &state1,
                   .state2 = &value_or_undefined(state2),
                   .absmax1 = &absmax1,
                   .absmax2 = &value_or_undefined(absmax2)}};
  call.map1 = qmap1;
  call.map2 = value_or_undefined(qmap2);
  kRun(kOp, call);
}

/// Lists of the multi-tensor ops: as long as p, or empty where the rule needs nothing.
void fill(const char* op, const char* argument, at::TensorList list, OptimizerCall& call,
          const at::Tensor* OptimizerOperand::*member) {
  LOWBIT_CHECK(list.empty() || list.size() == call.tensors.size(), op, argument,
               c10::str("a list of ", call.tensors.size(), " tensors, or empty"),
               c10::str(list.size(), " tensors"));
  for (size_t i = 0; i < list.size(); ++i) call.tensors[i].*member = &list[i];
}

/// A float32 scalar on the device of the tensors.
const float* value_pointer(const char* op, const char* argument, const OptionalTensor& value,
                           const OptimizerCall& call) {
  if (!value.has_value() || !value->defined() || call.tensors.empty()) return nullptr;
  check_state(op, argument, &*value, at::kFloat, 1, call.tensors[0].p->device());
  return value->is_meta() ? nullptr : static_cast<const float*>(value->const_data_ptr());
}

struct Values {
  const OptionalTensor &lr, &step, &gnorm_scale;
};

void fill(const char* op, OptimizerCall& call, at::TensorList g, at::TensorList p,
          at::TensorList state1, at::TensorList state2, at::TensorList unorm_vec,
          const Values& values) {
  call.tensors.resize(p.size());
  fill(op, "p", p, call, &OptimizerOperand::p);
  LOWBIT_CHECK(g.size() == p.size(), op, "g", c10::str("a list of ", p.size(), " tensors"),
               c10::str(g.size(), " tensors"));
  fill(op, "g", g, call, &OptimizerOperand::g);
  fill(op, "state1", state1, call, &OptimizerOperand::state1);
  fill(op, "state2", state2, call, &OptimizerOperand::state2);
  fill(op, "unorm_vec", unorm_vec, call, &OptimizerOperand::unorm);
  OptimizerHyper& h = call.hypers[0];
  h.lr_value = value_pointer(op, "lr_value", values.lr, call);
  h.step_value = value_pointer(op, "step_value", values.step, call);
  h.gnorm_scale_value = value_pointer(op, "gnorm_scale_value", values.gnorm_scale, call);
}

template <Run kRun>
void step_multi_tensor_32bit(std::string_view optimizer_name, at::TensorList g, at::TensorList p,
                             at::TensorList state1, at::TensorList state2, at::TensorList unorm_vec,
                             double max_unorm, double beta1, double beta2, double beta3,
                             double alpha, double eps, double weight_decay, int64_t step, double lr,
                             double gnorm_scale, bool skip_zeros, const OptionalTensor& lr_value,
                             const OptionalTensor& step_value,
                             const OptionalTensor& gnorm_scale_value) {
  constexpr const char* kOp = "lowbit::optimizer_step_multi_tensor_32bit";
  OptimizerCall call{.kind = parse_optimizer(kOp, optimizer_name).kind};
  call.hypers = {hyper_of(beta1, beta2, beta3, alpha, eps, weight_decay, step, lr, gnorm_scale,
                          max_unorm, skip_zeros)};
  fill(kOp, call, g, p, state1, state2, unorm_vec, {lr_value, step_value, gnorm_scale_value});
  kRun(kOp, call);
}

template <Run kRun>
void step_multi_tensor_8bit(std::string_view optimizer_name, at::TensorList g, at::TensorList p,
                            at::TensorList state1, at::TensorList state2, const at::Tensor& qmap1,
                            const OptionalTensor& qmap2, at::TensorList absmax1,
                            at::TensorList absmax2, at::TensorList unorm_vec, double max_unorm,
                            double beta1, double beta2, double beta3, double alpha, double eps,
                            double weight_decay, int64_t step, double lr, double gnorm_scale,
                            bool skip_zeros, const OptionalTensor& lr_value,
                            const OptionalTensor& step_value,
                            const OptionalTensor& gnorm_scale_value) {
  constexpr const char* kOp = "lowbit::optimizer_step_multi_tensor_8bit";
  OptimizerCall call{.kind = parse_optimizer(kOp, optimizer_name).kind, .blockwise = true};
  call.hypers = {hyper_of(beta1, beta2, beta3, alpha, eps, weight_decay, step, lr, gnorm_scale,
                          max_unorm, skip_zeros)};
  fill(kOp, call, g, p, state1, state2, unorm_vec, {lr_value, step_value, gnorm_scale_value});
  fill(kOp, "absmax1", absmax1, call, &OptimizerOperand::absmax1);
  fill(kOp, "absmax2", absmax2, call, &OptimizerOperand::absmax2);
  call.map1 = qmap1;
  call.map2 = value_or_undefined(qmap2);
  kRun(kOp, call);
}

}  // namespace
}  // namespace lowbit::ops

TORCH_LIBRARY_IMPL(lowbit, CPU, m) {
  using namespace lowbit::ops;
  m.impl("optimizer_update_32bit", &update_32bit<optimizer_step>);
  m.impl("optimizer_update_8bit_blockwise", &update_8bit_blockwise<optimizer_step>);
  m.impl("optimizer_step_multi_tensor_32bit", &step_multi_tensor_32bit<optimizer_step>);
  m.impl("optimizer_step_multi_tensor_8bit", &step_multi_tensor_8bit<optimizer_step>);
}

#ifdef LOWBIT_HAS_CUDA
TORCH_LIBRARY_IMPL(lowbit, CUDA, m) {
  using namespace lowbit::ops;
  m.impl("optimizer_update_32bit", &update_32bit<optimizer_step>);
  m.impl("optimizer_update_8bit_blockwise", &update_8bit_blockwise<optimizer_step>);
  m.impl("optimizer_step_multi_tensor_32bit", &step_multi_tensor_32bit<optimizer_step>);
  m.impl("optimizer_step_multi_tensor_8bit", &step_multi_tensor_8bit<optimizer_step>);
}
#endif

TORCH_LIBRARY_IMPL(lowbit, Meta, m) {
  using namespace lowbit::ops;
  m.impl("optimizer_update_32bit", &update_32bit<check_optimizer_call>);
  m.impl("optimizer_update_8bit_blockwise", &update_8bit_blockwise<check_optimizer_call>);
  m.impl("optimizer_step_multi_tensor_32bit", &step_multi_tensor_32bit<check_optimizer_call>);
  m.impl("optimizer_step_multi_tensor_8bit", &step_multi_tensor_8bit<check_optimizer_call>);
}
