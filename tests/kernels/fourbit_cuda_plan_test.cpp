// The plans of the CUDA matmul: pure functions, tested without a GPU.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "cuda/fourbit_group.h"
#include "cuda/fourbit_large.h"
#include "cuda/fourbit_matmul.h"
#include "cuda/fourbit_mid.h"
#include "cuda/fourbit_mid_sm80.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr DeviceProperties kHopper{90, 132, 232448, 50 << 20};
constexpr DeviceProperties kAmpere{80, 108, 166912, 40 << 20};
constexpr DeviceProperties kAda{89, 128, 101376, 72 << 20};
constexpr DeviceProperties kTuring{75, 40, 65536, 4 << 20};

Matmul4bitParams problem(int64_t m, int64_t n, int64_t k) {
  static const uint8_t codes[1] = {};
  Matmul4bitParams p;
  p.m = m, p.n = n, p.k = k;
  p.input_stride = k;
  p.dtype = DType::kBFloat16;
  p.scales.absmax_8bit = codes;
  return p;
}

TEST(CudaMatmulPlan, StreamsTheWeightOnceForFewTokens) {
  const int64_t shapes[][2] = {{4096, 4096}, {14336, 4096}, {4096, 14336},
                               {8192, 8192}, {28672, 8192}, {1024, 4096}};
  for (const DeviceProperties& device : {kHopper, kAmpere, kAda}) {
    for (const auto& [n, k] : shapes) {
      // The scales of 16 such rows do not fit there beside the rings.
      if (device.compute_capability == 89 && k > 8192) continue;
      for (int64_t m = 1; m <= 16; ++m) {
        const Matmul4bitCudaPlan plan = plan_matmul_4bit(problem(m, n, k), device);
        SCOPED_TRACE(std::to_string(device.compute_capability) + " m " + std::to_string(m) + " n " +
                     std::to_string(n) + " k " + std::to_string(k) + " " + plan.kernel);
        EXPECT_GE(plan.id, kSmall);
        EXPECT_TRUE(plan.fused);
        EXPECT_LE(plan.shared_bytes, device.shared_bytes_per_block);
        // Clusters leave some multiprocessors over, and so do rows in tiles of up to 128.
        const int64_t blocks = plan.id >= kMidSm80 ? std::min<int64_t>(n / 128, 100) : n / 16;
        EXPECT_GE(plan.grid_x, std::min<int64_t>(device.multiprocessors, blocks));
        EXPECT_EQ(plan.workspace_bytes, 0);
        EXPECT_EQ(plan.grid_y, 1);
        const bool hopper = device.compute_capability == 90;
        const bool few = !hopper && n / 16 <= device.multiprocessors;
        EXPECT_EQ(plan.id >= (hopper ? kMid : kMidSm80), m > 8 && !few);
      }
    }
  }
}

TEST(CudaMatmulPlan, OddProblemsGoToTheGeneralKernel) {
  const auto kernel = [](const Matmul4bitParams& p, const DeviceProperties& device = kHopper) {
    return std::string(plan_matmul_4bit(p, device).kernel);
  };
  EXPECT_NE("general", kernel(problem(1, 4096, 4096)));
  EXPECT_EQ("general", kernel(problem(1, 4096, 4096), kTuring));
  EXPECT_EQ("general", kernel(problem(1, 4096, 4095)));
  EXPECT_EQ("general", kernel(problem(1, 4096, 4004)));
  EXPECT_EQ("mid_sm80_16_fine32", kernel(problem(1, 4096, 4000)));
  Matmul4bitParams p = problem(1, 4096, 4096);
  p.dtype = DType::kFloat32;
  EXPECT_EQ("general", kernel(p));
  p = problem(1, 4096, 4096);
  p.blocksize = 96;
  EXPECT_EQ("general", kernel(p));
  p = problem(1, 4096, 4160);
  p.blocksize = 128;  // blocks straddle rows
  EXPECT_EQ(0u, kernel(p).find("mid_sm80_16_r"));
  EXPECT_EQ("general", kernel(p, kTuring));
  p = problem(2, 4096, 4096);
  p.input_stride = 4097;
  EXPECT_EQ("general", kernel(p));
  const float code[16] = {};
  p = problem(1, 4096, 4096);
  p.code = code;
  EXPECT_EQ("general", kernel(p));
  alignas(16) static const uint8_t packed[32] = {};
  p = problem(1, 4096, 4096);
  p.packed = packed;
  EXPECT_NE("general", kernel(p));
  p.packed = packed + 8;
  EXPECT_EQ("general", kernel(p));
}

