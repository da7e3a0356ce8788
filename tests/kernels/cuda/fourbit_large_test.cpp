// The 4-bit matmul for many tokens and the gradient of its input, against sums in float64.
#include "cuda/fourbit_large.h"

#include <gtest/gtest.h>

#include <thread>

#include "device_problem.h"

namespace lowbit::kernels {
namespace {

using test::DeviceBuffer;
using testing::device_properties;
using testing::DeviceProblem;
using testing::FourbitSpec;
using Bytes = std::vector<unsigned char>;

class CudaMatmulLarge : public ::testing::Test {
 protected:
  void SetUp() override {
    LOWBIT_NEEDS_GPU();
    device_ = device_properties();
    if (device_.compute_capability != 90) GTEST_SKIP() << "needs a CUDA GPU of sm_90";
  }
  template <typename T>
  T pick(std::initializer_list<T> values) {
    return *(values.begin() + rng_() % values.size());
  }
  int64_t upto(int64_t high) { return std::uniform_int_distribution<int64_t>(1, high)(rng_); }

  /// N of any length, K in 64 columns, blocks that may straddle rows.
  FourbitSpec any_problem(int tokens, bool backward) {
    FourbitSpec s;
    s.m = pick<int64_t>({1, upto(tokens), tokens, tokens + 1, 2 * tokens - 1, upto(4 * tokens)});
    s.n = pick<int64_t>({1, 63, 64, 127, 128, 256, 257, upto(40) * 8, upto(700)});
    s.k = 64 * pick<int64_t>({1, 2, 3, 4, 5, 8, 20, upto(24)});
    s.blocksize = pick<int64_t>({64, 64, 64, 128, 256, 1024, 4096});
    s.dtype = pick({DType::kFloat16, DType::kBFloat16});
    s.quant_type = pick({QuantType::kNF4, QuantType::kNF4, QuantType::kFP4});
    s.nested = pick({false, true});
    s.bias = !backward && pick({false, true});
    s.bias_dtype = pick({DType::kFloat32, DType::kFloat16, DType::kBFloat16});
    s.extra_stride = pick<int64_t>({0, 8, 64});
    return s;
  }
  /// A plan of the variant for 1, 2 or 4 parts of the depth, as many as there can be.
  Matmul4bitCudaPlan any_plan(const Matmul4bitParams& p, const DeviceProperties& device,
                              int variant, bool backward) {
    const int together = pick({1, 2});
    for (int splits = pick({1, 2, 4}); splits > 1; splits /= 2) {
      const Matmul4bitCudaPlan plan =
          cuda::plan_large(p, device, variant, together, splits, backward);
      if (plan.grid_x > 0) return plan;
    }
    return cuda::plan_large(p, device, variant, together, 1, backward);
  }
  /// With few multiprocessors a cluster goes through many tiles.
  DeviceProperties any_device() {
    DeviceProperties device = device_;
    device.multiprocessors = pick({2, 4, 10, 132});
    return device;
  }
  std::string trace(const FourbitSpec& spec, const Matmul4bitCudaPlan& plan) const {
    return spec.describe() + " kernel " + plan.kernel + " grid " + std::to_string(plan.grid_x) +
           " seed " + std::to_string(seed_);
  }

