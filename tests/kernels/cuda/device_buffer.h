// Device memory for tests: poisoned, with canaries on both sides, at any alignment.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "lowbit/kernels/types.h"

namespace lowbit::test {

inline bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

#define LOWBIT_NEEDS_GPU() \
  if (!::lowbit::test::has_gpu()) GTEST_SKIP() << "needs a CUDA GPU"

#define EXPECT_CUDA_OK(expression) EXPECT_EQ((expression), cudaSuccess)
#define EXPECT_STATUS_OK(expression)                        \
  do {                                                      \
    const ::lowbit::kernels::Status status_ = (expression); \
    EXPECT_TRUE(status_.ok()) << status_.reason;            \
  } while (false)

/// `offset` bytes misalign the data on purpose.
template <typename T>
class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t count, size_t offset = 0) : count_(count), offset_(offset) {
    EXPECT_CUDA_OK(cudaMalloc(&base_, bytes() + 2 * kGuard + offset));
    EXPECT_CUDA_OK(cudaMemset(base_, kPoison, bytes() + 2 * kGuard + offset));
  }
  DeviceBuffer(const std::vector<T>& values, size_t offset = 0)
      : DeviceBuffer(values.size(), offset) {
    EXPECT_CUDA_OK(cudaMemcpy(data(), values.data(), bytes(), cudaMemcpyHostToDevice));
  }
  ~DeviceBuffer() { cudaFree(base_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  T* data() const { return reinterpret_cast<T*>(static_cast<char*>(base_) + kGuard + offset_); }
  void fill(int byte) const { EXPECT_CUDA_OK(cudaMemset(data(), byte, bytes())); }

  /// Waits for the device; fails when a byte outside the buffer changed.
  std::vector<T> read() const {
    EXPECT_CUDA_OK(cudaDeviceSynchronize());
    std::vector<unsigned char> all(bytes() + 2 * kGuard + offset_);
    EXPECT_CUDA_OK(cudaMemcpy(all.data(), base_, all.size(), cudaMemcpyDeviceToHost));
    size_t damaged = 0;
    for (size_t i = 0; i < all.size(); ++i) {
      const bool inside = i >= kGuard + offset_ && i < kGuard + offset_ + bytes();
      damaged += !inside && all[i] != kPoison;
    }
    EXPECT_EQ(damaged, 0u) << "bytes outside the buffer were written";
    std::vector<T> values(count_);
    if (count_ > 0) std::memcpy(values.data(), all.data() + kGuard + offset_, bytes());
    return values;
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr int kPoison = 0xcd;
  size_t bytes() const { return count_ * sizeof(T); }
  void* base_ = nullptr;
  size_t count_, offset_;
};

}  // namespace lowbit::test