TEST(CudaMatmulPlan, ManyTokensAreFusedOnHopperAlone) {
  EXPECT_TRUE(plan_matmul_4bit(problem(16, 4096, 4095), kHopper).fused);
  EXPECT_FALSE(plan_matmul_4bit(problem(2048, 4096, 4095), kHopper).fused);
  for (const bool hopper : {false, true}) {
    const DeviceProperties& device = hopper ? kHopper : kAmpere;
    EXPECT_EQ(hopper, plan_matmul_4bit(problem(2048, 4096, 4096), device).fused);
    EXPECT_EQ(hopper, plan_matmul_4bit_backward_input(problem(128, 4096, 4096), device).fused);
    // Backward, more work for a weight: of many tokens the library makes up for writing it out.
    EXPECT_FALSE(plan_matmul_4bit_backward_input(problem(2048, 4096, 4096), device).fused);
  }
  // Without the tensor cores' kernel, writing the weight out in 16 bits is faster; in 32 bits that
  // is twice as much to write.
  Matmul4bitParams one = problem(1, 4096, 4096);
  EXPECT_TRUE(plan_matmul_4bit_backward_input(one, kHopper).fused);
  EXPECT_FALSE(plan_matmul_4bit_backward_input(one, kAmpere).fused);
  one.dtype = DType::kFloat32;
  EXPECT_TRUE(plan_matmul_4bit_backward_input(one, kHopper).fused);
}

TEST(CudaMatmulPlan, MoreTokensUseTheTensorCoresOfHopper) {
  for (int64_t m = 9; m <= 1024; ++m) {
    const Matmul4bitCudaPlan plan = plan_matmul_4bit(problem(m, 4096, 4096), kHopper);
    EXPECT_GE(plan.id, m > 512 ? kLarge : kMid) << m;
    EXPECT_TRUE(plan.fused) << m;
    if (plan.id < kLarge) {
      EXPECT_EQ(plan.grid_y, ceil_div(m, kMidVariants[plan.id - kMid].tokens)) << m;
    }
    EXPECT_EQ(plan.grid_x % plan.splits, 0) << m;
    EXPECT_LE(plan.shared_bytes, kHopper.shared_bytes_per_block) << m;
    EXPECT_LT(plan_matmul_4bit(problem(m, 4096, 4096), kAda).id, kMid) << m;
  }
  Matmul4bitParams p = problem(64, 4096, 4096);
  p.blocksize = 32;
  EXPECT_LT(plan_matmul_4bit(p, kHopper).id, kMid);
  // A short K has no stages to share.
  EXPECT_EQ(1, plan_matmul_4bit(problem(64, 128, 64), kHopper).splits);
}

