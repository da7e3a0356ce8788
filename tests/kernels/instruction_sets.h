// Tests that run once for each instruction set that the machine has.
#pragma once

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "lowbit/kernels/cpu.h"

namespace lowbit::kernels::testing {

inline std::vector<cpu::Isa> instruction_sets() {
  std::vector<cpu::Isa> sets;
  for (int i = 0; i <= static_cast<int>(cpu::detect_isa()); ++i) {
    sets.push_back(static_cast<cpu::Isa>(i));
  }
  return sets;
}

/// Selects its parameter, and has a freshly seeded generator whose seed every failure shows.
class EachInstructionSet : public ::testing::TestWithParam<cpu::Isa> {
 protected:
  void SetUp() override { ASSERT_EQ(cpu::set_isa(GetParam()), GetParam()); }
  void TearDown() override { cpu::set_isa(cpu::detect_isa()); }

  uint32_t below(uint32_t n) { return std::uniform_int_distribution<uint32_t>(0, n - 1)(random_); }

  const uint32_t seed_ = std::random_device{}();
  std::mt19937 random_{seed_};
  ::testing::ScopedTrace trace_{__FILE__, __LINE__, "seed " + std::to_string(seed_)};
};

inline std::string isa_test_name(const ::testing::TestParamInfo<cpu::Isa>& info) {
  return cpu::isa_name(info.param);
}

#define LOWBIT_EACH_INSTRUCTION_SET(suite)                                                      \
  INSTANTIATE_TEST_SUITE_P(Isa, suite,                                                          \
                           ::testing::ValuesIn(::lowbit::kernels::testing::instruction_sets()), \
                           ::lowbit::kernels::testing::isa_test_name)

}  // namespace lowbit::kernels::testing
