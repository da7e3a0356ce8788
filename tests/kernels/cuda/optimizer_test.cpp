// Optimizer steps on CUDA against the scalar reference: states to the bit, parameters to the bit
// with float32 states and to the rounding of an approximate root and quotient with 8-bit ones.
#include <cmath>
#include <cstdlib>

#include "device_buffer.h"
#include "kernels/optimizer_problem.h"

namespace lowbit::kernels::testing {
namespace {

using test::DeviceBuffer;
using Bytes = std::vector<unsigned char>;

/// The buffers of a problem on the device, at the same misalignments.
class DeviceCopy {
 public:
  explicit DeviceCopy(OptimizerProblem& problem) : problem_(problem) {
    OptimizerParams host = problem.params();
    for (int64_t i = 0; i < host.ntensors; ++i) {
      auto& t = *problem.tensors[static_cast<size_t>(i)];
      OptimizerTensor device{.numel = t.numel, .hyper = t.hyper};
      device.p = upload(t.p);
      device.g = upload(t.g);
      device.state1 = upload(t.state1);
      device.state2 = has_second_state(problem.kind) ? upload(t.state2) : nullptr;
      device.absmax1 = problem.blockwise ? static_cast<float*>(upload(t.absmax1)) : nullptr;
      device.absmax2 = problem.blockwise ? static_cast<float*>(upload(t.absmax2)) : nullptr;
      unorms_.push_back(std::make_unique<DeviceBuffer<float>>(std::vector<float>{NAN}));
      device.unorm = unorms_.back()->data();
      tensors_.push_back(device);
    }
    for (const bool is_signed : {true, false}) {
      const float* map = dynamic_map(is_signed);
      maps_.push_back(std::make_unique<DeviceBuffer<float>>(std::vector<float>(map, map + 256)));
    }
    workspace_ = std::make_unique<DeviceBuffer<float>>(
        static_cast<size_t>(optimizer_workspace_bytes(host)) / sizeof(float));
  }

  OptimizerParams params() {
    const int64_t bytes = optimizer_workspace_bytes(problem_.params());
    return {problem_.kind,
            problem_.blockwise,
            problem_.dtype,
            tensors_.data(),
            static_cast<int64_t>(tensors_.size()),
            problem_.hypers.data(),
            static_cast<int64_t>(problem_.hypers.size()),
            problem_.blockwise ? maps_[0]->data() : nullptr,
            problem_.blockwise ? maps_[1]->data() : nullptr,
            bytes > 0 ? workspace_->data() : nullptr};
  }

  void step() { EXPECT_STATUS_OK(cuda::optimizer_step(params(), Stream{})); }

  /// Buffers in the order of upload: of tensor i p, g, state1, state2 (if any), absmax1, absmax2.
  enum Part { kP, kG, kState1, kState2, kAbsmax1, kAbsmax2 };
  Bytes read(size_t tensor, Part part) {
    const auto& t = tensors_[tensor];
    const void* pointers[] = {t.p, t.g, t.state1, t.state2, t.absmax1, t.absmax2};
    for (const auto& buffer : buffers_) {
      if (pointers[part] == buffer->data()) return buffer->read();
    }
    return {};
  }
  void write_gradient(size_t tensor, GuardedBuffer& g) {
    EXPECT_CUDA_OK(cudaMemcpy(const_cast<void*>(tensors_[tensor].g), g.data(), g.bytes(),
                              cudaMemcpyHostToDevice));
  }
  float unorm(size_t tensor) { return unorms_[tensor]->read()[0]; }

 private:
  void* upload(GuardedBuffer& buffer) {
    const auto* from = static_cast<const unsigned char*>(buffer.data());
    const size_t offset = reinterpret_cast<uintptr_t>(from) % 64;
    buffers_.push_back(
        std::make_unique<DeviceBuffer<unsigned char>>(Bytes(from, from + buffer.bytes()), offset));
    return buffers_.back()->data();
  }

