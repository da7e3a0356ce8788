// Stacks of 4-bit weights over tokens in groups, against sums in float64.
#include "cuda/fourbit_experts.h"

#include <gtest/gtest.h>

#include "cuda/fourbit_mid_sm80.h"
#include "matmul_problems.h"

namespace lowbit::kernels {
namespace {

using testing::CudaMatmul;
using testing::device_properties;
using testing::DeviceBuffer;
using testing::DeviceProblem;
using testing::FourbitSpec;
using Bytes = DeviceProblem::Bytes;

/// A stack with its input, ends and output on the device.
class Experts {
 public:
  /// spec: n rows of one expert, m tokens of all.
  Experts(FourbitSpec spec, int64_t experts, std::vector<int32_t> ends, bool backward,
          std::mt19937& rng)
      : spec_(spec),
        ends_(std::move(ends)),
        backward_(backward),
        depth_(backward ? spec.n : spec.k),
        width_(backward ? spec.k : spec.n),
        stride_(depth_ + spec.extra_stride),
        stack_(as_weight(spec, experts), rng) {
    const int64_t item = itemsize(spec.dtype), offset = spec.misalignment * item;
    std::normal_distribution<float> normal;
    Bytes input(static_cast<size_t>(((spec.m - 1) * stride_ + depth_) * item));
    for (int64_t i = 0; i < (spec.m - 1) * stride_ + depth_; ++i) {
      store_element(input.data(), spec.dtype, i, normal(rng));
    }
    inputs_.resize(static_cast<size_t>(spec.m * depth_));
    for (int64_t m = 0; m < spec.m; ++m) {
      for (int64_t i = 0; i < depth_; ++i) {
        inputs_[m * depth_ + i] = load_element(input.data(), spec.dtype, m * stride_ + i);
      }
    }
    input_ = std::make_unique<DeviceBuffer<unsigned char>>(input, offset);
    output_ = std::make_unique<DeviceBuffer<unsigned char>>(spec.m * width_ * item, offset);
    device_ends_ = std::make_unique<DeviceBuffer<int32_t>>(ends_);
    p_.stack = stack_.params();
    p_.stack.m = spec.m;
    p_.stack.input = input_->data();
    p_.stack.input_stride = stride_;
    p_.stack.output = output_->data();
    p_.experts = experts;
    p_.ends = device_ends_->data();
  }

  GroupedMatmul4bitParams& params() { return p_; }
  DeviceBuffer<int32_t>& device_ends() { return *device_ends_; }
  void set_ends(std::vector<int32_t> ends) {
    ends_ = std::move(ends);
    EXPECT_CUDA_OK(
        cudaMemcpy(device_ends_->data(), ends_.data(), 4 * ends_.size(), cudaMemcpyHostToDevice));
  }
  void poison() { output_->fill(0xff); }
  Bytes output() const { return output_->read(); }
  Bytes run(const Matmul4bitCudaPlan& plan, Stream stream = {}) {
    poison();
    EXPECT_STATUS_OK(backward_ ? cuda::grouped_matmul_4bit_backward_input(p_, stream)
                               : cuda::grouped_matmul_4bit(plan, p_, stream));
    return output();
  }

  /// Every step-th column from `first` on, in float64; zeros behind the last end.
  ::testing::AssertionResult check(const Bytes& output, int roundings, int64_t first,
                                   int64_t step) {
    const auto w = stack_.host().weights();
    const double unit = testing::rounding(spec_.dtype);
    size_t e = 0;
    for (int64_t m = 0; m < spec_.m; ++m) {
      while (e < ends_.size() && m >= ends_[e]) ++e;
      for (int64_t c = first; c < width_; c += step) {
        double sum = 0.0, magnitude = 0.0;
        for (int64_t d = 0; d < depth_ && e < ends_.size(); ++d) {
          const int64_t row = static_cast<int64_t>(e) * spec_.n + (backward_ ? d : c);
          const double term = inputs_[m * depth_ + d] * w[row * spec_.k + (backward_ ? c : d)];
          sum += term;
          magnitude += std::fabs(term);
        }
        const double got = load_element(output.data(), spec_.dtype, m * width_ + c);
        const double bound = e == ends_.size() ? 0.0
                                               : (2e-6 + roundings * unit) * magnitude +
                                                     unit * (std::fabs(sum) + 1e-6) + 0x1p-25;
        if (!(std::fabs(got - sum) <= bound)) {
          return ::testing::AssertionFailure()
                 << "token " << m << " expert " << e << " column " << c << ": got " << got
                 << ", expected " << sum << " +- " << bound;
        }
      }
    }
    return ::testing::AssertionSuccess();
  }

