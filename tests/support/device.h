// The device that a suite runs on: the CPU, or the one that LOWBIT_TEST_DEVICE names. The same
// tests run on both; without the hardware all of them are skipped.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <initializer_list>
#include <vector>

namespace lowbit::test {

inline at::Device device() {
  static const at::Device value = [] {
    const char* name = std::getenv("LOWBIT_TEST_DEVICE");
    if (name == nullptr || *name == '\0') return at::Device(at::kCPU);
    const at::Device named(name);
    return named.is_cuda() && !named.has_index() ? at::Device(at::kCUDA, 0) : named;
  }();
  return value;
}

inline bool on_cuda() { return device().is_cuda(); }

class DeviceEnvironment : public ::testing::Environment {
  void SetUp() override {
    // ctest recognizes a skipped test by the mark in its output.
    if (on_cuda() && !at::hasCUDA()) GTEST_SKIP() << "[  SKIPPED ] no CUDA device is here";
  }
};
inline ::testing::Environment* const device_environment =
    ::testing::AddGlobalTestEnvironment(new DeviceEnvironment);

// at's factories, on the device of the suite.
inline at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) {
  return at::empty(sizes, at::device(device()).dtype(dtype));
}
inline at::Tensor zeros(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) {
  return at::zeros(sizes, at::device(device()).dtype(dtype));
}
inline at::Tensor ones(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) {
  return at::ones(sizes, at::device(device()).dtype(dtype));
}
inline at::Tensor full(at::IntArrayRef sizes, const at::Scalar& value,
                       at::ScalarType dtype = at::kFloat) {
  return at::full(sizes, value, at::device(device()).dtype(dtype));
}
inline at::Tensor randn(at::IntArrayRef sizes) { return at::randn(sizes).to(device()); }
template <class T>
at::Tensor tensor(std::initializer_list<T> values) {
  return at::tensor(values).to(device());
}
template <class T>
at::Tensor tensor(const std::vector<T>& values) {
  return at::tensor(values).to(device());
}

}  // namespace lowbit::test