  OptimizerProblem& problem_;
  std::vector<OptimizerTensor> tensors_;
  std::vector<std::unique_ptr<DeviceBuffer<unsigned char>>> buffers_;
  std::vector<std::unique_ptr<DeviceBuffer<float>>> maps_, unorms_;
  std::unique_ptr<DeviceBuffer<float>> workspace_;
};

double unit_of(DType dtype, double x) {
  const double unit = dtype == DType::kBFloat16  ? 0x1p-7
                      : dtype == DType::kFloat16 ? 0x1p-10
                                                 : 0x1p-23;
  return unit * std::fabs(x) + (dtype == DType::kFloat16 ? 0x1p-24 : 0x1p-126);
}

class CudaOptimizer : public ::testing::Test {
 protected:
  CudaOptimizer() {
    std::printf("seed %u\n", seed_);
    random_.seed(seed_);
  }
  uint32_t below(uint32_t n) { return random_() % n; }

  OptimizerProblem random_problem(Content content) {
    OptimizerProblem problem;
    problem.kind = kOptimizerKinds[below(6)];
    problem.blockwise = below(2) == 0;
    problem.dtype = kDTypes[below(3)];
    const int32_t hypers = 1 + static_cast<int32_t>(below(2));
    for (int32_t i = 0; i < hypers; ++i) {
      problem.hypers.push_back(random_hyper(problem.kind, random_));
      problem.hypers.back().stochastic_rounding = below(4) == 0;
      problem.hypers.back().rounding_seed = random_();
    }
    const uint32_t count = 1 + below(4);
    for (uint32_t i = 0; i < count; ++i) {
      const int64_t numel = below(3) == 0 ? below(600) : below(10000);
      auto& t =
          problem.add(numel, static_cast<int32_t>(below(2)) % hypers, below(2) == 0 ? 0 : below(7));
      fill_random(t.p.data(), problem.dtype, numel, random_, content);
      fill(problem, t, content);
    }
    return problem;
  }
  void fill(const OptimizerProblem& problem, OptimizerProblem::Tensor& t, Content content) {
    fill_random(t.g.data(), problem.dtype, t.numel, random_, content);
    for (int64_t j = 0; j < t.numel; ++j) {
      if (below(8) == 0) store_element(t.g.data(), problem.dtype, j, 0.0f);
    }
  }

  void expect_same(DeviceCopy& device, OptimizerProblem& truth, const std::vector<Bytes>& before) {
    const bool limited = truth.params().workspace != nullptr;
    for (size_t i = 0; i < truth.tensors.size(); ++i) {
      auto& t = *truth.tensors[i];
      const auto same = [&](DeviceCopy::Part part, GuardedBuffer& expected, bool codes) {
        const Bytes got = device.read(i, part);
        if (expected.bytes() == 0) return ::testing::AssertionSuccess();
        if (!codes) {
          return same_elements(got.data(), expected.data(), DType::kFloat32,
                               static_cast<int64_t>(expected.bytes() / 4));
        }
        for (size_t j = 0; j < got.size(); ++j) {
          if (got[j] != expected.as<uint8_t>()[j]) {
            return ::testing::AssertionFailure()
                   << "code " << j << " of " << got.size() << ": " << int{got[j]} << " and "
                   << int{expected.as<uint8_t>()[j]};
          }
        }
        return ::testing::AssertionSuccess();
      };
      ASSERT_TRUE(same(DeviceCopy::kState1, t.state1, truth.blockwise)) << "state1, tensor " << i;
      if (has_second_state(truth.kind)) {
        ASSERT_TRUE(same(DeviceCopy::kState2, t.state2, truth.blockwise)) << "state2, tensor " << i;
      }
      if (truth.blockwise) {
        ASSERT_TRUE(same(DeviceCopy::kAbsmax1, t.absmax1, false)) << "absmax1, tensor " << i;
        if (has_second_state(truth.kind)) {
          ASSERT_TRUE(same(DeviceCopy::kAbsmax2, t.absmax2, false)) << "absmax2, tensor " << i;
        }
      }
      const Bytes p = device.read(i, DeviceCopy::kP);
      if (!truth.blockwise && !limited) {
        ASSERT_TRUE(same_elements(p.data(), t.p.data(), truth.dtype, t.numel)) << "p, tensor " << i;
      } else {
        expect_near(p, t, truth.dtype, before[i], i, limited ? 1e-4 : 2e-6);
      }
      if (limited && truth.hypers[static_cast<size_t>(t.hyper)].max_unorm > 0) {
        const float got = device.unorm(i);
        if (std::isfinite(t.unorm)) {
          ASSERT_NEAR(got, t.unorm, 1e-4 * t.unorm) << i;
        }
      }
    }
  }