 private:
  static FourbitSpec as_weight(FourbitSpec spec, int64_t experts) {
    spec.m = 1;
    spec.n *= experts;
    return spec;
  }

  FourbitSpec spec_;
  std::vector<int32_t> ends_;
  bool backward_;
  int64_t depth_, width_, stride_;
  DeviceProblem stack_;
  std::vector<double> inputs_;
  std::unique_ptr<DeviceBuffer<unsigned char>> input_, output_;
  std::unique_ptr<DeviceBuffer<int32_t>> device_ends_;
  GroupedMatmul4bitParams p_;
};

class CudaExperts : public CudaMatmul {
 protected:
  void SetUp() override {
    LOWBIT_NEEDS_GPU();
    device_ = device_properties();
  }

  /// Even and uneven groups, empty ones, one that has them all, tokens behind the last one.
  std::vector<int32_t> any_ends(int64_t experts, int64_t m) {
    const int64_t used = pick<int64_t>({m, m, m, m - static_cast<int64_t>(rng_() % (m + 1))});
    std::vector<int64_t> counts(static_cast<size_t>(experts));
    switch (rng_() % 4) {
      case 0:
        for (int64_t i = 0; i < used; ++i) ++counts[i % experts];
        break;
      case 1:
        counts[rng_() % experts] = used;
        break;
      case 2: {  // few
        const size_t first = rng_() % counts.size(), second = rng_() % counts.size();
        for (int64_t i = 0; i < used; ++i) ++counts[rng_() % 2 == 0 ? first : second];
        break;
      }
      default:
        for (int64_t i = 0; i < used; ++i) ++counts[rng_() % counts.size()];
    }
    std::vector<int32_t> ends;
    for (const int64_t count : counts) {
      ends.push_back((ends.empty() ? 0 : ends.back()) + static_cast<int32_t>(count));
    }
    return ends;
  }
  int64_t any_experts() { return pick<int64_t>({1, 2, 3, 8, upto(12), 31 + upto(40)}); }

  /// What the tensor-core kernel takes, in granules of 64, 32 or 16 columns.
  FourbitSpec aligned_experts(int64_t granule, int64_t experts) {
    FourbitSpec s;
    s.m = pick<int64_t>({1, 2, upto(16), upto(70), upto(70), 64 + upto(200)});
    s.n = experts > 12 ? upto(70) : pick<int64_t>({1, 32, 33, 64, 127, 128, upto(200)});
    s.k = granule * pick<int64_t>({1, 2, 4, upto(1000 / granule)});
    s.blocksize = pick<int64_t>({64, 64, 64, 128, 256, 1024, 4096});
    if (granule < 64) s.blocksize = pick<int64_t>({32, 32, s.blocksize});
    s.dtype = pick({DType::kFloat16, DType::kBFloat16});
    s.quant_type = pick({QuantType::kNF4, QuantType::kFP4});
    s.nested = pick({false, true});
    s.extra_stride = pick<int64_t>({0, 8, 64});
    return s;
  }
  FourbitSpec any_experts_problem(int64_t experts) {
    FourbitSpec s = any_problem();
    s.bias = s.custom_table = false;
    s.n = pick<int64_t>({1, 31, 32, 33, upto(experts > 12 ? 40 : 150)});
    s.k = std::min<int64_t>(s.k, experts > 12 ? 200 : 700);
    return s;
  }
  int64_t step_of(const FourbitSpec& s) const {
    return std::max<int64_t>(1, s.m * s.n * s.k / 2'000'000);
  }

