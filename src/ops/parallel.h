// How ops run the kernels' serial ranges: threads and scratch memory.
#pragma once

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <cstdint>

#include "ops/check.h"

namespace lowbit::ops {

/// Runs kernel(begin, end) -> Status over [0, units), at least `grain` units a thread.
template <class Kernel>
void for_units(const char* op, int64_t units, int64_t grain, const Kernel& kernel) {
  at::parallel_for(0, units, grain,
                   [&](int64_t begin, int64_t end) { check_status(op, kernel(begin, end)); });
}

/// Units that make `work` elements when each has `size`: below that a second thread costs more than
/// it brings.
inline int64_t grain_of(int64_t size, int64_t work = int64_t{1} << 15) {
  return std::max<int64_t>(1, work / std::max<int64_t>(1, size));
}

/// 64-byte aligned scratch of one op call. The calling thread keeps a buffer between calls, so that
/// a decode step allocates nothing; large requests, and a second one while the first is alive, get
/// memory of their own.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) {
    if (bytes <= 0) return;
    Kept& kept = this_thread();
    if (kept.busy || bytes > kKeptBytes) {
      own_ = c10::GetCPUAllocator()->allocate(static_cast<size_t>(bytes));
      data_ = own_.get();
      return;
    }
    if (kept.bytes < bytes) {
      kept.bytes = 0;
      kept.buffer = c10::GetCPUAllocator()->allocate(static_cast<size_t>(bytes));
      kept.bytes = bytes;
    }
    kept.busy = true;
    holds_kept_ = true;
    data_ = kept.buffer.get();
  }
  ~Workspace() {
    if (holds_kept_) this_thread().busy = false;
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }

 private:
  static constexpr int64_t kKeptBytes = int64_t{4} << 20;
  struct Kept {
    c10::DataPtr buffer;
    int64_t bytes = 0;
    bool busy = false;
  };
  static Kept& this_thread() {
    static thread_local Kept kept;
    return kept;
  }

  c10::DataPtr own_;
  void* data_ = nullptr;
  bool holds_kept_ = false;
};

}  // namespace lowbit::ops
