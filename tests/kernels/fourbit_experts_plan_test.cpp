// The plans of stacks of experts: pure functions, tested without a GPU.
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "cuda/fourbit_experts.h"
#include "cuda/fourbit_matmul.h"
#include "cuda/fourbit_mid_sm80.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr DeviceProperties kHopper{90, 132, 232448, 50 << 20};
constexpr DeviceProperties kAmpere{80, 108, 166912, 40 << 20};
constexpr DeviceProperties kAda{89, 128, 101376, 72 << 20};
constexpr DeviceProperties kTuring{75, 40, 65536, 4 << 20};

GroupedMatmul4bitParams problem(int64_t experts, int64_t m, int64_t n, int64_t k) {
  GroupedMatmul4bitParams p;
  p.experts = experts;
  p.stack.m = m, p.stack.n = experts * n, p.stack.k = k;
  p.stack.input_stride = k;
  p.stack.dtype = DType::kBFloat16;
  return p;
}

TEST(CudaExpertsPlan, HasABlockForEveryRowOfEveryExpertThatMayHaveTokens) {
  std::mt19937 rng(std::random_device{}());
  for (int i = 0; i < 2000; ++i) {
    const int64_t experts = 1 + rng() % 200, m = 1 + rng() % (rng() % 2 == 0 ? 20 : 5000);
    const int64_t n = 1 + rng() % 2000, k = 16 * (1 + rng() % 500);
    for (const DeviceProperties& device : {kHopper, kAmpere, kAda, kTuring}) {
      const Matmul4bitCudaPlan plan = plan_grouped_matmul_4bit(problem(experts, m, n, k), device);
      SCOPED_TRACE(std::to_string(experts) + " experts, m " + std::to_string(m) + " n " +
                   std::to_string(n) + " k " + std::to_string(k) + " " + plan.kernel);
      const bool general = plan.id == kGeneral;
      EXPECT_EQ(general, device.compute_capability < 80);
      const int64_t rows =
          general ? kExpertsTile : mid_sm80_rows(kMidSm80Variants[plan.id - kMidSm80]);
      EXPECT_EQ(plan.grid_x, std::min(experts, m) * ceil_div(n, rows));
      EXPECT_GE(plan.grid_y, 1);
      EXPECT_LE(plan.grid_y, 65535);
      EXPECT_LE(plan.shared_bytes, device.shared_bytes_per_block);
      EXPECT_EQ(plan.workspace_bytes, 0);
      EXPECT_TRUE(general || kMidSm80Variants[plan.id - kMidSm80].experts);
    }
  }
}

TEST(CudaExpertsPlan, FewTokensAreFusedAndManyAreNot) {
  // Mixtral 8x7B and Qwen3 30B-A3B, tokens times experts of a token.
  for (const int64_t tokens : {1, 8, 32, 128}) {
    EXPECT_TRUE(plan_grouped_matmul_4bit(problem(8, 2 * tokens, 14336, 4096), kHopper).fused);
    EXPECT_TRUE(plan_grouped_matmul_4bit(problem(128, 8 * tokens, 768, 2048), kHopper).fused);
  }
  EXPECT_FALSE(plan_grouped_matmul_4bit(problem(8, 2 * 1024, 14336, 4096), kHopper).fused);
  EXPECT_FALSE(plan_grouped_matmul_4bit(problem(128, 8 * 4096, 768, 2048), kHopper).fused);
}

TEST(CudaExpertsPlan, OddProblemsGoToTheGeneralKernel) {
  const auto kernel = [](const GroupedMatmul4bitParams& p) {
    return std::string(plan_grouped_matmul_4bit(p, kHopper).kernel);
  };
  EXPECT_EQ(0u, kernel(problem(8, 16, 1024, 4096)).find("mid_sm80_16_r"));
  EXPECT_EQ("mid_sm80_16_fine16", kernel(problem(8, 16, 1024, 4016)));
  EXPECT_EQ("experts_general", kernel(problem(8, 16, 1024, 4008)));
  GroupedMatmul4bitParams p = problem(8, 16, 1024, 4096);
  p.stack.dtype = DType::kFloat32;
  EXPECT_EQ("experts_general", kernel(p));
  p = problem(8, 16, 1024, 4096);
  p.stack.input_stride = 4097;
  EXPECT_EQ("experts_general", kernel(p));
  p = problem(8, 16, 1024, 4096);
  p.stack.blocksize = 32;
  EXPECT_EQ("mid_sm80_16_fine16", kernel(p));
  EXPECT_EQ(plan_grouped_matmul_4bit(problem(8, 0, 1024, 4096), kHopper).grid_x, 0);
}

}  // namespace
}  // namespace lowbit::kernels::cuda
