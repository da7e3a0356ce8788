// A small team of threads that waits by spinning, then yielding: fork and join cost below 1 us, so
// that a benchmark of kernels of 10 us measures the kernels.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

namespace lowbit::bench {

class Team {
 public:
  explicit Team(int threads) : threads_(threads) {
    for (int i = 1; i < threads; ++i) {
      workers_.emplace_back([this, i] { work(i); });
    }
  }
  ~Team() {
    stop_ = true;
    generation_.fetch_add(1, std::memory_order_release);
    for (auto& w : workers_) w.join();
  }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  int size() const { return threads_; }

  /// job(begin, end) over contiguous shares of [0, units).
  void split(int64_t units, const std::function<void(int64_t, int64_t)>& job) {
    run([&](int i) {
      const int64_t begin = units * i / threads_, end = units * (i + 1) / threads_;
      if (begin < end) job(begin, end);
    });
  }

  /// job(0) .. job(size() - 1) at the same time.
  void run(const std::function<void(int)>& job) {
    if (threads_ == 1) return job(0);
    job_ = &job;
    waiting_.store(threads_ - 1, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    job(0);
    spin([&] { return waiting_.load(std::memory_order_acquire) == 0; });
  }

 private:
  template <typename Done>
  static void spin(Done done) {
    for (int i = 0; !done(); ++i) {
      if (i > 4000) std::this_thread::yield();
    }
  }
  void work(int i) {
    for (uint64_t seen = 0;;) {
      spin([&] { return generation_.load(std::memory_order_acquire) != seen; });
      ++seen;
      if (stop_) return;
      (*job_)(i);
      waiting_.fetch_sub(1, std::memory_order_release);
    }
  }

  int threads_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> waiting_{0};
  std::atomic<bool> stop_{false};
  const std::function<void(int)>* job_ = nullptr;
  std::vector<std::thread> workers_;
};

}  // namespace lowbit::bench
