#include "cli/stopwatch.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <chrono>
#include <cmath>

namespace lowbit::cli {
namespace {

using clock = std::chrono::steady_clock;

constexpr size_t kCpuSamples = 5, kGpuSamples = 21, kMostSamples = 201;
/// Of a GPU's sample: long beside the resolution of events (half a microsecond).
constexpr double kSampleSeconds = 1e-3;
constexpr int64_t kMostCalls = 32;
/// A slower host than this many copies outlast would be measured, not hidden.
constexpr int64_t kMostCopies = 64;
constexpr int64_t kCpuCopyBytes = int64_t{64} << 20, kGpuCopyBytes = int64_t{256} << 20;
constexpr int64_t kCpuMatmul = 1024, kGpuMatmul = 8192;

double seconds_since(clock::time_point start) {
  return std::chrono::duration<double>(clock::now() - start).count();
}

}  // namespace

Stopwatch::Stopwatch(at::Device device, double seconds) : device_(device), seconds_(seconds) {
  const int64_t bytes = device.is_cpu() ? kCpuCopyBytes : kGpuCopyBytes;
  from_ = at::ones({bytes / 4}, at::device(device).dtype(at::kInt));
  to_ = at::zeros_like(from_);
  const auto copy = (*this)({[&](int64_t) { to_.copy_(from_); }});
  copy_rate_ = 2.0 * static_cast<double>(bytes) / copy[0].median;
}

double Stopwatch::sample(const Work& work, int64_t& next, const Pace& pace) const {
  if (device_.is_cpu()) {
    const auto start = clock::now();
    work(next++);
    return seconds_since(start);
  }
  const c10::DeviceGuard guard(device_);
  const c10::Stream stream = c10::impl::VirtualGuardImpl(device_.type()).getStream(device_);
  c10::Event begin(device_.type(), c10::EventFlag::BACKEND_DEFAULT),
      end(device_.type(), c10::EventFlag::BACKEND_DEFAULT);
  for (int64_t i = 0; i < pace.copies; ++i) to_.copy_(from_, /*non_blocking=*/true);
  begin.record(stream);
  for (int64_t i = 0; i < pace.calls; ++i) work(next++);
  end.record(stream);
  end.synchronize();
  return begin.elapsedTime(end) * 1e-3 / static_cast<double>(pace.calls);
}

Stopwatch::Pace Stopwatch::pace(const Work& work, int64_t& next) const {
  work(next++);  // libraries load, caches of the allocator fill
  if (device_.is_cpu()) return {};
  Pace pace{.calls = 2};
  const double call = sample(work, next, pace);
  pace.calls = std::clamp<int64_t>(std::llround(std::ceil(kSampleSeconds / call)), 1, kMostCalls);
  const auto start = clock::now();
  for (int64_t i = 0; i < pace.calls; ++i) work(next++);
  const double host = seconds_since(start);
  c10::impl::VirtualGuardImpl(device_.type()).synchronizeDevice(device_.index());
  const double copy =
      copy_rate_ > 0 ? 2.0 * static_cast<double>(from_.nbytes()) / copy_rate_ : 1e-3;
  pace.copies = std::clamp<int64_t>(std::llround(std::ceil(1.5 * host / copy)), 1, kMostCopies);
  return pace;
}

std::vector<Timing> Stopwatch::operator()(const std::vector<Work>& contestants) const {
  const size_t count = contestants.size();
  std::vector<std::vector<double>> times(count);
  std::vector<int64_t> next(count, 0);
  std::vector<Pace> paces;
  for (size_t i = 0; i < count; ++i) paces.push_back(pace(contestants[i], next[i]));
  const size_t least = device_.is_cpu() ? kCpuSamples : kGpuSamples;
  const double budget = seconds_ * static_cast<double>(count);
  const auto start = clock::now();
  while (times.front().size() < least ||
         (times.front().size() < kMostSamples && seconds_since(start) < budget)) {
    for (size_t i = 0; i < count; ++i) {
      times[i].push_back(sample(contestants[i], next[i], paces[i]));
    }
  }
  std::vector<Timing> result;
  for (auto& t : times) {
    std::sort(t.begin(), t.end());
    const double median = t[t.size() / 2];
    result.push_back({median, (t[t.size() * 9 / 10] - t[t.size() / 10]) / median});
  }
  return result;
}

double Stopwatch::matmul_rate(at::ScalarType dtype) const {
  const int64_t n = device_.is_cpu() ? kCpuMatmul : kGpuMatmul;
  const auto options = at::device(device_).dtype(dtype);
  const bool integers = dtype == at::kChar;
  // Random data: a GPU that multiplies constants needs less power, and runs faster than it will.
  const at::Tensor a =
      integers ? at::randint(-127, 128, {n, n}, options) : at::randn({n, n}, options);
  const at::Tensor b = a.flip(0).t();
  at::Tensor c = at::empty({n, n}, integers ? options.dtype(at::kInt) : options);
  const auto timing = (*this)({[&](int64_t) {
    if (integers) {
      at::_int_mm_out(c, a, b);
    } else {
      at::mm_out(c, a, b);
    }
  }});
  const auto side = static_cast<double>(n);
  return 2.0 * side * side * side / timing[0].median;
}

}  // namespace lowbit::cli
