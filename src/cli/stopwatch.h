// Time of work on a device. On a CPU: the clock around each call. On a GPU: events around calls
// that are queued behind a copy which keeps the device busy meanwhile, so that what is measured is
// the device's time and not the host's; a call that waits for the device is measured with its wait.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace lowbit::cli {

struct Timing {
  double median = 0;  ///< seconds of one call
  double spread = 0;  ///< (90th - 10th percentile) / median
};

class Stopwatch {
 public:
  /// `seconds`: spent on each contestant, or longer until there are enough samples.
  Stopwatch(at::Device device, double seconds);

  /// Called with 0, 1, 2, ...: what to take in turns, such as weights that must not stay in a
  /// cache.
  using Work = std::function<void(int64_t call)>;
  /// Contestants take turns, because clocks and shared memory drift.
  std::vector<Timing> operator()(const std::vector<Work>& contestants) const;

  at::Device device() const { return device_; }
  /// Bytes a second, read and written, of a copy far larger than the caches.
  double copy_rate() const { return copy_rate_; }
  /// Operations a second (2 n^3) of a large square matrix product in this dtype; int8 gives int32.
  double matmul_rate(at::ScalarType dtype) const;

 private:
  /// Calls in one sample, and the copies that outlast their launches.
  struct Pace {
    int64_t calls = 1, copies = 0;
  };
  Pace pace(const Work& work, int64_t& next) const;
  /// Seconds of one call.
  double sample(const Work& work, int64_t& next, const Pace& pace) const;

  at::Device device_;
  double seconds_;
  at::Tensor from_, to_;  ///< of the copy
  double copy_rate_ = 0;
};

}  // namespace lowbit::cli
