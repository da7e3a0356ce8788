// LLM.int8() as one operation, every instance, against integers and sums in float64.
#include "cuda/int8_linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "device_problem.h"
#include "int8_scalar.h"

namespace lowbit::kernels {
namespace {

using cuda::LinearMixedPlan;
using cuda::LinearMixedRoute;
using test::DeviceBuffer;
using testing::device_properties;
using testing::rounds;
using Bytes = std::vector<unsigned char>;

struct Spec {
  int64_t m, n, k;
  DType dtype;
  float threshold;
  double outliers;  ///< part of the columns
  bool bias;
  DType bias_dtype;
  int64_t extra_stride;
  std::string text() const {
    return "m " + std::to_string(m) + " n " + std::to_string(n) + " k " + std::to_string(k) +
           " dtype " + std::to_string(static_cast<int>(dtype)) + " threshold " +
           std::to_string(threshold) + " outliers " + std::to_string(outliers) + " stride +" +
           std::to_string(extra_stride);
  }
};

/// Half a unit in the last place of the output.
double rounding(DType dtype) {
  return dtype == DType::kFloat32 ? 0x1p-24 : dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
}
/// The same of float16's subnormal numbers.
double smallest(DType dtype) { return dtype == DType::kFloat16 ? 0x1p-25 : 0x1p-140; }
/// Float32 steps between the integers and the output, of everything that is added: three products
/// and a sum, two products and a sum for every outlier column.
constexpr double kSteps = 1e-6;

/// A problem in host and device memory. The truth starts from the device's own codes of the input
/// (quantize_rowwise, tested elsewhere), which the kernels must find again.
class Problem {
 public:
  Problem(const Spec& s, std::mt19937& rng)
      : s_(s),
        stride_(s.k + s.extra_stride),
        input_(random_input(rng)),
        weight_(random_codes(rng)),
        stats_(s.n),
        bias_(s.n * 4),
        d_input_(input_),
        d_weight_(weight_),
        d_stats_(random_stats(rng)),
        d_bias_(random_bias(rng)),
        d_q_(s.m * s.k),
        d_input_stats_(s.m),
        d_flags_(s.k),
        d_workspace_(cuda::mixed_small_workspace(s.m, s.k).bytes),
        d_output_(s.m * s.n * itemsize(s.dtype)) {
    d_flags_.fill(0);
    const QuantizeRowwiseParams quantize{
        d_input_.data(),       stride_,        s.dtype, s.m, s.k, s.threshold, d_q_.data(),
        d_input_stats_.data(), d_flags_.data()};
    EXPECT_STATUS_OK(cuda::quantize_rowwise(quantize, Stream{}));
    q_ = d_q_.read();
    input_stats_ = d_input_stats_.read();
    flags_ = d_flags_.read();
  }

  LinearMixedInt8Params params() {
    LinearMixedInt8Params p{.input = d_input_.data(),
                            .input_stride = stride_,
                            .dtype = s_.dtype,
                            .m = s_.m,
                            .n = s_.n,
                            .k = s_.k,
                            .q = d_weight_.data(),
                            .stats = d_stats_.data(),
                            .threshold = s_.threshold,
                            .output = d_output_.data(),
                            .input_q = d_q_.data(),
                            .input_stats = d_input_stats_.data()};
    p.workspace = d_workspace_.data();
    if (s_.threshold > 0.0f) p.outlier_columns = d_flags_.data();
    if (s_.bias) p.bias = d_bias_.data(), p.bias_dtype = s_.bias_dtype;
    return p;
  }

  Bytes run(const LinearMixedPlan& plan) {
    d_output_.fill(0xcd);
    d_workspace_.fill(0xcd);
    EXPECT_STATUS_OK(cuda::linear_mixed_int8(plan, params(), Stream{}));
    EXPECT_EQ(d_input_.read(), input_);
    d_workspace_.read();  // its canaries
    return d_output_.read();
  }

