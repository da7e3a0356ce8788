// Which kernels run LLM.int8() on a GPU; needs none.
#include <gtest/gtest.h>

#include "cuda/int8_linear.h"

namespace lowbit::kernels {
namespace {

using cuda::LinearMixedPlan;
using cuda::LinearMixedRoute;

constexpr DeviceProperties kH200{90, 132, 232448, 60 << 20}, kA100{80, 108, 166912, 40 << 20},
    kT4{75, 40, 65536, 4 << 20};

LinearMixedInt8Params layer(int64_t m, int64_t n, int64_t k, DType dtype = DType::kBFloat16) {
  alignas(16) static int8_t memory[16];  // only looked at, never read
  return {.input = memory,
          .input_stride = k,
          .dtype = dtype,
          .m = m,
          .n = n,
          .k = k,
          .q = memory,
          .output = memory};
}
LinearMixedPlan plan(const LinearMixedInt8Params& p, const DeviceProperties& device = kH200) {
  return cuda::plan_linear_mixed_int8(p, device);
}

TEST(LinearMixedPlan, FewTokensStreamTheWeight) {
  EXPECT_STREQ(plan(layer(1, 14336, 4096)).name, "small_8");
  EXPECT_STREQ(plan(layer(9, 14336, 4096)).name, "small_16");
  EXPECT_STREQ(plan(layer(32, 14336, 4096)).name, "small_32_shallow");
  EXPECT_STREQ(plan(layer(8, 4096, 14336)).name, "small_8_shallow");
  EXPECT_EQ(plan(layer(1, 14336, 4096)).grid, 132);
  EXPECT_EQ(plan(layer(1, 30, 4096)).grid, 2);
  EXPECT_TRUE(plan(layer(1, 14336, 4096)).programmatic);
  EXPECT_FALSE(plan(layer(1, 14336, 4096), kA100).programmatic);
  EXPECT_EQ(plan(layer(1, 14336, 4096, DType::kFloat32)).route, LinearMixedRoute::kSmall);
}

TEST(LinearMixedPlan, ManyTokensFillTheDevice) {
  EXPECT_STREQ(plan(layer(64, 14336, 4096)).name, "large_64");
  EXPECT_STREQ(plan(layer(128, 14336, 4096)).name, "large_128");
  EXPECT_STREQ(plan(layer(2048, 14336, 4096)).name, "large_256");
  EXPECT_STREQ(plan(layer(512, 4096, 4096)).name, "large_128");  // 64 clusters of 66
  EXPECT_EQ(plan(layer(2048, 14336, 4096)).grid, 132);
  EXPECT_EQ(plan(layer(33, 256, 4096)).grid, 2);
  // Whose codes do not fit into shared memory.
  EXPECT_EQ(plan(layer(16, 4096, 14336)).route, LinearMixedRoute::kLarge);
}

TEST(LinearMixedPlan, TheRestRunsInParts) {
  EXPECT_EQ(plan(layer(1, 64, 40)).route, LinearMixedRoute::kParts);
  EXPECT_EQ(plan(layer(0, 64, 64)).route, LinearMixedRoute::kParts);
  EXPECT_EQ(plan(layer(64, 64, 64, DType::kFloat32)).route, LinearMixedRoute::kParts);
  EXPECT_EQ(plan(layer(64, 64, 64), kA100).route, LinearMixedRoute::kParts);
  EXPECT_EQ(plan(layer(1, 64, 64), kT4).route, LinearMixedRoute::kParts);
  LinearMixedInt8Params odd = layer(1, 64, 64);
  odd.q += 4;
  EXPECT_EQ(plan(odd).route, LinearMixedRoute::kParts);
  odd = layer(2, 64, 64);
  odd.input_stride = 65;
  EXPECT_EQ(plan(odd).route, LinearMixedRoute::kLarge);  // whose quantizer reads any rows
}

// Every plan fits the device, and its regions of shared memory do not overlap.
TEST(LinearMixedPlan, PlansFitTheDevice) {
  for (const DeviceProperties& device : {kH200, kA100, kT4}) {
    for (int64_t m : {1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 64, 65, 500, 4096, 100000}) {
      for (int64_t n : {1, 16, 17, 300, 4096, 14336}) {
        for (int64_t k : {16, 128, 1040, 4096, 8192, 14336, 65536, 131072}) {
          const LinearMixedPlan p = plan(layer(m, n, k), device);
          if (p.route == LinearMixedRoute::kParts) continue;
          EXPECT_LE(p.shared_bytes, device.shared_bytes_per_block);
          EXPECT_GE(p.grid, 1);
          EXPECT_LE(p.grid, device.multiprocessors);
          if (p.route == LinearMixedRoute::kLarge) {
            EXPECT_EQ(p.grid % cuda::kMixedLargeCluster, 0);
            continue;
          }
          const auto& v = cuda::kMixedSmallVariants[p.variant];
          const auto l = cuda::mixed_small_layout(v, m, k);
          EXPECT_LE(m, 8 * v.token_tiles);
          EXPECT_EQ(l.row % 128, 64);
          EXPECT_GE(l.row, k);
          EXPECT_GE(l.listed, l.activations + m * l.row);
          EXPECT_GE(l.flags, l.listed + 2 * k);
          EXPECT_GE(l.inputs, l.flags + (k + 7) / 8);
          EXPECT_EQ(l.activations % 16 + l.flags % 16 + l.inputs % 16 + l.sums % 16, 0);
          EXPECT_GT(p.workspace_bytes, m * k);
        }
      }
    }
  }
}

}  // namespace
}  // namespace lowbit::kernels
