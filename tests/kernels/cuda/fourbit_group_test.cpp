// Several 4-bit weights over one input in one launch, against sums in float64.
#include "cuda/fourbit_group.h"

#include <gtest/gtest.h>

#include "cuda/fourbit_mid_sm80.h"
#include "matmul_problems.h"

namespace lowbit::kernels {
namespace {

using testing::CudaMatmulPath;
using testing::DeviceProblem;
using testing::FourbitSpec;

/// Members over the first one's input.
struct Group {
  std::vector<std::unique_ptr<DeviceProblem>> problems;
  std::vector<Matmul4bitParams> params;

  Group(const std::vector<FourbitSpec>& specs, std::mt19937& rng) {
    for (const FourbitSpec& spec : specs) {
      problems.push_back(std::make_unique<DeviceProblem>(spec, rng));
      if (problems.size() > 1) problems.back()->share_input(*problems.front());
      params.push_back(problems.back()->params());
    }
  }
  int32_t count() const { return static_cast<int32_t>(params.size()); }
  Matmul4bitCudaPlan plan(const DeviceProperties& device) const {
    return cuda::plan_matmul_4bit_group(params.data(), count(), device);
  }
  std::vector<DeviceProblem::Bytes> run(const Matmul4bitCudaPlan& plan, Stream stream = {}) {
    for (auto& problem : problems) problem->poison();
    EXPECT_STATUS_OK(cuda::matmul_4bit_group(plan, params.data(), count(), stream));
    std::vector<DeviceProblem::Bytes> outputs;
    for (auto& problem : problems) outputs.push_back(problem->output());
    return outputs;
  }
};

class CudaMatmulGroup : public CudaMatmulPath {
 protected:
  std::vector<FourbitSpec> any_group(int64_t m) {
    FourbitSpec s = aligned_problem(pick<int64_t>({64, 64, 64, 128, 256, 1024}));
    s.m = m;
    std::vector<FourbitSpec> specs;
    for (int64_t count = pick<int64_t>({2, 3, 3, 4}); count > 0; --count) {
      s.n = pick<int64_t>({1, 16, 17, upto(100), upto(700), 16 * upto(30)});
      s.bias = pick({false, true});
      s.bias_dtype = pick({DType::kFloat32, DType::kFloat16, DType::kBFloat16});
      specs.push_back(s);
    }
    return specs;
  }
};

TEST_P(CudaMatmulGroup, EveryMemberAgreesWithExactSums) {
  LOWBIT_NEEDS_GPU();
  int ran = 0;
  for (int i = 0; i < testing::rounds(120); ++i) {
    const std::vector<FourbitSpec> specs = any_group(pick<int64_t>({1, 1, upto(8), 8, upto(130)}));
    Group group(specs, rng_);
    DeviceProperties device = this->device();
    // Fewer multiprocessors: more tiles for a block.
    device.multiprocessors = pick({1, 2, 7, device.multiprocessors});
    const Matmul4bitCudaPlan plan = group.plan(device);
    if (plan.grid_x == 0) continue;  // one launch for each is better, or nothing fits
    SCOPED_TRACE(trace(specs[0], plan) + " members " + std::to_string(specs.size()));
    const bool early = device.compute_capability >= 90 && pick({false, true});
    for (Matmul4bitParams& p : group.params) p.programmatic_launch = early;
    const auto outputs = group.run(plan);
    for (size_t j = 0; j < specs.size(); ++j) {
      SCOPED_TRACE("member " + std::to_string(j) + " n " + std::to_string(specs[j].n));
      const int64_t step = std::max<int64_t>(1, specs[j].m * specs[j].n * specs[j].k / 1'000'000);
      ASSERT_TRUE(
          group.problems[j]->check(outputs[j], 1, static_cast<int64_t>(rng_() % step), step));
    }
    ASSERT_TRUE(group.run(plan) == outputs) << "results differ from launch to launch";
    if (HasFailure()) return;
    ++ran;
  }
  EXPECT_GT(ran, testing::rounds(120) == 120 ? 40 : -1);
}

TEST_P(CudaMatmulGroup, IsCapturable) {
  LOWBIT_NEEDS_GPU();
  FourbitSpec s;
  s.m = 2, s.n = 300, s.k = 1024, s.dtype = DType::kBFloat16, s.nested = true;
  std::vector<FourbitSpec> specs(3, s);
  specs[1].n = specs[2].n = 64;
  Group group(specs, rng_);
  const Matmul4bitCudaPlan plan = group.plan(device());
  ASSERT_GT(plan.grid_x, 0);
  const auto expected = group.run(plan);
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  EXPECT_STATUS_OK(
      cuda::matmul_4bit_group(plan, group.params.data(), group.count(), Stream{stream}));
  cudaGraph_t graph;
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  cudaGraphExec_t exec;
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  for (auto& problem : group.problems) problem->poison();
  EXPECT_CUDA_OK(cudaDeviceSynchronize());
  EXPECT_CUDA_OK(cudaGraphLaunch(exec, stream));
  EXPECT_CUDA_OK(cudaStreamSynchronize(stream));
  for (size_t j = 0; j < specs.size(); ++j) {
    EXPECT_TRUE(group.problems[j]->output() == expected[j]) << "member " << j;
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_P(CudaMatmulGroup, RefusesMembersThatDoNotBelongTogether) {
  LOWBIT_NEEDS_GPU();
  FourbitSpec s;
  s.m = 1, s.n = 100, s.k = 512, s.dtype = DType::kBFloat16;
  Group group({s, s}, rng_);
  const Matmul4bitCudaPlan plan = group.plan(device());
  ASSERT_GT(plan.grid_x, 0);
  const auto refused = [&] {
    return cuda::matmul_4bit_group(plan, group.params.data(), group.count(), Stream{}).code ==
           StatusCode::kInvalidArgument;
  };
  EXPECT_FALSE(refused());
  const Matmul4bitParams good = group.params[1];
  const auto refuses = [&](auto change) {
    group.params[1] = good;
    change(group.params[1]);
    return refused();
  };
  EXPECT_TRUE(refuses([](auto& p) { p.input = p.packed; }));
  EXPECT_TRUE(refuses([](auto& p) { p.blocksize = 128; }));
  EXPECT_TRUE(refuses([](auto& p) { p.quant_type = QuantType::kFP4; }));
  EXPECT_TRUE(refuses([](auto& p) { p.n = 2000; }));  // another problem's plan
  EXPECT_TRUE(refuses([](auto& p) { p.output = nullptr; }));
  EXPECT_TRUE(refuses([](auto& p) { p.scales = {}; }));
  EXPECT_EQ(StatusCode::kInvalidArgument,
            cuda::matmul_4bit_group(plan, group.params.data(), 1, Stream{}).code);
}

INSTANTIATE_TEST_SUITE_P(Path, CudaMatmulGroup, ::testing::Values("own", "sm80"),
                         [](const auto& path) { return std::string(path.param); });

}  // namespace
}  // namespace lowbit::kernels
