// lowbit bench optimizer: steps beside torch's fused AdamW and memory copies timed in the same run.
#include <ATen/ATen.h>

#include <map>
#include <memory>

#include "cli/bench_report.h"
#include "cli/commands.h"
#include "cli/load.h"
#include "cli/stopwatch.h"
#include "lowbit/optim/optimizers.h"

namespace lowbit::cli {
namespace {

using Params = std::vector<at::Tensor>;
using Maker = std::function<std::unique_ptr<optim::Optimizer>(const Params&)>;

template <class Class, class Options>
Maker maker(const Options& options) {
  return [options](const Params& params) { return std::make_unique<Class>(params, options); };
}

const std::map<std::string, Maker>& makers() {
  using namespace optim;
  static const std::map<std::string, Maker> all = {
      {"adamw8bit", maker<AdamW8bit>(AdamWOptions(1e-5))},
      {"adamw32bit", maker<AdamW32bit>(AdamWOptions(1e-5))},
      {"paged_adamw8bit", maker<PagedAdamW8bit>(AdamWOptions(1e-5))},
      {"pinned_adamw8bit",
       maker<PagedAdamW8bit>(AdamWOptions(1e-5).paged_memory(PagedMemory::kPinned))},
      {"ademamix8bit", maker<AdEMAMix8bit>(AdEMAMixOptions(1e-5))},
      {"lion8bit", maker<Lion8bit>(LionOptions(1e-5))},
      {"lion32bit", maker<Lion32bit>(LionOptions(1e-5))},
      {"lamb8bit", maker<LAMB8bit>(LAMBOptions(1e-5))},
      {"lars8bit", maker<LARS8bit>(LARSOptions(1e-5).momentum(0.9))},
      {"sgd8bit", maker<SGD8bit>(SGDOptions(1e-5).momentum(0.9))},
      {"rmsprop8bit", maker<RMSprop8bit>(RMSpropOptions(1e-5))},
      {"adagrad8bit", maker<Adagrad8bit>(AdagradOptions(1e-5))}};
  return all;
}

/// torch's fused kernel, with states of the parameters' dtype.
struct FusedAdamW {
  explicit FusedAdamW(const Params& params) {
    for (const at::Tensor& p : params) {
      p_.push_back(p.detach());
      g_.push_back(p.grad());
      m_.push_back(at::zeros_like(p_.back()));
      v_.push_back(at::zeros_like(p_.back()));
      steps_.push_back(at::ones({}, p_.back().options().dtype(at::kFloat)));
    }
  }
  void step() {
    at::_foreach_add_(steps_, 1);
    at::_fused_adamw_(p_, g_, m_, v_, {}, steps_, /*lr=*/1e-5, /*beta1=*/0.9, /*beta2=*/0.999,
                      /*weight_decay=*/0.01, /*eps=*/1e-8, /*amsgrad=*/false, /*maximize=*/false);
  }
  Params p_, g_, m_, v_, steps_;
};

struct OptimizerBench {
  std::vector<std::string> names = {"adamw8bit", "adamw32bit", "ademamix8bit", "lion8bit",
                                    "sgd8bit"};
  int64_t elements = 0, tensors = 1;
  std::string dtype = "bfloat16";
  BenchOptions bench;

  void operator()() const {
    const at::Device place = bench.begin();
    const bool on_cuda = place.is_cuda();
    const int64_t count = elements > 0 ? elements : on_cuda ? int64_t{1} << 28 : int64_t{1} << 24;
    const auto options = at::TensorOptions().dtype(llm::dtype_from_name(dtype)).device(place);
    const int64_t each = count / tensors;
    Params params;
    for (int64_t i = 0; i < tensors; ++i) {
      params.push_back((at::randn({each}, options) * 0.02).requires_grad_());
      params.back().mutable_grad() = at::randn({each}, options) * 0.01;
    }
    const at::Tensor from = at::randn({count}, options), to = at::empty({count}, options);
    const auto numel = static_cast<double>(each * tensors);
    const auto item = static_cast<double>(from.element_size());
    FusedAdamW fused(params);
    const Stopwatch watch(place, bench.seconds);
    BenchReport report("optimizer", place,
                       {"optimizer", "tensors", "elements", "us", "spread %", "rate", "% of copy",
                        "state B/param", "torch fused us", "ratio"},
                       {{"dtype", dtype}, {"tensors", tensors}, {"elements", count}});
    report.add_ceiling("copy", watch.copy_rate(), "B");
    report.add_note(
        "Bytes are those that must move: parameters and states twice, gradients once. "
        "torch's fused AdamW keeps its states in the parameters' dtype.");
    for (const std::string& name : names) {
      const auto optimizer = makers().at(name)(params);
      const auto t = watch({[&](int64_t) { optimizer->step(); },
                            [&](int64_t) { at::Tensor(to).copy_(from, true); },
                            [&](int64_t) { fused.step(); }});
      const auto states = static_cast<double>(optimizer->state_bytes());
      // p and states are read and written, g is read.
      const double bytes = 3 * item * numel + 2 * states, rate = bytes / t[0].median;
      const double ceiling = 2 * item * static_cast<double>(count) / t[1].median;
      report.add({name, std::to_string(tensors), std::to_string(count), fixed(t[0].median * 1e6, 0),
                  fixed(100 * t[0].spread, 0), rate_text(rate, "B"), fixed(100 * rate / ceiling, 0),
                  fixed(states / numel, 3), fixed(t[2].median * 1e6, 0),
                  fixed(t[2].median / t[0].median, 2) + "x"},
                 {{"optimizer", name},
                  {"tensors", tensors},
                  {"elements", count},
                  {"dtype", dtype},
                  {"seconds", t[0].median},
                  {"spread", t[0].spread},
                  {"bytes_per_s", rate},
                  {"part_of_copy", rate / ceiling},
                  {"state_bytes_per_parameter", states / numel},
                  {"torch_fused_adamw_seconds", t[2].median},
                  {"ratio", t[2].median / t[0].median}});
    }
    report.print(bench);
  }
};

}  // namespace

void add_bench_optimizer(CLI::App& bench) {
  auto work = std::make_shared<OptimizerBench>();
  auto* command = bench.add_subcommand(
      "optimizer", "Optimizer steps, torch's fused AdamW and memory copies, in one run");
  std::vector<std::string> known;
  for (const auto& [name, make] : makers()) known.push_back(name);
  command->add_option("--optimizers", work->names, "Which, by commas")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::IsMember(known));
  command
      ->add_option("--elements", work->elements, "Parameters in all (default: 2^24, on a GPU 2^28)")
      ->check(CLI::PositiveNumber);
  command->add_option("--tensors", work->tensors, "Tensors that they are in")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--dtype", work->dtype, "Of parameters and gradients")
      ->capture_default_str()
      ->check(CLI::IsMember({"float32", "float16", "bfloat16"}));
  command->footer(
      "Example:\n  lowbit bench optimizer --tensors 448 --elements 42000000 --optimizers "
      "adamw8bit");
  work->bench.add_to(*command);
  command->callback([work] { (*work)(); });
}

}  // namespace lowbit::cli
