// The CUDA matmul over packed 4-bit weights, against sums in float64.
#include <gtest/gtest.h>

#include "cuda/fourbit_mid.h"
#include "matmul_problems.h"

namespace lowbit::kernels {
namespace {

using test::DeviceBuffer;
using testing::CudaMatmul;
using testing::CudaMatmulPath;
using testing::device_properties;
using testing::DeviceProblem;
using testing::FourbitSpec;
using testing::roundings;

TEST_P(CudaMatmulPath, AgreesWithExactSumsOnAnyProblem) {
  LOWBIT_NEEDS_GPU();
  for (int i = 0; i < testing::rounds(250); ++i) {
    const FourbitSpec spec = any_problem();
    DeviceProblem problem(spec, rng_);
    const Matmul4bitCudaPlan plan = cuda::plan_matmul_4bit(problem.params(), device());
    SCOPED_TRACE(trace(spec, plan));
    problem.poison();
    EXPECT_STATUS_OK(cuda::matmul_4bit(plan, problem.params(), Stream{}));
    ASSERT_TRUE(problem.check(problem.output(), roundings(plan)));
    if (HasFailure()) return;
  }
}

TEST_F(CudaMatmul, EveryVariantOfTheSmallKernelAgrees) {
  LOWBIT_NEEDS_GPU();
  const DeviceProperties real = device_properties();
  if (real.compute_capability < 80) GTEST_SKIP() << "needs a CUDA GPU of sm_80";
  for (int variant = 0; variant < cuda::kSmallVariantCount; ++variant) {
    const cuda::SmallVariant& v = cuda::kSmallVariants[variant];
    if (v.engine && real.compute_capability < 90) continue;
    int ran = 0;
    for (int i = 0; i < testing::rounds(40); ++i) {
      FourbitSpec spec =
          aligned_problem(v.fine ? 32 : pick<int64_t>({64, 64, 64, 128, 256, 512, 1024, 4096}));
      spec.m = pick<int64_t>({1, upto(v.tokens), v.tokens, v.tokens + upto(20)});
      // Fewer multiprocessors: more tiles for a block.
      DeviceProperties device = real;
      device.multiprocessors = pick({1, 2, 3, 7, 132});
      DeviceProblem problem(spec, rng_);
      const Matmul4bitCudaPlan plan = cuda::plan_small(problem.params(), device, variant);
      if (plan.grid_x == 0) continue;
      SCOPED_TRACE(trace(spec, plan));
      problem.poison();
      Matmul4bitParams p = problem.params();
      p.programmatic_launch = pick({false, true});
      EXPECT_STATUS_OK(cuda::matmul_4bit(plan, p, Stream{}));
      ASSERT_TRUE(problem.check(problem.output(), 1, 0, spec.n > 150 ? 5 : 1));
      if (HasFailure()) return;
      ++ran;
    }
    EXPECT_GT(ran, testing::rounds(40) == 40 ? 20 : -1) << v.name;
  }
}

TEST_F(CudaMatmul, EveryVariantOfTheMidKernelAgrees) {
  LOWBIT_NEEDS_GPU();
  const DeviceProperties device = device_properties();
  if (device.compute_capability != 90) GTEST_SKIP() << "needs a CUDA GPU of sm_90";
  for (int variant = 0; variant < cuda::kMidVariantCount; ++variant) {
    const cuda::MidVariant& v = cuda::kMidVariants[variant];
    int ran = 0;
    for (int i = 0; i < testing::rounds(40); ++i) {
      FourbitSpec spec = aligned_problem(pick<int64_t>({64, 64, 64, 64, 128, 256, 1024, 4096}));
      const int64_t rows = 64 * v.row_groups;
      spec.n = pick<int64_t>({spec.n, rows, rows - 4, rows + 1, 3 * rows});
      spec.m = pick<int64_t>({1, upto(v.tokens), v.tokens, v.tokens - 1, v.tokens + upto(20)});
      DeviceProblem problem(spec, rng_);
      const int splits = pick({1, 1, 2, 4, 8});
      const Matmul4bitCudaPlan plan = cuda::plan_mid(problem.params(), device, variant, splits);
      if (plan.grid_x == 0) continue;  // fewer stages of K than blocks
      SCOPED_TRACE(trace(spec, plan) + " splits " + std::to_string(splits));
      problem.poison();
      Matmul4bitParams p = problem.params();
      p.programmatic_launch = pick({false, true});
      EXPECT_STATUS_OK(cuda::matmul_4bit(plan, p, Stream{}));
      const auto once = problem.output();
      const int64_t step = std::max<int64_t>(1, spec.m * spec.n * spec.k / 4'000'000);
      ASSERT_TRUE(problem.check(once, v.scaled ? 2 : 1, static_cast<int64_t>(rng_() % step), step));
      problem.poison();
      EXPECT_STATUS_OK(cuda::matmul_4bit(plan, p, Stream{}));
      ASSERT_TRUE(problem.output() == once) << "results differ from launch to launch";
      if (HasFailure()) return;
      ++ran;
    }
    EXPECT_GT(ran, testing::rounds(40) == 40 ? 20 : -1) << v.name;
  }
}

TEST_P(CudaMatmulPath, AgreesAtTheSizesOfModels) {
  LOWBIT_NEEDS_GPU();
  const int64_t shapes[][2] = {{1024, 4096},  {4096, 4096}, {14336, 4096},
                               {4096, 14336}, {8192, 8192}, {2048, 2816}};
  int left = testing::rounds(6);
  for (const auto& [n, k] : shapes) {
    if (left-- == 0) break;
    for (const int64_t m : {1, 5, 16, 50, 128, 300}) {
      FourbitSpec spec;
      spec.m = m, spec.n = n, spec.k = k;
      spec.dtype = pick({DType::kFloat16, DType::kBFloat16});
      spec.nested = pick({false, true, true});
      DeviceProblem problem(spec, rng_);
      const Matmul4bitCudaPlan plan = cuda::plan_matmul_4bit(problem.params(), device());
      SCOPED_TRACE(trace(spec, plan));
      problem.poison();
      EXPECT_STATUS_OK(cuda::matmul_4bit(plan, problem.params(), Stream{}));
      const auto once = problem.output();
      const int64_t step = m < 20 ? 61 : 307;
      ASSERT_TRUE(problem.check(once, roundings(plan), static_cast<int64_t>(rng_() % step), step));
      for (int repeat = 0; repeat < testing::rounds(3); ++repeat) {
        problem.poison();
        EXPECT_STATUS_OK(cuda::matmul_4bit(plan, problem.params(), Stream{}));
        ASSERT_TRUE(problem.output() == once) << "results differ from launch to launch";
      }
    }
  }
}

TEST_F(CudaMatmul, TheGeneralKernelRepeatsBitForBit) {
  LOWBIT_NEEDS_GPU();
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    FourbitSpec spec;
    spec.m = 3, spec.n = 700, spec.k = 1001, spec.dtype = dtype, spec.nested = true;
    DeviceProblem problem(spec, rng_);
    const Matmul4bitCudaPlan plan = cuda::plan_matmul_4bit(problem.params(), device_properties());
    EXPECT_STREQ(plan.kernel, "general");
    EXPECT_STATUS_OK(cuda::matmul_4bit(plan, problem.params(), Stream{}));
    const auto once = problem.output();
    problem.poison();
    EXPECT_STATUS_OK(cuda::matmul_4bit(plan, problem.params(), Stream{}));
    EXPECT_TRUE(problem.output() == once);
  }
}

/// A chain, each product's output the next one's input: launched early or not, on a stream of its
/// own or captured and replayed, the bits are the same.
TEST_P(CudaMatmulPath, ChainsAreCapturableAndMayStartEarly) {
  LOWBIT_NEEDS_GPU();
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  const bool hopper = device_properties().compute_capability >= 90;
  const bool whole = testing::rounds(2048) == 2048;  // else under a sanitizer
  for (const int64_t m : {1, 4, 12, 40, 100}) {
    FourbitSpec spec;
    spec.m = m, spec.dtype = DType::kBFloat16, spec.nested = true;
    spec.n = spec.k = whole ? 2048 : 256;
    std::vector<std::unique_ptr<DeviceProblem>> layers;
    for (int i = 0; i < (whole ? 6 : 3); ++i)
      layers.push_back(std::make_unique<DeviceProblem>(spec, rng_));
    const auto enqueue = [&](bool early) {
      const void* input = layers[0]->params().input;
      for (auto& layer : layers) {
        Matmul4bitParams p = layer->params();
        p.input = input;
        p.programmatic_launch = early;
        const Matmul4bitCudaPlan plan = cuda::plan_matmul_4bit(p, device());
        EXPECT_STATUS_OK(cuda::matmul_4bit(plan, p, Stream{stream}));
        input = p.output;
      }
    };
    enqueue(false);
    EXPECT_CUDA_OK(cudaStreamSynchronize(stream));
    const auto expected = layers.back()->output();
    ASSERT_TRUE(layers.front()->check(layers.front()->output(), 1, 0, m < 20 ? 1 : 13));
    for (const bool early : {false, true}) {
      if (early && !hopper) continue;
      SCOPED_TRACE("m " + std::to_string(m) + " early " + std::to_string(early));
      for (int repeat = 0; repeat < testing::rounds(5); ++repeat) {
        for (auto& layer : layers) layer->poison();
        EXPECT_CUDA_OK(cudaDeviceSynchronize());
        enqueue(early);
        EXPECT_CUDA_OK(cudaStreamSynchronize(stream));
        ASSERT_TRUE(layers.back()->output() == expected);
      }
      ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
      enqueue(early);
      cudaGraph_t graph;
      ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
      cudaGraphExec_t exec;
      ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
      for (int repeat = 0; repeat < testing::rounds(3); ++repeat) {
        for (auto& layer : layers) layer->poison();
        EXPECT_CUDA_OK(cudaDeviceSynchronize());
        EXPECT_CUDA_OK(cudaGraphLaunch(exec, stream));
        EXPECT_CUDA_OK(cudaStreamSynchronize(stream));
        ASSERT_TRUE(layers.back()->output() == expected);
      }
      cudaGraphExecDestroy(exec);
      cudaGraphDestroy(graph);
    }
  }
  cudaStreamDestroy(stream);
}

TEST_P(CudaMatmulPath, ValuesThatAreNotFiniteStayInTheirRow) {
  LOWBIT_NEEDS_GPU();
  for (const int64_t m : {2, 7, 16, 33, 70}) {
    for (const int64_t k : {192, 1024, 77}) {
      FourbitSpec spec;
      spec.m = m, spec.n = 40, spec.k = k, spec.dtype = DType::kBFloat16;
      auto problem = std::make_unique<DeviceProblem>(spec, rng_);
      const Matmul4bitCudaPlan plan = cuda::plan_matmul_4bit(problem->params(), device());
      SCOPED_TRACE(trace(spec, plan));
      const uint16_t infinity = 0x7f80;
      Matmul4bitParams p = problem->params();
      EXPECT_CUDA_OK(
          cudaMemcpy(static_cast<uint16_t*>(const_cast<void*>(p.input)) + p.input_stride + k / 2,
                     &infinity, 2, cudaMemcpyHostToDevice));
      EXPECT_STATUS_OK(cuda::matmul_4bit(plan, p, Stream{}));
      const auto output = problem->output();
      for (int64_t n = 0; n < spec.n; ++n) {
        EXPECT_TRUE(std::isfinite(load_element(output.data(), spec.dtype, n))) << n;
        EXPECT_FALSE(std::isfinite(load_element(output.data(), spec.dtype, spec.n + n))) << n;
      }
    }
  }
}

TEST_F(CudaMatmul, BackwardAgreesWithExactSums) {
  LOWBIT_NEEDS_GPU();
  for (int i = 0; i < testing::rounds(120); ++i) {
    FourbitSpec spec = any_problem();
    spec.bias = false;
    DeviceProblem problem(spec, rng_);
    const int64_t stride = spec.n + spec.extra_stride, item = itemsize(spec.dtype);
    std::vector<unsigned char> gradient(spec.m * stride * item);
    std::normal_distribution<float> normal;
    for (int64_t j = 0; j < spec.m * stride; ++j) {
      store_element(gradient.data(), spec.dtype, j, normal(rng_));
    }
    DeviceBuffer<unsigned char> d_gradient(gradient, spec.misalignment * item);
    DeviceBuffer<unsigned char> output(spec.m * spec.k * item, spec.misalignment * item);
    Matmul4bitParams p = problem.params();
    p.input = d_gradient.data();
    p.input_stride = stride;
    p.output = output.data();
    const Matmul4bitCudaPlan plan = cuda::plan_matmul_4bit_backward_input(p, device_properties());
    DeviceBuffer<unsigned char> workspace(plan.workspace_bytes);
    p.workspace = workspace.data();
    SCOPED_TRACE(trace(spec, plan) + " splits " + std::to_string(plan.splits));
    output.fill(0xff);
    EXPECT_STATUS_OK(cuda::matmul_4bit_backward_input(plan, p, Stream{}));
    const auto got = output.read();
    workspace.read();  // its canaries
    const std::vector<double> w = problem.host().weights();
    for (int64_t m = 0; m < spec.m; ++m) {
      std::vector<double> expected(spec.k), magnitude(spec.k);
      for (int64_t n = 0; n < spec.n; ++n) {
        const double g = load_element(gradient.data(), spec.dtype, m * stride + n);
        for (int64_t k = 0; k < spec.k; ++k) {
          expected[k] += g * w[n * spec.k + k];
          magnitude[k] += std::fabs(g * w[n * spec.k + k]);
        }
      }
      for (int64_t k = 0; k < spec.k; ++k) {
        ASSERT_LE(std::fabs(load_element(got.data(), spec.dtype, m * spec.k + k) - expected[k]),
                  (2e-6 + roundings(plan) * testing::rounding(spec.dtype)) * magnitude[k] +
                      0x1p-25 + testing::rounding(spec.dtype) * std::fabs(expected[k]))
            << "token " << m << " column " << k;
      }
    }
    output.fill(0);
    EXPECT_STATUS_OK(cuda::matmul_4bit_backward_input(plan, p, Stream{}));
    ASSERT_TRUE(output.read() == got) << "results differ from launch to launch";
  }
}

TEST_P(CudaMatmulPath, EmptyProblemsAreFineAndBadArgumentsAreRefused) {
  LOWBIT_NEEDS_GPU();
  FourbitSpec spec;
  spec.m = 3, spec.n = 33, spec.k = 128, spec.bias = true, spec.dtype = DType::kFloat16;
  DeviceProblem problem(spec, rng_);
  const DeviceProperties path = device();
  Matmul4bitParams p = problem.params();
  p.m = 0;
  EXPECT_STATUS_OK(cuda::matmul_4bit(cuda::plan_matmul_4bit(p, path), p, Stream{}));
  p = problem.params();
  p.k = 0;  // an empty sum: the bias
  problem.poison();
  EXPECT_STATUS_OK(cuda::matmul_4bit(cuda::plan_matmul_4bit(p, path), p, Stream{}));
  const auto output = problem.output();
  for (int64_t n = 0; n < spec.n; ++n) {
    EXPECT_NEAR(load_element(output.data(), spec.dtype, 2 * spec.n + n), problem.host().bias(n),
                0x1p-11 * std::fabs(problem.host().bias(n)));
  }
  const Matmul4bitCudaPlan plan = cuda::plan_matmul_4bit(problem.params(), path);
  p = problem.params();
  p.blocksize = 63;
  EXPECT_EQ(StatusCode::kInvalidArgument, cuda::matmul_4bit(plan, p, Stream{}).code);
  p = problem.params();
  p.scales = {};
  EXPECT_EQ(StatusCode::kInvalidArgument, cuda::matmul_4bit(plan, p, Stream{}).code);
  p = problem.params();
  p.m = 200;  // another problem's plan
  if (plan.id >= cuda::kSmall) {
    EXPECT_EQ(StatusCode::kInvalidArgument, cuda::matmul_4bit(plan, p, Stream{}).code);
  }
  EXPECT_EQ(StatusCode::kInvalidArgument, cuda::matmul_4bit({}, problem.params(), Stream{}).code);
}

INSTANTIATE_TEST_SUITE_P(Path, CudaMatmulPath, ::testing::Values("own", "sm80"),
                         [](const auto& path) { return std::string(path.param); });

}  // namespace
}  // namespace lowbit::kernels