  void check(const Bytes& output) const {
    int bad = 0;
    for (int64_t r = 0; r < s_.m; ++r) {
      for (int64_t c = 0; c < s_.n; ++c) {
        int64_t sum = 0;
        double extra = 0.0, magnitude = 0.0;
        for (int64_t k = 0; k < s_.k; ++k) {
          const int64_t w = weight_[c * s_.k + k];
          if (flags_[k] == 0) {
            sum += int64_t{q_[r * s_.k + k]} * w;
            continue;
          }
          const double x = load_element(input_.data(), s_.dtype, r * stride_ + k);
          const double term = x * static_cast<double>(w) * stats_[c] / 127.0;
          const double code = double{static_cast<double>(q_[r * s_.k + k])} * input_stats_[r] / 127;
          extra += term;
          magnitude += std::fabs(term) + std::fabs(code * static_cast<double>(w) * stats_[c] / 127);
        }
        const double bias = s_.bias ? load_element(bias_.data(), s_.bias_dtype, c) : 0.0;
        const double main =
            static_cast<double>(sum) * input_stats_[r] * stats_[c] * double{kInv127Squared};
        const double truth = main + bias + extra;
        magnitude += std::fabs(main) + std::fabs(bias);
        const double limit =
            kSteps * magnitude + rounding(s_.dtype) * std::fabs(truth) + smallest(s_.dtype);
        const double got = load_element(output.data(), s_.dtype, r * s_.n + c);
        if (!(std::fabs(got - truth) <= limit) && ++bad <= 3) {
          ADD_FAILURE() << "output " << r << ", " << c << ": " << got << ", expected " << truth;
        }
      }
    }
    EXPECT_EQ(bad, 0);
  }

 private:
  Bytes random_input(std::mt19937& rng) const {
    std::normal_distribution<float> normal;
    std::vector<bool> outlier(s_.k);
    for (int64_t k = 0; k < s_.k; ++k) outlier[k] = rng() % 10000 < s_.outliers * 10000;
    Bytes bytes(((s_.m - 1) * stride_ + s_.k) * itemsize(s_.dtype), 0x7f);  // NaN between rows
    for (int64_t r = 0; r < s_.m; ++r) {
      for (int64_t k = 0; k < s_.k; ++k) {
        float x = std::clamp(normal(rng), -4.0f, 4.0f);
        if (outlier[k] && rng() % 2 == 0) x = (x < 0 ? x - 6 : x + 6) * 3;
        store_element(bytes.data(), s_.dtype, r * stride_ + k, x);
      }
    }
    return bytes;
  }
  std::vector<int8_t> random_codes(std::mt19937& rng) const {
    std::vector<int8_t> codes(s_.n * s_.k);
    for (auto& code : codes) code = static_cast<int8_t>(static_cast<int>(rng() % 255) - 127);
    return codes;
  }
  const std::vector<float>& random_stats(std::mt19937& rng) {
    for (float& stat : stats_) stat = std::uniform_real_distribution<float>(0.01f, 0.2f)(rng);
    return stats_;
  }
  const Bytes& random_bias(std::mt19937& rng) {
    std::normal_distribution<float> normal;
    for (int64_t c = 0; c < s_.n; ++c) store_element(bias_.data(), s_.bias_dtype, c, normal(rng));
    return bias_;
  }

  Spec s_;
  int64_t stride_;
  Bytes input_;
  std::vector<int8_t> weight_, q_;
  std::vector<float> stats_, input_stats_;
  Bytes bias_;
  std::vector<uint8_t> flags_;
  DeviceBuffer<unsigned char> d_input_;
  DeviceBuffer<int8_t> d_weight_;
  DeviceBuffer<float> d_stats_;
  DeviceBuffer<unsigned char> d_bias_;
  DeviceBuffer<int8_t> d_q_;
  DeviceBuffer<float> d_input_stats_;
  DeviceBuffer<uint8_t> d_flags_;
  DeviceBuffer<unsigned char> d_workspace_;
  DeviceBuffer<unsigned char> d_output_;
};

class CudaLinearMixed : public ::testing::Test {
 protected:
  void SetUp() override {
    LOWBIT_NEEDS_GPU();
    device_ = device_properties();
  }
  template <typename T>
  T pick(std::initializer_list<T> values) {
    return *(values.begin() + rng_() % values.size());
  }
  int64_t upto(int64_t high) { return std::uniform_int_distribution<int64_t>(1, high)(rng_); }

  Spec any(int64_t most_tokens, bool sixteen_bits) {
    Spec s;
    s.m = pick<int64_t>({1, 2, most_tokens, upto(most_tokens), upto(most_tokens)});
    s.n = pick<int64_t>({1, 15, 16, 17, 128, 257, 300, upto(600)});
    s.k = 16 * pick<int64_t>({1, 3, 8, 9, 32, 65, 130, 257, upto(100)});
    s.dtype = sixteen_bits ? pick({DType::kFloat16, DType::kBFloat16})
                           : pick({DType::kFloat32, DType::kFloat16, DType::kBFloat16});
    s.threshold = pick({0.0f, 6.0f, 6.0f, 6.0f});
    s.outliers = pick({0.0, 0.001, 0.01, 0.05, 0.5, 1.0});
    if (s.threshold == 0.0f) s.outliers = 0.0;
    s.bias = pick({false, true});
    s.bias_dtype = pick({DType::kFloat32, DType::kFloat16, DType::kBFloat16});
    s.extra_stride = pick<int64_t>({0, 8, 64});
    return s;
  }

