// State dicts of an optimizer: out of it, into it, and through torch's archives.
#include "optim/state.h"

#include <ATen/ATen.h>
#include <torch/serialize/archive.h>

#include "lowbit/kernels/optimizer.h"
#include "lowbit/optim/optimizer.h"
#include "ops/optimizer.h"
#include "optim/flat_state.h"
#include "optim/paging.h"
#include "optim/update.h"

namespace lowbit::optim {
namespace {

std::vector<double> values_of(const OptionField& field) {
  return std::visit(
      [](auto* value) -> std::vector<double> {
        using T = std::remove_pointer_t<decltype(value)>;
        if constexpr (std::is_same_v<T, double>) {
          return {*value};
        } else if constexpr (std::is_same_v<T, Betas>) {
          return {std::get<0>(*value), std::get<1>(*value)};
        } else if constexpr (std::is_same_v<T, ThreeBetas>) {
          return {std::get<0>(*value), std::get<1>(*value), std::get<2>(*value)};
        } else {
          return value->has_value() ? std::vector<double>{static_cast<double>(**value)}
                                    : std::vector<double>{};
        }
      },
      field.value);
}

/// False when there are too few values.
bool assign(const OptionField& field, const std::vector<double>& values) {
  return std::visit(
      [&](auto* value) {
        using T = std::remove_pointer_t<decltype(value)>;
        if constexpr (std::is_same_v<T, double>) {
          if (values.empty()) return false;
          *value = values[0];
        } else if constexpr (std::is_same_v<T, Betas>) {
          if (values.size() < 2) return false;
          *value = {values[0], values[1]};
        } else if constexpr (std::is_same_v<T, ThreeBetas>) {
          if (values.size() < 3) return false;
          *value = {values[0], values[1], values[2]};
        } else {
          value->reset();
          if (!values.empty()) *value = static_cast<int64_t>(values[0]);
        }
        return true;
      },
      field.value);
}

/// The options of a group as the ecosystem writes them: every key that its optimizers read.
std::map<std::string, std::vector<double>> options_of(const Options& options, bool second_state) {
  const StepValues v = options.values();
  std::map<std::string, std::vector<double>> entries{{"betas", {v.beta1, v.beta2}},
                                                     {"eps", {v.eps}}};
  if (second_state) {
    entries["alpha"] = {v.alpha};
    entries["t_alpha"] = entries["t_beta3"] = {};
  }
  const auto copy = options.clone();
  for (const OptionField& field : static_cast<Options&>(*copy).fields()) {
    if (const auto values = values_of(field);
        field.name != std::string("betas") || values.size() > 1) {
      entries[field.name] = values;
    }
  }
  return entries;
}

}  // namespace

OptimizerStateDict Optimizer::state_dict() const {
  OptimizerStateDict dict;
  dict.algorithm = variant_.algorithm;
  const bool second =
      has_second_state(ops::parse_optimizer(name_.c_str(), variant_.algorithm).kind);
  int64_t number = 0;
  std::map<const void*, int64_t> counts;  // of capturable states, each read once
  const auto steps_of = [&](const State& state) {
    if (!state.step_value.defined()) return state.step;
    const auto [found, is_new] = counts.emplace(state.step_value.unsafeGetTensorImpl(), 0);
    if (is_new) found->second = state.step_value.item<int64_t>();
    return found->second;
  };
  for (const auto& group : param_groups_) {
    ParameterGroup& entry = dict.param_groups.emplace_back();
    entry.options = optim::options_of(static_cast<const Options&>(group.options()), second);
    for (const at::Tensor& p : group.params()) {
      if (const auto found = state_.find(p.unsafeGetTensorImpl()); found != state_.end()) {
        const auto& state = static_cast<const State&>(*found->second);
        ParameterState& out = dict.state[number];
        out.step = steps_of(state);
        for_each_tensor(state, [&](const char* name, const at::Tensor& tensor) {
          if (tensor.defined()) out.tensors[name] = tensor;
        });
      }
      entry.params.push_back(number++);
    }
  }
  return dict;
}

/// Moves a loaded state to where a new one would be made.
void Optimizer::page(const Update& update, State& state, int64_t& managed) {
  if (!is_paged(update.config, update.p)) return;
  const auto bytes_of = [](const at::Tensor& t) {
    return t.defined() ? static_cast<int64_t>(t.nbytes()) : 0;
  };
  const int64_t bytes = bytes_of(state.state1) + bytes_of(state.state2);
  PagedMemory memory = choose_paged(update.config, update.p.device(), bytes, managed);
  for (at::Tensor* t : {&state.state1, &state.state2}) {
    if (!t->defined()) continue;
    const at::Tensor paged =
        paged_zeros(name_.c_str(), t->sizes(), t->scalar_type(), t->device(), memory);
    *t = paged.copy_(*t);
  }
  state.paged = memory;
  if (memory == PagedMemory::kManaged) managed += bytes;
}

void Optimizer::load_state_dict(const OptimizerStateDict& dict) {
  const char* op = name_.c_str();
  const auto kind = ops::parse_optimizer(op, variant_.algorithm).kind;
  LOWBIT_CHECK(dict.algorithm.empty() || dict.algorithm == variant_.algorithm, op, "state dict",
               c10::str("of the algorithm \"", variant_.algorithm, '"'),
               c10::str('"', dict.algorithm, '"'));
  LOWBIT_CHECK(dict.param_groups.size() == param_groups_.size(), op, "state dict",
               c10::str("of ", param_groups_.size(), " parameter groups"),
               c10::str(dict.param_groups.size(), " groups"));

  const at::NoGradGuard no_grad;
  // Everything is made and checked before anything is taken.
  std::vector<std::pair<void*, std::unique_ptr<State>>> states;
  std::vector<std::unique_ptr<torch::optim::OptimizerOptions>> options;
  int64_t managed = 0;
  for (size_t i = 0; i < param_groups_.size(); ++i) {
    const ParameterGroup& entry = dict.param_groups[i];
    const auto& params = param_groups_[i].params();
    LOWBIT_CHECK(entry.params.size() == params.size(), op, "state dict",
                 c10::str("of ", params.size(), " parameters in group ", i),
                 c10::str(entry.params.size(), " parameters"));
    options.push_back(param_groups_[i].options().clone());
    auto& copy = static_cast<Options&>(*options.back());
    for (const OptionField& field : copy.fields()) {
      if (const auto found = entry.options.find(field.name); found != entry.options.end()) {
        LOWBIT_CHECK(assign(field, found->second), op, field.name, "enough numbers",
                     c10::str(found->second.size(), " of them"));
      }
    }
    copy.check(op);
    for (size_t j = 0; j < params.size(); ++j) {
      const auto found = dict.state.find(entry.params[j]);
      if (found == dict.state.end()) continue;
      states.emplace_back(params[j].unsafeGetTensorImpl(), std::make_unique<State>());
      State& state = *states.back().second;
      state.step = found->second.step;
      LOWBIT_CHECK(state.step >= 0, op, "step", "at least 0", state.step);
      for_each_tensor(state, [&](const char* name, at::Tensor& tensor) {
        const auto given = found->second.tensors.find(name);
        if (given == found->second.tensors.end()) return;
        tensor = given->second.detach()
                     .to(params[j].device(), given->second.scalar_type(),
                         /*non_blocking=*/false, /*copy=*/true)
                     .contiguous();
      });
      LOWBIT_CHECK(state.state1.defined(), op, "state1",
                   c10::str("a tensor for parameter ", entry.params[j]), "none");
      ops::OptimizerCall call{.kind = kind, .blockwise = state.blockwise()};
      call.map1 = state.qmap1;
      call.map2 = state.qmap2;
      call.tensors = {{.p = &params[j],
                       .g = &params[j],
                       .state1 = &state.state1,
                       .state2 = &state.state2,
                       .absmax1 = &state.absmax1,
                       .absmax2 = &state.absmax2,
                       .unorm = &state.unorm_vec}};
      ops::check_optimizer_call(op, call);
      LOWBIT_CHECK(has_second_state(kind) || !state.state2.defined(), op, "state2",
                   "absent for this optimizer", "a tensor");
      page(update_of(i, params[j]), state, managed);
    }
  }

  state_.clear();
  for (auto& [key, state] : states) {
    // Maps are shared between the parameters, as they were: one call updates all of them.
    for (at::Tensor* qmap : {&state->qmap1, &state->qmap2}) {
      if (!qmap->defined()) continue;
      for (const bool is_signed : {true, false}) {
        const at::Tensor ours = map(is_signed, qmap->device());
        if (at::equal(ours, *qmap)) *qmap = ours;
      }
    }
    state_[key] = std::move(state);
  }
  for (size_t i = 0; i < param_groups_.size(); ++i) {
    param_groups_[i].set_options(std::move(options[i]));
  }
}

void Optimizer::save(torch::serialize::OutputArchive& archive) const {
  const FlatState flat = flatten(state_dict());
  c10::List<std::string> names;
  for (const auto& [name, tensor] : flat.tensors) {
    archive.write("tensors/" + std::to_string(names.size()), tensor, /*is_buffer=*/true);
    names.push_back(name);
  }
  archive.write("names", c10::IValue(names));
  for (const auto& [name, text] : flat.texts) archive.write(name, c10::IValue(text));
}

void Optimizer::load(torch::serialize::InputArchive& archive) {
  FlatState flat;
  c10::IValue names;
  LOWBIT_CHECK(archive.try_read("names", names) && names.isList(), name_, "archive",
               "written by an optimizer of lowbit", "something else");
  const auto list = names.toListRef();
  for (size_t i = 0; i < list.size(); ++i) {
    at::Tensor tensor;
    archive.read("tensors/" + std::to_string(i), tensor, /*is_buffer=*/true);
    flat.tensors[list[i].toStringRef()] = tensor;
  }
  for (const char* name : {"algorithm", "param_groups"}) {
    c10::IValue text;
    archive.read(name, text);
    flat.texts[name] = text.toStringRef();
  }
  load_state_dict(unflatten(flat, "archive"));
}

}  // namespace lowbit::optim
