// Fresh random tensors for every run. The seed is printed; LOWBIT_TEST_SEED repeats it.
#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <random>

#include "support/device.h"

namespace lowbit::test {

inline uint64_t seed() {
  static const uint64_t value = [] {
    const char* given = std::getenv("LOWBIT_TEST_SEED");
    const uint64_t chosen =
        given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
    std::cout << "LOWBIT_TEST_SEED=" << chosen << std::endl;
    return chosen;
  }();
  return value;
}

/// A fixture with its own stream of numbers, independent of the other tests in the program.
class RandomTest : public ::testing::Test {
 protected:
  RandomTest() : generator_(at::detail::createCPUGenerator(seed())) {}

  at::Tensor normal(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat, double scale = 1.0) {
    return (at::randn(sizes, generator_) * scale).to(dtype).to(device());
  }
  /// In [low, high).
  at::Tensor integers(int64_t low, int64_t high, at::IntArrayRef sizes, at::ScalarType dtype) {
    return at::randint(low, high, sizes, generator_).to(dtype).to(device());
  }

 private:
  at::Generator generator_;
};

}  // namespace lowbit::test