/// K that wgmma's kernels do not take: granules of 32 and 16 columns, up to tensor-core speed.
TEST(CudaMatmulPlan, TokensBehindFullRoundsAreALaunchOfTheirOwn) {
  EXPECT_EQ(matmul_4bit_first_tokens(problem(1024, 4096, 4096), kHopper), 1024);
  EXPECT_EQ(matmul_4bit_first_tokens(problem(1025, 4096, 4096), kHopper), 1024);
  EXPECT_EQ(matmul_4bit_first_tokens(problem(2049, 14336, 4096), kHopper), 2048);
  EXPECT_EQ(matmul_4bit_first_tokens(problem(1025, 4096, 4096), kAmpere), 1025);
  Matmul4bitParams odd = problem(1025, 4096, 4100);
  EXPECT_EQ(matmul_4bit_first_tokens(odd, kHopper), 1025);
  std::mt19937 rng(3);
  for (int i = 0; i < 300; ++i) {
    const Matmul4bitParams p =
        problem(static_cast<int64_t>(rng() % 9000), static_cast<int64_t>(1 + rng() % 9000),
                static_cast<int64_t>(64 * (1 + rng() % 100)));
    const int64_t first = matmul_4bit_first_tokens(p, kHopper);
    SCOPED_TRACE(std::to_string(p.m) + " " + std::to_string(p.n) + " " + std::to_string(p.k));
    ASSERT_LE(first, p.m);
    ASSERT_GE(first, std::min<int64_t>(p.m, 1));
    Matmul4bitParams head = p, rest = p;
    head.m = first, rest.m = p.m - first;
    if (rest.m == 0) continue;
    ASSERT_TRUE(plan_matmul_4bit(head, kHopper).fused);
    ASSERT_TRUE(plan_matmul_4bit(rest, kHopper).fused);
  }
}

TEST(CudaMatmulPlan, ColumnsInSixteensUseTheTensorCores) {
  for (const DeviceProperties& device : {kHopper, kAmpere, kAda}) {
    for (const int64_t m : {9, 16, 40, 128}) {
      const auto kernel = [&](int64_t k, int64_t blocksize) {
        Matmul4bitParams p = problem(m, 4096, k);
        p.blocksize = blocksize;
        const Matmul4bitCudaPlan plan = plan_matmul_4bit(p, device);
        EXPECT_TRUE(plan.id >= kMidSm80 && plan.id < kMid) << plan.kernel;
        return std::string(plan.kernel);
      };
      EXPECT_NE(std::string::npos, kernel(4096 + 32, 64).find("fine32"));
      EXPECT_NE(std::string::npos, kernel(4096, 32).find("fine32"));
      EXPECT_NE(std::string::npos, kernel(4096 + 16, 64).find("fine16"));
    }
  }
  EXPECT_EQ(std::string("general"), plan_matmul_4bit(problem(40, 4096, 4100), kHopper).kernel);
}

/// Blocks belong to one member each; none has more tiles than an even spread needs.
TEST(CudaMatmulPlan, GroupsFillTheDeviceOnce) {
  for (const DeviceProperties& device : {kHopper, kAmpere}) {
    const std::vector<std::vector<int64_t>> groups = {{4096, 1024, 1024}, {14336, 14336},
                                                      {4096, 4096, 4096}, {8192, 1024, 1024},
                                                      {28672, 28672},     {64, 16, 16}};
    for (const std::vector<int64_t>& group : groups) {
      for (int64_t m = 1; m <= 8; ++m) {
        std::vector<Matmul4bitParams> members;
        int64_t all = 0;
        for (const int64_t n : group) {
          members.push_back(problem(m, n, 4096));
          all += n / kSmallRows;
        }
        const auto count = static_cast<int32_t>(members.size());
        const Matmul4bitCudaPlan plan = plan_matmul_4bit_group(members.data(), count, device);
        SCOPED_TRACE(std::to_string(device.compute_capability) + " m " + std::to_string(m) + " n " +
                     std::to_string(group[0]) + " " + plan.kernel);
        ASSERT_TRUE(plan.id >= kSmall && plan.id < kMidSm80);
        EXPECT_EQ(count, plan.members);
        EXPECT_LE(plan.shared_bytes, device.shared_bytes_per_block);
        // The scales and sums of very many rows want more room than one wave has.
        EXPECT_LE(plan.grid_x, std::max<int64_t>(count, 4 * device.multiprocessors));
        const int64_t tiles = small_group_tiles(members.data(), count, plan.grid_x);
        EXPECT_GE(plan.grid_x * tiles, all);
        EXPECT_LE(tiles, ceil_div(all, plan.grid_x) + 1);
        int64_t blocks = 0;
        for (const Matmul4bitParams& p : members) blocks += small_member_blocks(p, tiles);
        EXPECT_EQ(blocks, plan.grid_x);
      }
    }
  }
}

