// Tests of every kernel family, small enough for every call of `lowbit doctor`.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <string>
#include <vector>

namespace lowbit::cli {

struct SelfTest {
  std::string family, what;
  std::function<double()> error;  ///< compared with `limit`
  double limit;
};

/// The tests on `device`: on the CPU against known numbers and float64 arithmetic, on a GPU against
/// what the CPU computes.
std::vector<SelfTest> self_tests(at::Device device);

}  // namespace lowbit::cli