  /// Within 2e-6 of the update (1e-4 where a norm, summed in another order, scales it), and one
  /// rounding of p.
  void expect_near(const Bytes& p, OptimizerProblem::Tensor& t, DType dtype, const Bytes& before,
                   size_t tensor, double part_of_update) {
    for (int64_t j = 0; j < t.numel; ++j) {
      const double got = load_element(p.data(), dtype, j),
                   expected = load_element(t.p.data(), dtype, j),
                   old = load_element(before.data(), dtype, j);
      if (std::isnan(expected) || std::isinf(expected)) {
        ASSERT_TRUE(got == expected || std::isnan(got) == std::isnan(expected))
            << "p " << j << " of tensor " << tensor << ": " << got << " and " << expected;
        continue;
      }
      const double allowed =
          part_of_update * std::fabs(expected - old) + 1.01 * unit_of(dtype, expected);
      ASSERT_LE(std::fabs(got - expected), allowed)
          << "p " << j << " of tensor " << tensor << ": " << got << " and " << expected;
    }
  }

  static std::vector<Bytes> parameters(OptimizerProblem& problem) {
    std::vector<Bytes> all;
    for (auto& t : problem.tensors) {
      const auto* from = t->p.as<unsigned char>();
      all.emplace_back(from, from + t->p.bytes());
    }
    return all;
  }