/// On Hopper, more tokens come together where one weight alone leaves multiprocessors to spare.
TEST(CudaMatmulPlan, GroupsOfMoreTokens) {
  const auto grouped = [](int64_t m, int64_t n, const DeviceProperties& device) {
    const Matmul4bitParams members[] = {problem(m, n, 4096), problem(m, 1024, 4096),
                                        problem(m, 1024, 4096)};
    const Matmul4bitCudaPlan plan = plan_matmul_4bit_group(members, 3, device);
    EXPECT_TRUE(plan.grid_x == 0 || (plan.id >= kMidSm80 && plan.id < kMid && plan.fused));
    EXPECT_EQ(plan.grid_x == 0 ? 1 : 3, plan.members);
    return plan.grid_x > 0;
  };
  EXPECT_TRUE(grouped(16, 4096, kHopper));
  EXPECT_FALSE(grouped(128, 4096, kHopper));
  EXPECT_FALSE(grouped(16, 14336, kHopper));
  EXPECT_TRUE(grouped(16, 14336, kAmpere));
  EXPECT_FALSE(grouped(1024, 4096, kAmpere));
  EXPECT_FALSE(grouped(16, 4096, kTuring));
}

TEST(CudaMatmulPlan, MembersThatDifferAreNoGroup) {
  const auto grouped = [](const Matmul4bitParams& a, const Matmul4bitParams& b,
                          const DeviceProperties& device = kHopper) {
    const Matmul4bitParams members[] = {a, b};
    return plan_matmul_4bit_group(members, 2, device).grid_x > 0;
  };
  const Matmul4bitParams p = problem(1, 256, 512);
  EXPECT_TRUE(grouped(p, p));
  EXPECT_FALSE(grouped(p, p, kTuring));
  EXPECT_FALSE(grouped(p, problem(2, 256, 512)));
  EXPECT_FALSE(grouped(p, problem(1, 256, 576)));
  EXPECT_FALSE(grouped(p, problem(1, 0, 512)));
  Matmul4bitParams q = p;
  q.scales.absmax_8bit = nullptr;
  EXPECT_FALSE(grouped(p, q));
  q = p;
  q.blocksize = 128;
  EXPECT_FALSE(grouped(p, q));
  q = p;
  q.quant_type = QuantType::kFP4;
  EXPECT_FALSE(grouped(p, q));
  q = p;
  q.dtype = DType::kFloat32;
  EXPECT_FALSE(grouped(q, q));
  EXPECT_FALSE(grouped(problem(1, 256, 500), problem(1, 256, 500)));
  EXPECT_EQ(0, plan_matmul_4bit_group(&p, 1, kHopper).grid_x);
  const std::vector<Matmul4bitParams> many(kMatmulGroupMost + 1, p);
  EXPECT_EQ(0, plan_matmul_4bit_group(many.data(), kMatmulGroupMost + 1, kHopper).grid_x);
}

TEST(CudaMatmulPlan, EmptyProblemsHaveNoBlocks) {
  EXPECT_EQ(0, plan_matmul_4bit(problem(0, 8, 8), kHopper).grid_x);
  EXPECT_EQ(0, plan_matmul_4bit(problem(8, 0, 8), kHopper).grid_x);
  EXPECT_EQ(0, plan_matmul_4bit_backward_input(problem(8, 8, 0), kHopper).grid_x);
}