  DeviceProperties device_;
  std::random_device::result_type seed_ = std::random_device{}();
  std::mt19937 rng_{seed_};
};

TEST_F(CudaLinearMixed, EveryInstanceForFewTokens) {
  if (device_.compute_capability < 80) GTEST_SKIP() << "needs a CUDA GPU of sm_80";
  for (int i = 0; i < cuda::kMixedSmallVariantCount; ++i) {
    const auto& v = cuda::kMixedSmallVariants[i];
    for (int round = 0; round < rounds(16); ++round) {
      const Spec s = any(8 * v.token_tiles, false);
      LinearMixedPlan plan{.route = LinearMixedRoute::kSmall,
                           .variant = i,
                           .threads = 32 * cuda::kMixedSmallWarps,
                           .shared_bytes = cuda::mixed_small_layout(v, s.m, s.k).bytes,
                           .workspace_bytes = cuda::mixed_small_workspace(s.m, s.k).bytes,
                           .programmatic = device_.compute_capability >= 90 && pick({false, true}),
                           .name = v.name};
      if (plan.shared_bytes > device_.shared_bytes_per_block) continue;
      // With few blocks each goes through many tiles.
      plan.grid = static_cast<int32_t>(
          std::min(ceil_div(s.n, int64_t{cuda::kMixedSmallRows}), pick<int64_t>({1, 3, 132})));
      SCOPED_TRACE(s.text() + " " + v.name + " grid " + std::to_string(plan.grid) + " seed " +
                   std::to_string(seed_));
      Problem problem(s, rng_);
      const Bytes output = problem.run(plan);
      problem.check(output);
      EXPECT_EQ(problem.run(plan), output);
      if (HasFailure()) return;
    }
  }
}

TEST_F(CudaLinearMixed, EveryInstanceForManyTokens) {
  if (device_.compute_capability != 90) GTEST_SKIP() << "needs a CUDA GPU of sm_90";
  for (int i = 0; i < cuda::kMixedLargeVariantCount; ++i) {
    const auto& v = cuda::kMixedLargeVariants[i];
    for (int round = 0; round < rounds(16); ++round) {
      const Spec s = any(pick<int64_t>({v.tokens, 3 * v.tokens}), true);
      const int64_t tiles =
          ceil_div(s.n, int64_t{cuda::kMixedLargeFeatures} * cuda::kMixedLargeCluster) *
          ceil_div(s.m, int64_t{v.tokens});
      const LinearMixedPlan plan{
          .route = LinearMixedRoute::kLarge,
          .variant = i,
          .grid = static_cast<int32_t>(cuda::kMixedLargeCluster *
                                       std::min(tiles, pick<int64_t>({1, 2, 66}))),
          .threads = cuda::kMixedLargeThreads,
          .shared_bytes = cuda::mixed_large_layout(v).bytes,
          .name = v.name};
      SCOPED_TRACE(s.text() + " " + v.name + " grid " + std::to_string(plan.grid) + " seed " +
                   std::to_string(seed_));
      Problem problem(s, rng_);
      const Bytes output = problem.run(plan);
      problem.check(output);
      EXPECT_EQ(problem.run(plan), output);
      if (HasFailure()) return;
    }
  }
}

TEST_F(CudaLinearMixed, ThePlansOfLayersRun) {
  for (const int64_t m : {1, 8, 16, 24, 33, 130}) {
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{272, 4096}, {64, 14336}, {1030, 2064}}) {
      const Spec s{m, n, k, DType::kBFloat16, 6.0f, 0.002, true, DType::kBFloat16, 0};
      SCOPED_TRACE(s.text() + " seed " + std::to_string(seed_));
      Problem problem(s, rng_);
      const LinearMixedPlan plan = cuda::plan_linear_mixed_int8(problem.params(), device_);
      if (plan.route == LinearMixedRoute::kParts) continue;
      problem.check(problem.run(plan));
      // Another problem's plan is refused.
      LinearMixedPlan wrong = plan;
      wrong.shared_bytes = 1024;
      EXPECT_FALSE(cuda::linear_mixed_int8(wrong, problem.params(), Stream{}).ok());
    }
  }
}

}  // namespace
}  // namespace lowbit::kernels