  const uint32_t seed_ = std::random_device{}();
  std::mt19937 random_;
};

TEST_F(CudaOptimizer, IsTheReference) {
  LOWBIT_NEEDS_GPU();
  for (int trial = 0; trial < 200; ++trial) {
    const Content content = kContents[below(5)];
    OptimizerProblem truth = random_problem(content);
    SCOPED_TRACE(::testing::Message()
                 << "trial " << trial << " kind " << int(truth.kind) << " blockwise "
                 << truth.blockwise << " dtype " << int(truth.dtype) << " content " << int(content)
                 << " max_unorm " << truth.hypers[0].max_unorm << " skip "
                 << truth.hypers[0].skip_zeros << " random rounding "
                 << truth.hypers[0].stochastic_rounding);
    for (int step = 0; step < 3; ++step) {
      // Every step from the reference's state: differences of p do not add up.
      DeviceCopy device(truth);
      const std::vector<Bytes> before = parameters(truth);
      device.step();
      truth.step_on_ref();
      expect_same(device, truth, before);
      if (HasFatalFailure()) return;
      for (auto& t : truth.tensors) fill(truth, *t, content);
      for (OptimizerHyper& h : truth.hypers) ++h.step;
    }
  }
}

/// Requantization of a million tiny, huge and denormal states: a momentum that begins at zero is
/// the gradient itself.
TEST_F(CudaOptimizer, CodesOfAMillionStates) {
  LOWBIT_NEEDS_GPU();
  for (const OptimizerKind kind : {OptimizerKind::kMomentum, OptimizerKind::kAdagrad}) {
    for (const Content content : {Content::kTiny, Content::kWide, Content::kAnyBits}) {
      OptimizerProblem truth;
      truth.kind = kind, truth.blockwise = true;
      truth.hypers = {{.lr = 1e-3f, .beta1 = 0.9f, .eps = 1e-10f}};
      auto& t = truth.add(1 << 18);
      fill_random(t.p.data(), truth.dtype, t.numel, random_, Content::kNormal);
      fill_random(t.g.data(), truth.dtype, t.numel, random_, content);
      DeviceCopy device(truth);
      const std::vector<Bytes> before = parameters(truth);
      device.step();
      truth.step_on_ref();
      expect_same(device, truth, before);
      if (HasFatalFailure()) return;
    }
  }
}

/// Tensors that all thread blocks go through together (from 2^23 elements on average), the second
/// one from where the first one left off, with numbers that need the general function here and
/// there.
TEST_F(CudaOptimizer, LargeTensors) {
  LOWBIT_NEEDS_GPU();
  const bool quick = std::getenv("LOWBIT_TEST_ROUNDS") != nullptr;  // under compute-sanitizer
  for (const OptimizerKind kind : {OptimizerKind::kAdam, OptimizerKind::kLion}) {
    OptimizerProblem truth;
    truth.kind = kind, truth.blockwise = true, truth.dtype = DType::kBFloat16;
    truth.hypers = {{.lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f, .step = 3}};
    for (const int64_t numel : {(int64_t{1} << 23) + 12345, int64_t{1} << 23}) {
      auto& t = truth.add(numel);
      fill_random(t.p.data(), truth.dtype, numel, random_, Content::kNormal);
      fill_random(t.g.data(), truth.dtype, numel, random_, Content::kNormal);
      for (int i = 0; i < 1000; ++i) {
        const float rare[] = {0.0f, INFINITY, NAN, 1e30f, 1e-30f};
        store_element(t.g.data(), truth.dtype, below(static_cast<uint32_t>(numel)), rare[i % 5]);
      }
      std::memset(t.absmax1.data(), 0x3c, t.absmax1.bytes());  // codes of 0 are not zeros then
      if (quick) break;
    }
    DeviceCopy device(truth);
    const std::vector<Bytes> before = parameters(truth);
    device.step();
    truth.step_on_cpu();
    expect_same(device, truth, before);
    if (HasFatalFailure()) return;
  }
}

/// More tensors and hyper-parameters than one launch takes, empty ones among them.
TEST_F(CudaOptimizer, ManyTensors) {
  LOWBIT_NEEDS_GPU();
  for (const bool blockwise : {false, true}) {
    OptimizerProblem truth;
    truth.blockwise = blockwise, truth.dtype = DType::kBFloat16;
    for (int i = 0; i < 23; ++i) truth.hypers.push_back(random_hyper(truth.kind, random_));
    for (int i = 0; i < 700; ++i) {
      auto& t = truth.add(i % 50 == 0 ? 0 : 1 + below(700), static_cast<int32_t>(below(23)));
      fill_random(t.p.data(), truth.dtype, t.numel, random_, Content::kNormal);
      fill_random(t.g.data(), truth.dtype, t.numel, random_, Content::kNormal);
    }
    DeviceCopy device(truth);
    const std::vector<Bytes> before = parameters(truth);
    device.step();
    truth.step_on_ref();
    expect_same(device, truth, before);
    if (HasFatalFailure()) return;
  }
}

TEST_F(CudaOptimizer, ValuesReadWhenTheStepRuns) {
  LOWBIT_NEEDS_GPU();
  for (const OptimizerKind kind : kOptimizerKinds) {
    OptimizerProblem truth;
    truth.kind = kind;
    OptimizerHyper h{.lr = 1e-2f,
                     .beta1 = 0.9f,
                     .beta2 = 0.99f,
                     .beta3 = 0.999f,
                     .alpha = 2.0f,
                     .eps = 1e-8f,
                     .weight_decay = 0.1f,
                     .step = 7,
                     .gnorm_scale = 0.125f};
    truth.hypers = {h};
    auto& t = truth.add(5000);
    fill_random(t.p.data(), truth.dtype, 5000, random_, Content::kNormal);
    fill_random(t.g.data(), truth.dtype, 5000, random_, Content::kNormal);
    const DeviceBuffer<float> lr(std::vector<float>{1e-2f}), step(std::vector<float>{7.0f}),
        scale(std::vector<float>{0.25f});
    OptimizerProblem valued = truth.clone();
    OptimizerHyper& v = valued.hypers[0];
    v.lr = NAN, v.step = 0, v.gnorm_scale = 0.5f;
    v.lr_value = lr.data(), v.step_value = step.data(), v.gnorm_scale_value = scale.data();
    DeviceCopy device(valued);
    device.step();
    truth.step_on_ref();
    const Bytes p = device.read(0, DeviceCopy::kP);
    // The device's pow() may differ from the host's in the last bit of a double.
    for (int64_t j = 0; j < t.numel; ++j) {
      const double got = load_element(p.data(), truth.dtype, j), expected = t.p.as<float>()[j];
      ASSERT_NEAR(got, expected, 2e-7 * std::fabs(expected) + 1e-8) << int(kind) << " " << j;
    }
  }
}

}  // namespace
}  // namespace lowbit::kernels::testing