  DeviceProperties device_;
  std::random_device::result_type seed_ = std::random_device{}();
  std::mt19937 rng_{seed_};
};

TEST_F(CudaMatmulLarge, EveryVariantAgrees) {
  for (int variant = 0; variant < cuda::kLargeVariantCount; ++variant) {
    for (int i = 0; i < testing::rounds(60); ++i) {
      const FourbitSpec spec = any_problem(cuda::kLargeVariants[variant].tokens, false);
      DeviceProblem problem(spec, rng_);
      Matmul4bitParams p = problem.params();
      const Matmul4bitCudaPlan plan = any_plan(p, any_device(), variant, false);
      SCOPED_TRACE(trace(spec, plan));
      problem.poison();
      p.programmatic_launch = pick({false, true});
      EXPECT_STATUS_OK(cuda::matmul_4bit(plan, p, Stream{}));
      const Bytes once = problem.output();
      const int64_t step = std::max<int64_t>(1, spec.m * spec.n * spec.k / 4'000'000);
      ASSERT_TRUE(problem.check(once, 2, static_cast<int64_t>(rng_() % step), step));
      problem.poison();
      EXPECT_STATUS_OK(cuda::matmul_4bit(plan, p, Stream{}));
      ASSERT_TRUE(problem.output() == once) << "results differ from launch to launch";
      if (HasFailure()) return;
    }
  }
}

/// The gradient of the output on the device, and that of the input.
struct Gradient {
  Gradient(const FourbitSpec& spec, std::mt19937& rng)
      : stride((spec.n + 7) / 8 * 8 + spec.extra_stride),
        host(spec.m * stride * itemsize(spec.dtype)),
        output(spec.m * spec.k * itemsize(spec.dtype)) {
    std::normal_distribution<float> normal;
    for (int64_t j = 0; j < spec.m * stride; ++j) {
      // What lies behind a row must not be used.
      const bool inside = j % stride < spec.n;
      store_element(host.data(), spec.dtype, j, inside ? normal(rng) : std::nanf(""));
    }
    input = std::make_unique<DeviceBuffer<unsigned char>>(host);
  }
  Matmul4bitParams params(const DeviceProblem& problem) const {
    Matmul4bitParams p = problem.params();
    p.input = input->data();
    p.input_stride = stride;
    p.output = output.data();
    return p;
  }

