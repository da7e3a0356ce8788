// The mid-M kernel without wgmma: every instance, against sums in float64.
#include "cuda/fourbit_mid_sm80.h"

#include <gtest/gtest.h>

#include "matmul_problems.h"

namespace lowbit::kernels {
namespace {

using testing::CudaMatmul;
using testing::device_properties;
using testing::DeviceProblem;
using testing::FourbitSpec;

class CudaMatmulMidSm80 : public CudaMatmul {
 protected:
  void SetUp() override {
    LOWBIT_NEEDS_GPU();
    device_ = device_properties();
    if (device_.compute_capability < 80) GTEST_SKIP() << "needs a CUDA GPU of sm_80";
  }

  /// K in steps of the granule, blocks that may straddle rows and granules that may not.
  FourbitSpec any_problem(const cuda::MidSm80Variant& v) {
    FourbitSpec s;
    const int64_t rows = cuda::mid_sm80_rows(v);
    s.m = pick<int64_t>({1, upto(v.tokens), v.tokens, v.tokens - 1, v.tokens + upto(40)});
    s.n = pick<int64_t>({1, rows, rows - 1, rows + 4, upto(200), upto(500)});
    s.k = v.granule * pick<int64_t>({1, 2, 3, upto(4 * 64 / v.granule), upto(3000 / v.granule)});
    s.blocksize = pick<int64_t>({64, 64, 64, 128, 256, 1024, 4096});
    if (v.granule < 64) s.blocksize = pick<int64_t>({32, 32, s.blocksize});
    s.dtype = pick({DType::kFloat16, DType::kBFloat16});
    s.quant_type = pick({QuantType::kNF4, QuantType::kFP4});
    s.nested = pick({false, true});
    s.bias = pick({false, true});
    s.bias_dtype = pick({DType::kFloat32, DType::kFloat16, DType::kBFloat16});
    s.extra_stride = pick<int64_t>({0, 8, 64});
    return s;
  }

  DeviceProperties device_;
};

TEST_F(CudaMatmulMidSm80, EveryVariantAgrees) {
  for (int variant = 0; variant < cuda::kMidSm80VariantCount; ++variant) {
    const cuda::MidSm80Variant& v = cuda::kMidSm80Variants[variant];
    int ran = 0;
    for (int i = 0; i < testing::rounds(40); ++i) {
      const FourbitSpec spec = any_problem(v);
      DeviceProblem problem(spec, rng_);
      Matmul4bitParams p = problem.params();
      ASSERT_EQ(p.input_stride % 8, 0);
      const Matmul4bitCudaPlan plan = cuda::plan_mid_sm80(&p, 1, device_, variant);
      if (plan.grid_x == 0) continue;  // a device with little shared memory
      SCOPED_TRACE(trace(spec, plan));
      p.programmatic_launch = device_.compute_capability >= 90 && pick({false, true});
      problem.poison();
      EXPECT_STATUS_OK(cuda::matmul_4bit(plan, p, Stream{}));
      const auto once = problem.output();
      const int64_t step = std::max<int64_t>(1, spec.m * spec.n * spec.k / 4'000'000);
      ASSERT_TRUE(problem.check(once, 1, static_cast<int64_t>(rng_() % step), step));
      problem.poison();
      EXPECT_STATUS_OK(cuda::matmul_4bit(plan, p, Stream{}));
      ASSERT_TRUE(problem.output() == once) << "results differ from launch to launch";
      if (HasFailure()) return;
      ++ran;
    }
    EXPECT_TRUE(ran > 0 || cuda::mid_sm80_layout(v).bytes > device_.shared_bytes_per_block)
        << v.name;
  }
}

/// K in any multiple of 16, the granule that the plan chooses, 1 to 200 tokens.
TEST_F(CudaMatmulMidSm80, TheBestVariantAgrees) {
  for (int i = 0; i < testing::rounds(150); ++i) {
    const cuda::MidSm80Variant& v = cuda::kMidSm80Variants[rng_() % cuda::kMidSm80VariantCount];
    FourbitSpec spec = any_problem(v);
    spec.m = upto(200);
    DeviceProblem problem(spec, rng_);
    const Matmul4bitCudaPlan plan = cuda::best_mid_sm80(&problem.params(), 1, device_);
    ASSERT_GT(plan.grid_x, 0);
    SCOPED_TRACE(trace(spec, plan));
    problem.poison();
    EXPECT_STATUS_OK(cuda::matmul_4bit(plan, problem.params(), Stream{}));
    const int64_t step = std::max<int64_t>(1, spec.m * spec.n * spec.k / 4'000'000);
    ASSERT_TRUE(problem.check(problem.output(), 1, static_cast<int64_t>(rng_() % step), step));
  }
}

TEST_F(CudaMatmulMidSm80, RefusesThePlanOfAnotherProblem) {
  FourbitSpec spec;
  spec.m = 20, spec.n = 100, spec.k = 256, spec.dtype = DType::kBFloat16;
  DeviceProblem problem(spec, rng_);
  Matmul4bitParams p = problem.params();
  const Matmul4bitCudaPlan plan = cuda::best_mid_sm80(&p, 1, device_);
  ASSERT_GT(plan.grid_x, 0);
  const auto refused = [&](const Matmul4bitParams& q) {
    return cuda::matmul_4bit(plan, q, Stream{}).code == StatusCode::kInvalidArgument;
  };
  EXPECT_FALSE(refused(p));
  p.m = 33;
  EXPECT_TRUE(refused(p));
  p = problem.params();
  p.n = 1000;
  EXPECT_TRUE(refused(p));
  p = problem.params();
  p.k = 250;
  EXPECT_TRUE(refused(p));
  p = problem.params();
  p.blocksize = 32;  // two scales where the instance has one
  EXPECT_TRUE(refused(p));
  p = problem.params();
  p.input_stride = 257;
  EXPECT_TRUE(refused(p));
}

}  // namespace
}  // namespace lowbit::kernels
