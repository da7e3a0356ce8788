// Optimizer steps on a GPU beside torch's fused AdamW and the copy bandwidth, in one run. Bytes are
// those that must move: p and states in and out, g in. Usage: optimizer_cuda_bench [elements]
#include <ATen/ATen.h>
#include <ATen/cuda/CUDAEvent.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "lowbit/optim/optimizers.h"

namespace {

using namespace lowbit::optim;
using Params = std::vector<at::Tensor>;

struct Times {
  double device;  ///< between two events, the host waiting for each step: its work counts
  double host;    ///< until the call returns
};

/// Medians of 21 timings, in seconds.
Times time(const std::function<void()>& work) {
  std::vector<double> device, host;
  for (int i = 0; i < 24; ++i) {
    at::cuda::CUDAEvent begin(cudaEventDefault), end(cudaEventDefault);
    begin.record();
    const auto start = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    end.record();
    end.synchronize();
    if (i < 3) continue;
    device.push_back(begin.elapsed_time(end) * 1e-3);
    host.push_back(passed.count());
  }
  std::sort(device.begin(), device.end());
  std::sort(host.begin(), host.end());
  return {device[device.size() / 2], host[host.size() / 2]};
}

Params parameters(int64_t elements, int64_t tensors) {
  Params params;
  const auto options = at::device(at::kCUDA).dtype(at::kBFloat16);
  for (int64_t i = 0; i < tensors; ++i) {
    params.push_back((at::randn({elements / tensors}, options) * 0.02).requires_grad_());
    params.back().mutable_grad() = at::randn({elements / tensors}, options) * 0.01;
  }
  return params;
}

double time_of_fused_adamw(const Params& params) {
  Params p, g, m, v, steps;
  for (const at::Tensor& t : params) {
    p.push_back(t.detach());
    g.push_back(t.grad());
    m.push_back(at::zeros_like(p.back()));
    v.push_back(at::zeros_like(p.back()));
    steps.push_back(at::ones({}, p.back().options().dtype(at::kFloat)));
  }
  const auto step = [&] {
    at::_fused_adamw_(p, g, m, v, {}, steps, /*lr=*/1e-5, /*beta1=*/0.9, /*beta2=*/0.999,
                      /*weight_decay=*/0.01, /*eps=*/1e-8, /*amsgrad=*/false, /*maximize=*/false);
  };
  return time(step).device;
}

struct Case {
  const char* name;
  int64_t elements, tensors;
  double goal_ms;  ///< of the full size
  std::function<std::unique_ptr<Optimizer>(const Params&)> make;
};

template <class Class, class Options>
auto maker(const Options& options) {
  return [options](const Params& params) { return std::make_unique<Class>(params, options); };
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t n = argc > 1 ? std::atoll(argv[1]) : int64_t{1} << 28, lora = 42'000'000;
  const auto pinned = AdamWOptions(1e-5).paged_memory(PagedMemory::kPinned);
  const std::vector<Case> cases = {
      {"AdamW8bit", n, 1, 0.85, maker<AdamW8bit>(AdamWOptions(1e-5))},
      {"AdamW8bit, 448 tensors", lora, 448, 0.25, maker<AdamW8bit>(AdamWOptions(1e-5))},
      {"AdamW32bit", n, 1, 1.6, maker<AdamW32bit>(AdamWOptions(1e-5))},
      {"Lion8bit", n, 1, 0.65, maker<Lion8bit>(LionOptions(1e-5))},
      {"SGD8bit", n, 1, 0.65, maker<SGD8bit>(SGDOptions(1e-5).momentum(0.9))},
      {"AdEMAMix8bit", n, 1, 1.1, maker<AdEMAMix8bit>(AdEMAMixOptions(1e-5))},
      {"RMSprop8bit", n, 1, 0, maker<RMSprop8bit>(RMSpropOptions(1e-5))},
      {"LAMB8bit", n, 1, 0, maker<LAMB8bit>(LAMBOptions(1e-5))},
      {"PagedAdamW8bit, managed", n, 1, 0, maker<PagedAdamW8bit>(AdamWOptions(1e-5))},
      {"PagedAdamW8bit, pinned", n, 1, 0, maker<PagedAdamW8bit>(pinned)}};
  const at::Tensor from = at::randn({n}, at::device(at::kCUDA).dtype(at::kBFloat16));
  at::Tensor to = at::empty_like(from);
  const double ceiling = 4.0 * static_cast<double>(n) / time([&] { to.copy_(from); }).device;
  std::printf("copy: %.2f TB/s\n", ceiling / 1e12);
  std::printf(
      "| optimizer | elements | ms | host ms | TB/s | %% of copy | goal ms | torch fused AdamW ms "
      "| "
      "ratio |\n"
      "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
  int64_t fused_elements = 0, fused_tensors = 0;
  double fused = 0;
  for (const Case& c : cases) {
    const Params params = parameters(c.elements, c.tensors);
    if (c.elements != fused_elements || c.tensors != fused_tensors) {
      fused = time_of_fused_adamw(params);
      fused_elements = c.elements, fused_tensors = c.tensors;
    }
    const auto optimizer = c.make(params);
    const auto [t, host] = time([&] { optimizer->step(); });
    const double bytes =
        6.0 * static_cast<double>(c.elements) + 2.0 * static_cast<double>(optimizer->state_bytes());
    std::printf("| %s | %lld | %.3f | %.3f | %.2f | %.0f | %.2f | %.3f | %.2f |\n", c.name,
                static_cast<long long>(c.elements), t * 1e3, host * 1e3, bytes / t / 1e12,
                100 * bytes / t / ceiling, c.goal_ms, fused * 1e3, fused / t);
    std::fflush(stdout);
  }
}