/// The plan of every number of tokens is one that its kernel takes, in bounds.
TEST(CudaMatmulPlan, EveryProblemHasAPlanThatApplies) {
  std::mt19937 rng(std::random_device{}());
  const auto pick = [&](std::initializer_list<int64_t> values) {
    return *(values.begin() + rng() % values.size());
  };
  const auto upto = [&](int64_t high) {
    return std::uniform_int_distribution<int64_t>(1, high)(rng);
  };
  std::vector<int64_t> tokens;
  for (int64_t m = 1; m <= 8192; m *= 2) tokens.insert(tokens.end(), {m - 1, m, m + 1});
  for (int i = 0; i < 40; ++i) tokens.push_back(upto(8192));
  for (const DeviceProperties& device : {kHopper, kAmpere, kAda, kTuring}) {
    for (int shape = 0; shape < 60; ++shape) {
      const int64_t n = pick({1, 128, 1024, 4096, 14336, 28672, upto(20000)});
      const int64_t k = pick({64, 576, 4096, 8192, 14336, 64 * upto(300), upto(9000)});
      for (const int64_t m : tokens) {
        Matmul4bitParams p = problem(m, n, k);
        p.blocksize = pick({32, 64, 64, 128, 4096, 96});
        for (const bool backward : {false, true}) {
          p.input_stride = backward ? round_up(n, 8) : k;
          const Matmul4bitCudaPlan plan =
              backward ? plan_matmul_4bit_backward_input(p, device) : plan_matmul_4bit(p, device);
          if (m == 0) {
            EXPECT_EQ(0, plan.grid_x);
            continue;
          }
          SCOPED_TRACE(std::to_string(device.compute_capability) + " m " + std::to_string(m) +
                       " n " + std::to_string(n) + " k " + std::to_string(k) + " blocksize " +
                       std::to_string(p.blocksize) + " " + plan.kernel);
          ASSERT_GT(plan.grid_x, 0);
          ASSERT_GT(plan.grid_y, 0);
          ASSERT_LE(plan.grid_y, 65535);
          ASSERT_LE(plan.shared_bytes, device.shared_bytes_per_block);
          ASSERT_TRUE(plan.threads > 0 && plan.threads <= 1024);
          // The tensor-core kernels need none; the general backward one splits small problems.
          ASSERT_EQ(plan.workspace_bytes,
                    plan.id == kGeneral && plan.splits > 1 ? plan.splits * m * k * 4 : 0);
          ASSERT_LE(plan.splits, 512);
          ASSERT_TRUE(plan.id < kMid || device.compute_capability == 90);
          if (plan.id >= kLarge) {
            ASSERT_TRUE(large_applies(p));
            ASSERT_LT(plan.id, kLarge + kLargeVariantCount);
            ASSERT_TRUE(plan.splits > 1 || plan.grid_x <= device.multiprocessors);
            ASSERT_LE(plan.splits, kLargeMaxSplits);
            ASSERT_EQ(0, plan.grid_x % (plan.together * plan.splits));
          } else if (plan.id >= kMid) {
            ASSERT_TRUE(mid_applies(p));
            ASSERT_LT(plan.id, kMid + kMidVariantCount);
          } else if (plan.id >= kMidSm80) {
            ASSERT_GE(device.compute_capability, 80);
            ASSERT_TRUE(mid_sm80_applies(p));
            ASSERT_LT(plan.id, kMidSm80 + kMidSm80VariantCount);
            const int granule = kMidSm80Variants[plan.id - kMidSm80].granule;
            ASSERT_EQ(0, k % granule);
            ASSERT_EQ(0, p.blocksize % granule);
          } else if (plan.id >= kSmall) {
            ASSERT_TRUE(!kSmallVariants[plan.id - kSmall].engine ||
                        device.compute_capability == 90);
            ASSERT_TRUE(small_applies(p));
            ASSERT_LT(plan.id, kSmall + kSmallVariantCount);
          }
        }
      }
    }
  }
}

