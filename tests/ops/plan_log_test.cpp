// LOWBIT_VERBOSE=dispatch. A program of its own: the variable is read once.
#include "ops/plan_log.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "lowbit/functional.h"
#include "ops/linear.h"
#include "support/device.h"
#include "support/random.h"

namespace lowbit {
namespace {

/// Before any op of this program asks.
[[maybe_unused]] const int asked = setenv("LOWBIT_VERBOSE", "dispatch", 1);

class Recorder : public c10::WarningHandler {
 public:
  void process(const c10::Warning& warning) override { lines.push_back(warning.msg()); }
  std::vector<std::string> lines;
};

class PlanLog : public test::RandomTest {
 protected:
  /// What an op says.
  template <class F>
  std::vector<std::string> lines_of(F run) {
    Recorder recorder;
    const c10::WarningUtils::WarningHandlerGuard guard(&recorder);
    run();
    return recorder.lines;
  }
};

TEST_F(PlanLog, SaysEachDistinctProblemOnce) {
  const auto [packed, state] = quantize_4bit(
      normal({96, 128}), {.compress_statistics = true, .quant_type = QuantType::kFP4});
  const at::Tensor x = normal({3, 128});
  const ops::Weight4bit weight = ops::Weight4bit::make(packed, state);
  const auto run = [&](const at::Tensor& input) {
    return lines_of([&] { ops::linear_4bit(input, weight, {}); });
  };
  const std::vector<std::string> first = run(x);
  ASSERT_EQ(1u, first.size());
  const std::string expected = c10::str("lowbit::linear_4bit on ", test::device().str(),
                                        ": M 3, N 96, K 128, float32, fp4, blocksize 64, nested: ");
  EXPECT_EQ(expected, first[0].substr(0, expected.size()));
  // A kernel and its parameters follow.
  EXPECT_GT(first[0].size(), expected.size() + 10) << first[0];
  EXPECT_NE(std::string::npos, first[0].find(test::device().is_cuda() ? "grid " : " units"))
      << first[0];
  EXPECT_TRUE(run(x).empty());
  EXPECT_TRUE(run(x + 1).empty()) << "the same problem with other numbers";
  EXPECT_EQ(1u, run(x.narrow(0, 0, 2)).size());
  EXPECT_EQ(1u, run(x.to(at::kBFloat16)).size());
  EXPECT_TRUE(run(x.narrow(0, 0, 2)).empty());
}

TEST_F(PlanLog, SaysThatTheWeightIsDequantized) {
  if (!test::device().is_cuda()) GTEST_SKIP() << "needs a CUDA GPU: the CPU has no such choice";
  const auto [packed, state] = quantize_4bit(normal({64, 1000}), {});
  const ops::Weight4bit weight = ops::Weight4bit::make(packed, state);
  const at::Tensor x = normal({100, 1000});
  const std::vector<std::string> lines = lines_of([&] { ops::linear_4bit(x, weight, {}); });
  ASSERT_EQ(1u, lines.size());
  EXPECT_NE(std::string::npos, lines[0].find(": dequantize_4bit and cuBLAS")) << lines[0];
}

}  // namespace
}  // namespace lowbit
