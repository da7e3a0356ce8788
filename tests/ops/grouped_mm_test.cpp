// grouped_mm_4bit and its gradient: against a loop over experts in float64, on any device.
#include "ops/grouped_mm.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "lowbit/functional.h"
#include "ops/dispatch.h"
#include "support/error.h"
#include "support/golden.h"
#include "support/random.h"
#include "support/tolerance.h"

namespace lowbit {
namespace {

using test::is_near;
using test::kGradient;
using test::kMatmul;
using test::message_of;
using test::same_bytes;

const std::vector<at::ScalarType> kDtypes = {at::kFloat, at::kBFloat16, at::kHalf};

struct Problem {
  at::Tensor packed;
  QuantState state;
  at::Tensor truth;  ///< the dequantized stack [E, N, K], float64
};

class GroupedMm : public test::RandomTest {
 protected:
  Problem problem(int64_t e, int64_t n, int64_t k, const Quantize4bitOptions& options = {}) {
    Problem p;
    std::tie(p.packed, p.state) = quantize_4bit(normal({e, n, k}), options);
    p.truth = dequantize_4bit(p.packed, p.state).to(at::kDouble);
    return p;
  }
  static at::Tensor ends(const std::vector<int>& values) {
    return at::tensor(values, at::kInt).to(test::device());
  }
  static ops::Stack4bit stack(const Problem& p) {
    QuantState state = p.state;
    const std::vector<int64_t> shape = *p.state.shape;
    state.shape = {shape[0] * shape[1], shape[2]};
    return {ops::Weight4bit::make(p.packed, state), shape[0]};
  }
};

/// Rows of expert e times w[e], transposed or not; zeros behind the last end.
at::Tensor grouped_f64(const at::Tensor& x, const at::Tensor& w, const std::vector<int>& ends,
                       bool transposed = true) {
  const at::Tensor weights = transposed ? w.transpose(1, 2) : w;
  at::Tensor y = at::zeros({x.size(0), weights.size(2)}, weights.options());
  int begin = 0;
  for (size_t e = 0; e < ends.size(); begin = ends[e++]) {
    y.slice(0, begin, ends[e])
        .copy_(at::matmul(x.slice(0, begin, ends[e]).to(at::kDouble),
                          weights[static_cast<int64_t>(e)]));
  }
  return y;
}

const std::vector<std::vector<int>> kGroups = {{6, 14, 20, 37}, {0, 0, 37, 37}, {37, 37, 37, 37},
                                               {0, 0, 0, 0},    {1, 2, 3, 4},   {5, 5, 30, 31}};

TEST_F(GroupedMm, AgreesWithALoopOverExperts) {
  // Blocks that end with experts, that straddle rows, and that straddle experts.
  const std::vector<std::array<int64_t, 2>> sizes = {
      {48, 128}, {40, 96}, {64, 1024}, {33, 67}, {17, 48}};
  for (const auto& [n, k] : sizes) {
    for (const bool nested : {false, true}) {
      for (const int64_t blocksize : {32, 64, 256}) {
        const QuantType type = blocksize == 256 ? QuantType::kFP4 : QuantType::kNF4;
        const Problem p = problem(
            4, n, k, {.blocksize = blocksize, .compress_statistics = nested, .quant_type = type});
        for (const at::ScalarType dtype : kDtypes) {
          const at::Tensor x = normal({37, k}, dtype);
          for (const auto& groups : kGroups) {
            const at::Tensor y = grouped_mm_4bit(x, p.packed, p.state, ends(groups));
            // Few outputs: their roundings do not average out.
            EXPECT_TRUE(is_near(y, grouped_f64(x, p.truth, groups), kGradient))
                << n << "x" << k << (nested ? " nested " : " ") << blocksize << " " << dtype << " "
                << groups;
            EXPECT_EQ(y.slice(0, groups.back()).count_nonzero().item<int64_t>(), 0);
          }
        }
      }
    }
  }
}

TEST_F(GroupedMm, ManyTokensOfAnExpert) {
  const Problem p = problem(3, 72, 128, {.compress_statistics = true});
  for (const at::ScalarType dtype : kDtypes) {
    const at::Tensor x = normal({700, 128}, dtype);
    for (const std::vector<int>& groups :
         std::vector<std::vector<int>>{{200, 450, 700}, {0, 690, 691}, {1, 2, 600}}) {
      EXPECT_TRUE(is_near(grouped_mm_4bit(x, p.packed, p.state, ends(groups)),
                          grouped_f64(x, p.truth, groups), kMatmul))
          << dtype << " " << groups;
    }
  }
}

TEST_F(GroupedMm, ManyExpertsWithFewTokens) {
  const Problem p = problem(70, 32, 64);
  std::vector<int> groups;
  for (int e = 0, end = 0; e < 70; ++e) groups.push_back(end += e % 9 == 4 ? 2 : 0);
  const at::Tensor x = normal({groups.back() + 3, 64}, at::kBFloat16);
  EXPECT_TRUE(is_near(grouped_mm_4bit(x, p.packed, p.state, ends(groups)),
                      grouped_f64(x, p.truth, groups), kMatmul));
}

TEST_F(GroupedMm, AnExpertIsALinearLayer) {
  const Problem p = problem(1, 64, 128);
  QuantState state = p.state;
  state.shape = {64, 128};
  const at::Tensor x = normal({11, 128});
  const at::Tensor y = grouped_mm_4bit(x, p.packed, p.state, ends({11}));
  EXPECT_TRUE(is_near(y, matmul_4bit(x, p.packed, state).to(at::kDouble), kMatmul));
}

TEST_F(GroupedMm, AnyLayoutStorageAndStatistics) {
  const Problem p =
      problem(4, 32, 64, {.compress_statistics = true, .quant_storage = at::kBFloat16});
  const std::vector<int>& groups = kGroups[0];
  const std::vector<at::Tensor> inputs = {normal({64, 37}).t(), normal({37, 130}).slice(1, 3, 67),
                                          normal({37, 128}).slice(1, 0, 128, 2),
                                          normal({1, 64}).expand({37, 64}),
                                          normal({37, 130}, at::kBFloat16).slice(1, 1, 65)};
  for (const at::Tensor& x : inputs) {
    EXPECT_TRUE(is_near(grouped_mm_4bit(x, p.packed, p.state, ends(groups)),
                        grouped_f64(x, p.truth, groups), kMatmul))
        << x.strides();
  }
  const at::Tensor strided = ends({6, 0, 14, 0, 20, 0, 37, 0}).slice(0, 0, 8, 2);
  EXPECT_TRUE(same_bytes(grouped_mm_4bit(inputs[0], p.packed, p.state, strided),
                         grouped_mm_4bit(inputs[0], p.packed, p.state, ends(groups))));
  // A second level of another blocksize is expanded.
  const auto [codes, state2] =
      quantize_blockwise(dequantize_absmax(p.state) - p.state.offset, {.blocksize = 64});
  QuantState state = p.state;
  state.absmax = codes;
  state.state2 = std::make_shared<const QuantState>(state2);
  const at::Tensor truth = dequantize_4bit(p.packed, state).to(at::kDouble);
  EXPECT_TRUE(is_near(grouped_mm_4bit(inputs[0], p.packed, state, ends(groups)),
                      grouped_f64(inputs[0], truth, groups), kMatmul));
}

TEST_F(GroupedMm, EmptyProblems) {
  const Problem p = problem(3, 40, 64);
  EXPECT_EQ(grouped_mm_4bit(test::empty({0, 64}), p.packed, p.state, ends({0, 0, 0})).sizes(),
            at::IntArrayRef({0, 40}));
  const auto [packed, state] = quantize_4bit(test::empty({3, 5, 0}));
  EXPECT_TRUE(at::equal(grouped_mm_4bit(test::empty({4, 0}), packed, state, ends({1, 2, 4})),
                        test::zeros({4, 5})));
  const auto [none, no_rows] = quantize_4bit(test::empty({3, 0, 64}));
  EXPECT_EQ(grouped_mm_4bit(normal({4, 64}), none, no_rows, ends({1, 2, 4})).sizes(),
            at::IntArrayRef({4, 0}));
}

TEST_F(GroupedMm, GradientOfTheInput) {
  // Whole blocks, and blocks that straddle experts.
  for (const std::array<int64_t, 2>& size : {std::array<int64_t, 2>{48, 128}, {24, 72}, {17, 67}}) {
    for (const bool nested : {false, true}) {
      const Problem p = problem(4, size[0], size[1], {.compress_statistics = nested});
      for (const at::ScalarType dtype : kDtypes) {
        for (const auto& groups : kGroups) {
          const at::Tensor x = normal({37, size[1]}, dtype).requires_grad_();
          const at::Tensor y = grouped_mm_4bit(x, p.packed, p.state, ends(groups));
          ASSERT_TRUE(y.requires_grad());
          EXPECT_TRUE(is_near(y.detach(), grouped_f64(x.detach(), p.truth, groups), kGradient));
          const at::Tensor grad = normal(y.sizes(), dtype);
          y.backward(grad);
          EXPECT_TRUE(is_near(x.grad(), grouped_f64(grad, p.truth, groups, false), kGradient))
              << size[0] << "x" << size[1] << " " << dtype << " " << groups;
          EXPECT_EQ(x.grad().slice(0, groups.back()).count_nonzero().item<int64_t>(), 0);
        }
      }
    }
  }
}

TEST_F(GroupedMm, SecondDerivatives) {
  const Problem p = problem(2, 24, 32);
  const std::vector<int> groups = {2, 5};
  const at::Tensor x = normal({5, 32}).requires_grad_();
  const at::Tensor y = grouped_mm_4bit(x, p.packed, p.state, ends(groups));
  const at::Tensor g = torch::autograd::grad({y.pow(2).sum()}, {x}, {}, true, true)[0];
  const at::Tensor gg = torch::autograd::grad({g.sum()}, {x})[0];
  const at::Tensor once = grouped_f64(test::ones({5, 32}, at::kDouble), p.truth, groups);
  EXPECT_TRUE(is_near(gg, 2 * grouped_f64(once, p.truth, groups, false), kMatmul));
}

TEST_F(GroupedMm, DirectCallsAndTheDispatcherGiveTheSameBits) {
  const Problem p = problem(4, 64, 128, {.compress_statistics = true});
  const ops::Stack4bit s = stack(p);
  const at::Tensor offs = ends(kGroups[0]);
  for (const at::ScalarType dtype : kDtypes) {
    const at::Tensor x = normal({37, 128}, dtype), g = normal({37, 64}, dtype);
    EXPECT_TRUE(
        same_bytes(ops::grouped_mm_4bit(x, s, offs), ops::dispatch::grouped_mm_4bit(x, s, offs)));
    EXPECT_TRUE(same_bytes(ops::grouped_mm_4bit_backward_input(g, s, offs),
                           ops::dispatch::grouped_mm_4bit_backward_input(g, s, offs)));
  }
}

TEST_F(GroupedMm, RefusesBadArguments) {
  const Problem p = problem(4, 32, 64);
  const at::Tensor x = normal({8, 64}), offs = ends({1, 2, 4, 8});
  const auto error = [&](const at::Tensor& input, const at::Tensor& last) {
    return message_of([&] { grouped_mm_4bit(input, p.packed, p.state, last); });
  };
  const std::string op = "lowbit::grouped_mm_4bit: ";
  EXPECT_EQ(error(normal({8, 63}), offs), op + "`input` must be [..., 64], got shape [8, 63].");
  EXPECT_EQ(error(normal({2, 4, 64}), offs), op + "`input` must be [M, 64], got shape [2, 4, 64].");
  EXPECT_EQ(error(normal({64}), offs), op + "`input` must be [M, 64], got shape [64].");
  EXPECT_EQ(error(x.to(at::kDouble), offs),
            op + "`input` must be float32, float16 or bfloat16, got float64.");
  EXPECT_EQ(error({}, offs), op + "`x` must be [M, K], got an undefined tensor.");
  EXPECT_EQ(error(x, {}), op + "`offs` must be int32 [experts], got an undefined tensor.");
  EXPECT_EQ(error(x, offs.to(at::kLong)), op + "`offs` must be int32, got int64.");
  EXPECT_EQ(error(x, ends({4, 8})),
            op + "`offs` must be [4], an end for each expert, got shape [2].");
  EXPECT_EQ(error(x, offs.view({2, 2})),
            op + "`offs` must be [4], an end for each expert, got shape [2, 2].");
  EXPECT_EQ(error(x, offs.to(at::kMeta)),
            op + "`offs` must be on " + test::device().str() + ", got meta.");
  QuantState state = p.state;
  state.shape = {128, 64};
  EXPECT_EQ(message_of([&] { grouped_mm_4bit(x, p.packed, state, offs); }),
            op + "`state.shape` must be [experts, out_features, in_features], at least one expert, "
                 "got [128, 64].");
  EXPECT_EQ(message_of([&] { ops::grouped_mm_4bit_backward_input(x, stack(p), offs); }),
            "lowbit::grouped_mm_4bit_backward_input: `grad_output` must be [..., 32], got shape "
            "[8, 64].");
  if (!x.is_cpu()) return;  // CUDA never reads the ends back
  EXPECT_EQ(error(x, ends({1, 2, 4, 9})),
            op + "`offs` must be ascending and in [0, 8], the number of rows, got 9 behind 4.");
  EXPECT_EQ(error(x, ends({1, 3, 2, 8})),
            op + "`offs` must be ascending and in [0, 8], the number of rows, got 2 behind 3.");
  EXPECT_EQ(error(x, ends({-1, 3, 4, 8})),
            op + "`offs` must be ascending and in [0, 8], the number of rows, got -1 behind 0.");
}

TEST_F(GroupedMm, ShapesWithoutData) {
  const auto meta = [](at::IntArrayRef sizes, at::ScalarType dtype) {
    return at::empty(sizes, at::TensorOptions().device(at::kMeta).dtype(dtype));
  };
  const auto [packed, state] =
      quantize_4bit(meta({8, 40, 64}, at::kBFloat16), {.compress_statistics = true});
  const at::Tensor x = meta({20, 64}, at::kBFloat16).requires_grad_();
  const at::Tensor y = grouped_mm_4bit(x, packed, state, meta({8}, at::kInt));
  EXPECT_EQ(y.sizes(), at::IntArrayRef({20, 40}));
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  y.sum().backward();
  EXPECT_EQ(x.grad().sizes(), x.sizes());
  EXPECT_EQ(message_of([&] { grouped_mm_4bit(x, packed, state, meta({7}, at::kInt)); }),
            "lowbit::grouped_mm_4bit: `offs` must be [8], an end for each expert, got shape [7].");
}

}  // namespace
}  // namespace lowbit