/// The parts of a block's shared memory follow each other and hold what the kernel puts there.
TEST(CudaMatmulPlan, SharedMemoryHoldsEveryPart) {
  std::mt19937 rng(std::random_device{}());
  const auto upto = [&](int64_t high) {
    return std::uniform_int_distribution<int64_t>(1, high)(rng);
  };
  for (int i = 0; i < 2000; ++i) {
    const SmallVariant& v = kSmallVariants[rng() % kSmallVariantCount];
    const int64_t blocksize = v.fine ? 32 : int64_t{64} << rng() % 7;
    const int64_t k = std::max<int64_t>(64, blocksize) * upto(40), n = upto(20000), m = upto(40);
    const int64_t tiles = ceil_div(n, 16), grid = std::min(tiles, upto(264));
    const bool nested = rng() % 2 == 0;
    const SmallLayout l = small_layout(v, m, n, k, blocksize, nested, grid);
    const int64_t count = l.tiles_base + (l.tiles_rest > 0), rows = 16 * count;
    EXPECT_EQ(tiles, l.tiles_base * grid + l.tiles_rest);
    EXPECT_EQ(l.map, kPairTable + v.warps * v.stages * kSmallStage);
    EXPECT_GE(l.absmax2, l.map + (nested ? 1024 : 0));
    EXPECT_GE(l.scales, l.absmax2 + (nested ? (rows * k / blocksize / 256 + 2) * 4 : 0));
    EXPECT_GE(l.pitch * (v.fine ? 32 : 64), ceil_div(k, 256) * 256);
    EXPECT_EQ(1, l.pitch / 4 % 2);
    EXPECT_GE(l.sums, l.scales + rows * l.pitch * 4);
    EXPECT_GE(l.bytes, l.sums + v.warps * rows * l.sum_pitch * 4);
    EXPECT_GE(l.bytes, l.sums + (nested ? rows * k / blocksize + 32 : 0));
    EXPECT_EQ(0, l.scales % 16 + l.sums % 16);
  }
  for (const MidSm80Variant& v : kMidSm80Variants) {
    const MidSm80Layout l = mid_sm80_layout(v);
    const int rows = mid_sm80_rows(v);
    EXPECT_GE(l.map, 256 * 128);
    EXPECT_GE(l.scales, l.map + 1024);
    EXPECT_GE(l.scale_pitch * v.granule, kMidSm80ScaleStages * kMidSm80Columns);
    EXPECT_EQ(1, l.scale_pitch / 4 % 2);
    EXPECT_GE(l.codes, l.scales + 2 * rows * l.scale_pitch * 4);
    EXPECT_GE(l.inputs, l.codes + v.stages * rows * kMidSm80Columns / 2);
    EXPECT_GE(l.bytes, l.inputs + v.stages * v.tokens * kMidSm80Columns * 2);
    EXPECT_GE(l.bytes, l.codes + mid_sm80_slices(v) * v.tokens * l.sum_pitch * 4);
    EXPECT_EQ(0, l.codes % 128 + l.inputs % 128 + l.scales % 16);
    EXPECT_LE(l.bytes, kHopper.shared_bytes_per_block);
    EXPECT_EQ(v.warps, v.row_groups * mid_sm80_slices(v));
    EXPECT_EQ(0, 4 % mid_sm80_slices(v));
  }
  for (const LargeVariant& v : kLargeVariants) {
    const LargeLayout l = large_layout(v);
    EXPECT_GE(l.codes, 256 * 128);
    EXPECT_GE(l.inputs, l.codes + v.weight_stages * l.codes_stage);
    EXPECT_GE(l.outputs, l.inputs + v.input_stages * v.tokens * 128);
    EXPECT_EQ(0, v.tokens % 16 + v.tokens % (kLargePass / 2));
    EXPECT_GE(l.scales, l.outputs + kLargeThreads / 128 * kLargePass * 64);
    EXPECT_GE(l.barriers, l.map + 1024);
    EXPECT_EQ(0, l.codes % 1024 + l.inputs % 1024 + l.outputs % 128 + l.scales % 16);
    EXPECT_LE(l.bytes, kHopper.shared_bytes_per_block);
  }
}

}  // namespace
}  // namespace lowbit::kernels::cuda