  int64_t stride;
  Bytes host;
  std::unique_ptr<DeviceBuffer<unsigned char>> input;
  DeviceBuffer<unsigned char> output;
};

TEST_F(CudaMatmulLarge, EveryVariantOfTheBackwardAgrees) {
  for (int variant = 0; variant < cuda::kLargeVariantCount; ++variant) {
    for (int i = 0; i < testing::rounds(60); ++i) {
      const FourbitSpec spec = any_problem(cuda::kLargeVariants[variant].tokens, true);
      DeviceProblem problem(spec, rng_);
      const Gradient gradient(spec, rng_);
      Matmul4bitParams p = gradient.params(problem);
      const Matmul4bitCudaPlan plan = any_plan(p, any_device(), variant, true);
      SCOPED_TRACE(trace(spec, plan));
      gradient.output.fill(0xff);
      p.programmatic_launch = pick({false, true});
      EXPECT_STATUS_OK(cuda::matmul_4bit_backward_input(plan, p, Stream{}));
      const Bytes got = gradient.output.read();
      const std::vector<double> w = problem.host().weights();
      const int64_t step = std::max<int64_t>(1, spec.m * spec.n * spec.k / 4'000'000);
      const double unit = testing::rounding(spec.dtype);
      double error2 = 0.0, norm2 = 0.0;
      int64_t checked = 0;
      for (int64_t m = static_cast<int64_t>(rng_() % step) % spec.m; m < spec.m; m += step) {
        std::vector<double> expected(spec.k), magnitude(spec.k);
        for (int64_t n = 0; n < spec.n; ++n) {
          const double g = load_element(gradient.host.data(), spec.dtype, m * gradient.stride + n);
          for (int64_t k = 0; k < spec.k; ++k) {
            expected[k] += g * w[n * spec.k + k];
            magnitude[k] += std::fabs(g * w[n * spec.k + k]);
          }
        }
        for (int64_t k = 0; k < spec.k; ++k, ++checked) {
          const double error = load_element(got.data(), spec.dtype, m * spec.k + k) - expected[k];
          ASSERT_LE(std::fabs(error),
                    (2e-6 + 2 * unit) * magnitude[k] + unit * std::fabs(expected[k]) + 0x1p-24)
              << "token " << m << " column " << k;
          error2 += error * error;
          norm2 += expected[k] * expected[k];
        }
      }
      // Enough weights, of enough scales, for an average to mean something.
      const int64_t weights = spec.n * spec.k;
      if (weights >= 4096 && weights >= 64 * spec.blocksize && checked * spec.n >= 1 << 16) {
        ASSERT_LE(std::sqrt(error2 / norm2), spec.dtype == DType::kBFloat16 ? 3e-3 : 5e-4);
      }
      gradient.output.fill(0);
      EXPECT_STATUS_OK(cuda::matmul_4bit_backward_input(plan, p, Stream{}));
      ASSERT_TRUE(gradient.output.read() == got) << "results differ from launch to launch";
      if (HasFailure()) return;
    }
  }
}

/// The driver describes tensors for the copy engine only in a context, which a thread has from its
/// first call of the runtime on: here that is the launch.
TEST_F(CudaMatmulLarge, AThreadMayBeginWithALaunch) {
  FourbitSpec spec;
  spec.m = 130, spec.n = 320, spec.k = 320, spec.dtype = DType::kBFloat16;
  DeviceProblem problem(spec, rng_);
  const Gradient gradient(spec, rng_);
  const Matmul4bitParams forward = problem.params(), backward = gradient.params(problem);
  Matmul4bitParams few = forward;
  few.m = 40;
  for (const bool mid : {true, false}) {
    const Matmul4bitParams& p = mid ? few : forward;
    const Matmul4bitCudaPlan plan = cuda::plan_matmul_4bit(p, device_);
    Status status;
    std::thread([&] { status = cuda::matmul_4bit(plan, p, Stream{}); }).join();
    EXPECT_STATUS_OK(status);
  }
  const Matmul4bitCudaPlan plan = cuda::plan_large(backward, device_, 0, 1, 1, true);
  Status status;
  std::thread([&] { status = cuda::matmul_4bit_backward_input(plan, backward, Stream{}); }).join();
  EXPECT_STATUS_OK(status);
  EXPECT_CUDA_OK(cudaDeviceSynchronize());
}

TEST_F(CudaMatmulLarge, TenThousandLaunchesGiveTheSameBits) {
  for (const bool backward : {false, true}) {
    FourbitSpec spec;
    spec.m = 130, spec.n = 320, spec.k = 320, spec.dtype = DType::kBFloat16, spec.nested = true;
    DeviceProblem problem(spec, rng_);
    const Gradient gradient(spec, rng_);
    Matmul4bitParams p = backward ? gradient.params(problem) : problem.params();
    DeviceProperties device = device_;
    device.multiprocessors = 4;  // two clusters, several tiles for each
    const Matmul4bitCudaPlan plans[] = {cuda::plan_large(p, device, 0, 2, 1, backward),
                                        cuda::plan_large(p, device_, 0, 1, 2, backward)};
    ASSERT_EQ(plans[1].splits, 2);
    Bytes first[2], now(spec.m * 320 * 2);
    for (int i = 0; i < testing::rounds(10'000); ++i) {
      const int which = i / 2 % 2;
      SCOPED_TRACE(trace(spec, plans[which]));
      EXPECT_CUDA_OK(cudaMemsetAsync(p.output, 0xff, now.size()));
      p.programmatic_launch = i % 2 == 1;
      EXPECT_STATUS_OK(backward ? cuda::matmul_4bit_backward_input(plans[which], p, Stream{})
                                : cuda::matmul_4bit(plans[which], p, Stream{}));
      EXPECT_CUDA_OK(cudaMemcpy(now.data(), p.output, now.size(), cudaMemcpyDeviceToHost));
      if (first[which].empty()) first[which] = now;
      ASSERT_TRUE(now == first[which]) << "launch " << i;
      if (HasFailure()) return;
    }
  }
}

/// Two streams at once, captured and replayed: the bits of a launch alone.
TEST_F(CudaMatmulLarge, StreamsAndGraphsDoNotDisturbEachOther) {
  constexpr int kStreams = 2, kLayers = 4;
  cudaStream_t streams[kStreams];
  for (auto& s : streams) {
    ASSERT_EQ(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), cudaSuccess);
  }
  for (const bool early : {false, true}) {
    FourbitSpec spec;
    spec.m = 260, spec.n = 1024, spec.k = 1024, spec.dtype = DType::kFloat16, spec.nested = true;
    std::vector<std::unique_ptr<DeviceProblem>> layers[kStreams];
    std::vector<Bytes> expected;
    cudaGraphExec_t graphs[kStreams];
    // Forward and backward by turns: N = K, so that each output can be the next one's input.
    const auto enqueue = [&](int s) {
      const void* input = layers[s][0]->params().input;
      for (int i = 0; i < kLayers; ++i) {
        Matmul4bitParams p = layers[s][i]->params();
        p.input = input;
        p.programmatic_launch = early;
        const bool backward = (i + s) % 2 == 1;
        const Matmul4bitCudaPlan plan = cuda::plan_large(
            p, device_, (i + s) % cuda::kLargeVariantCount, 2 - i / 2 % 2, 1 + i % 2, backward);
        EXPECT_STATUS_OK(backward ? cuda::matmul_4bit_backward_input(plan, p, Stream{streams[s]})
                                  : cuda::matmul_4bit(plan, p, Stream{streams[s]}));
        input = p.output;
      }
    };
    for (int s = 0; s < kStreams; ++s) {
      for (int i = 0; i < kLayers; ++i) {
        layers[s].push_back(std::make_unique<DeviceProblem>(spec, rng_));
      }
      enqueue(s);
      EXPECT_CUDA_OK(cudaStreamSynchronize(streams[s]));
      expected.push_back(layers[s].back()->output());
      ASSERT_EQ(cudaStreamBeginCapture(streams[s], cudaStreamCaptureModeThreadLocal), cudaSuccess);
      enqueue(s);
      cudaGraph_t graph;
      ASSERT_EQ(cudaStreamEndCapture(streams[s], &graph), cudaSuccess);
      ASSERT_EQ(cudaGraphInstantiate(&graphs[s], graph, 0), cudaSuccess);
      cudaGraphDestroy(graph);
    }
    for (int repeat = 0; repeat < testing::rounds(20); ++repeat) {
      SCOPED_TRACE("early " + std::to_string(early) + " repeat " + std::to_string(repeat));
      for (auto& stream_layers : layers) {
        for (auto& layer : stream_layers) layer->poison();
      }
      EXPECT_CUDA_OK(cudaDeviceSynchronize());
      for (int i = 0; i < 3; ++i) {
        for (int s = 0; s < kStreams; ++s) {
          if (repeat % 2 == 0) {
            enqueue(s);
          } else {
            EXPECT_CUDA_OK(cudaGraphLaunch(graphs[s], streams[s]));
          }
        }
      }
      EXPECT_CUDA_OK(cudaDeviceSynchronize());
      for (int s = 0; s < kStreams; ++s) {
        ASSERT_TRUE(layers[s].back()->output() == expected[s]) << "stream " << s;
      }
    }
    for (auto& graph : graphs) cudaGraphExecDestroy(graph);
  }
  for (auto& s : streams) cudaStreamDestroy(s);
}

/// A token that is not finite spoils its own outputs alone, also in tiles that reach behind M.
TEST_F(CudaMatmulLarge, ValuesThatAreNotFiniteStayInTheirRow) {
  for (int variant = 0; variant < cuda::kLargeVariantCount; ++variant) {
    FourbitSpec spec;
    spec.m = 270, spec.n = 72, spec.k = 832, spec.dtype = DType::kBFloat16;
    DeviceProblem problem(spec, rng_);
    Matmul4bitParams p = problem.params();
    const uint16_t infinity = 0x7f80;
    EXPECT_CUDA_OK(cudaMemcpy(static_cast<uint16_t*>(const_cast<void*>(p.input)) + spec.k / 2,
                              &infinity, 2, cudaMemcpyHostToDevice));
    EXPECT_STATUS_OK(cuda::matmul_4bit(any_plan(p, device_, variant, false), p, Stream{}));
    const Bytes output = problem.output();
    for (int64_t i = 0; i < spec.m * spec.n; ++i) {
      EXPECT_EQ(i >= spec.n, std::isfinite(load_element(output.data(), spec.dtype, i))) << i;
    }
  }
}

}  // namespace
}  // namespace lowbit::kernels