  DeviceProperties device_;
};

TEST_F(CudaExperts, EveryVariantAgrees) {
  if (device_.compute_capability < 80) GTEST_SKIP() << "needs a CUDA GPU of sm_80";
  for (int variant = 0; variant < cuda::kMidSm80VariantCount; ++variant) {
    const cuda::MidSm80Variant& v = cuda::kMidSm80Variants[variant];
    int ran = 0;
    for (int i = 0; i < testing::rounds(25) && v.experts; ++i) {
      const int64_t experts = any_experts();
      const FourbitSpec spec = aligned_experts(v.granule, experts);
      Experts problem(spec, experts, any_ends(experts, spec.m), false, rng_);
      const Matmul4bitCudaPlan plan = cuda::plan_experts(problem.params(), device_, variant);
      if (plan.grid_x == 0) continue;  // a device with little shared memory
      SCOPED_TRACE(trace(spec, plan) + " experts " + std::to_string(experts));
      problem.params().stack.programmatic_launch =
          device_.compute_capability >= 90 && pick({false, true});
      const Bytes once = problem.run(plan);
      const int64_t step = step_of(spec);
      ASSERT_TRUE(problem.check(once, 1, static_cast<int64_t>(rng_() % step), step));
      ASSERT_TRUE(problem.run(plan) == once) << "results differ from launch to launch";
      if (HasFailure()) return;
      ++ran;
    }
    EXPECT_TRUE(ran > 0 || !v.experts ||
                cuda::mid_sm80_layout(v).bytes > device_.shared_bytes_per_block)
        << v.name;
  }
}

/// Any problem on the plan that is chosen for it, by this device and by older ones.
TEST_F(CudaExperts, TheChosenPlanAgrees) {
  for (int i = 0; i < testing::rounds(150); ++i) {
    const int64_t experts = any_experts();
    const FourbitSpec spec =
        pick({false, true}) ? aligned_experts(64, experts) : any_experts_problem(experts);
    Experts problem(spec, experts, any_ends(experts, spec.m), false, rng_);
    DeviceProperties device = device_;
    device.compute_capability = std::min(device.compute_capability, pick({75, 80, 90}));
    const Matmul4bitCudaPlan plan = cuda::plan_grouped_matmul_4bit(problem.params(), device);
    ASSERT_GT(plan.grid_x, 0);
    SCOPED_TRACE(trace(spec, plan) + " experts " + std::to_string(experts));
    const Bytes once = problem.run(plan);
    const int64_t step = step_of(spec);
    ASSERT_TRUE(problem.check(once, plan.id >= cuda::kMidSm80 ? 1 : 0,
                              static_cast<int64_t>(rng_() % step), step));
    ASSERT_TRUE(problem.run(plan) == once) << "results differ from launch to launch";
    if (HasFailure()) return;
  }
}

TEST_F(CudaExperts, BackwardAgrees) {
  for (int i = 0; i < testing::rounds(100); ++i) {
    const int64_t experts = any_experts();
    const FourbitSpec spec = any_experts_problem(experts);
    Experts problem(spec, experts, any_ends(experts, spec.m), true, rng_);
    SCOPED_TRACE(trace(spec, {}) + " experts " + std::to_string(experts));
    const Bytes once = problem.run({});
    const int64_t step = step_of(spec);
    ASSERT_TRUE(problem.check(once, 0, static_cast<int64_t>(rng_() % step), step));
    ASSERT_TRUE(problem.run({}) == once) << "results differ from launch to launch";
    if (HasFailure()) return;
  }
}

/// The kernels that the tests below go through: tensor cores and not.
std::vector<FourbitSpec> two_kernels() {
  FourbitSpec tensor;
  tensor.m = 90, tensor.n = 70, tensor.k = 256, tensor.dtype = DType::kBFloat16;
  FourbitSpec general = tensor;
  general.dtype = DType::kFloat32;
  return {tensor, general};
}

TEST_F(CudaExperts, NoEndLeadsOutside) {
  constexpr int32_t kFar = std::numeric_limits<int32_t>::max();
  for (const FourbitSpec& spec : two_kernels()) {
    Experts problem(spec, 5, {-7, 20, 50, 700, kFar}, false, rng_);
    const Matmul4bitCudaPlan plan = cuda::plan_grouped_matmul_4bit(problem.params(), device_);
    const Bytes clamped = problem.run(plan);
    problem.set_ends({0, 20, 50, 90, 90});
    EXPECT_TRUE(problem.run(plan) == clamped);
    // Values are unspecified now; the buffers' canaries and compute-sanitizer watch.
    for (int i = 0; i < 50; ++i) {
      std::vector<int32_t> ends(5);
      for (int32_t& end : ends) end = static_cast<int32_t>(rng_()) >> pick({0, 20, 24});
      problem.set_ends(ends);
      problem.run(plan);
    }
    problem.set_ends({10, 20, 30, 40, 50});
    ASSERT_TRUE(problem.check(problem.run(plan), plan.id >= cuda::kMidSm80 ? 1 : 0, 0, 1));
  }
}

TEST_F(CudaExperts, GraphsFollowTheEnds) {
  for (const FourbitSpec& spec : two_kernels()) {
    Experts problem(spec, 6, any_ends(6, spec.m), false, rng_);
    const Matmul4bitCudaPlan plan = cuda::plan_grouped_matmul_4bit(problem.params(), device_);
    DeviceBuffer<int32_t> next(6);
    cudaStream_t stream;
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    // The ends are written right before they are read.
    EXPECT_CUDA_OK(cudaMemcpyAsync(problem.device_ends().data(), next.data(), 24,
                                   cudaMemcpyDeviceToDevice, stream));
    EXPECT_STATUS_OK(cuda::grouped_matmul_4bit(plan, problem.params(), Stream{stream}));
    cudaGraph_t graph;
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    cudaGraphExec_t exec;
    ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    for (int i = 0; i < 8; ++i) {
      const std::vector<int32_t> ends = any_ends(6, spec.m);
      EXPECT_CUDA_OK(cudaMemcpy(next.data(), ends.data(), 24, cudaMemcpyHostToDevice));
      problem.poison();
      EXPECT_CUDA_OK(cudaDeviceSynchronize());
      EXPECT_CUDA_OK(cudaGraphLaunch(exec, stream));
      EXPECT_CUDA_OK(cudaStreamSynchronize(stream));
      const Bytes replayed = problem.output();
      problem.set_ends(ends);
      ASSERT_TRUE(problem.run(plan) == replayed) << "replay " << i << " seed " << seed_;
      ASSERT_TRUE(problem.check(replayed, plan.id >= cuda::kMidSm80 ? 1 : 0, 0, 1));
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
}

TEST_F(CudaExperts, RefusesWhatItCannotRun) {
  const FourbitSpec spec = two_kernels()[0];
  Experts problem(spec, 4, {10, 20, 60, 90}, false, rng_);
  const Matmul4bitCudaPlan plan = cuda::plan_grouped_matmul_4bit(problem.params(), device_);
  const GroupedMatmul4bitParams good = problem.params();
  const auto code = [&](auto change) {
    GroupedMatmul4bitParams p = good;
    change(p);
    return cuda::grouped_matmul_4bit(plan, p, Stream{}).code;
  };
  EXPECT_EQ(StatusCode::kOk, code([](auto&) {}));
  EXPECT_EQ(StatusCode::kOk, code([](auto& p) { p.stack.m = 0; }));
  const StatusCode refused = StatusCode::kInvalidArgument;
  EXPECT_EQ(refused, code([](auto& p) { p.ends = nullptr; }));
  EXPECT_EQ(refused, code([](auto& p) { p.experts = 0; }));
  EXPECT_EQ(refused, code([](auto& p) { p.experts = 3; }));  // 280 rows
  EXPECT_EQ(refused, code([](auto& p) { p.experts = 2; }));  // another problem's plan
  EXPECT_EQ(refused, code([](auto& p) { p.stack.m = 3; }));
  EXPECT_EQ(refused, code([](auto& p) { p.stack.output = nullptr; }));
  EXPECT_EQ(refused, code([](auto& p) { p.stack.scales = {}; }));
  EXPECT_EQ(refused, code([](auto& p) { p.stack.bias = p.stack.packed; }));
  EXPECT_EQ(refused, code([](auto& p) { p.stack.blocksize = 3; }));
  GroupedMatmul4bitParams p = good;
  p.ends = nullptr;
  EXPECT_EQ(refused, cuda::grouped_matmul_4bit_backward_input(p, Stream{}).code);
}

}  // namespace
}  // namespace lowbit::kernels
