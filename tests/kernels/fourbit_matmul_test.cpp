// The 4-bit matmul of every instruction set against exact sums.
#include <gtest/gtest.h>

#include <algorithm>

#include "fourbit_problem.h"
#include "instruction_sets.h"
#include "lowbit/kernels/cpu.h"

namespace lowbit::kernels {
namespace {

using testing::FourbitProblem;
using testing::FourbitSpec;
using testing::GuardedBuffer;
using testing::instruction_sets;

/// Relative errors (L2, over an output of random data) that the accuracy classes promise.
struct Tolerance {
  MatmulAccuracy accuracy;
  bool few_rows;
  double l2;
};
constexpr Tolerance kTolerances[] = {
    {MatmulAccuracy::kExact, true, 2e-6},   // float32 sums of up to a few thousand terms
    {MatmulAccuracy::kExact, false, 2e-6},  // the same
    {MatmulAccuracy::kFast, true, 2e-4},   // 15-bit activations, 13-bit table, outliers of 20 sigma
    {MatmulAccuracy::kFast, false, 8e-4},  // 13-bit activations, 12-bit table, the same outliers
};

double l2_tolerance(const FourbitSpec& s) {
  const bool fast = s.accuracy == MatmulAccuracy::kFast ||
                    (s.accuracy == MatmulAccuracy::kAuto && s.dtype != DType::kFloat32);
  for (const Tolerance& t : kTolerances) {
    if ((t.accuracy == MatmulAccuracy::kFast) == fast && t.few_rows == (s.m <= 4)) return t.l2;
  }
  return 0.0;
}

class FourbitMatmul : public ::testing::Test {
 protected:
  void TearDown() override { cpu::set_isa(cpu::detect_isa()); }
  std::random_device::result_type seed_ = std::random_device{}();
  std::mt19937 rng_{seed_};
};

/// Runs the plan; with a generator, in ranges of random lengths and in random order.
std::string run(Matmul4bitParams p, std::mt19937* rng = nullptr) {
  const Matmul4bitPlan plan = cpu::plan_matmul_4bit(p);
  GuardedBuffer workspace(plan.workspace_bytes, 1);
  p.workspace = workspace.data();
  const auto in_pieces = [&](int64_t units, auto&& call) {
    std::vector<std::pair<int64_t, int64_t>> pieces;
    for (int64_t at = 0; at < units;) {
      int64_t length = units;
      if (rng != nullptr) length = std::uniform_int_distribution<int64_t>(1, units - at)(*rng);
      pieces.emplace_back(at, at + length);
      at += length;
    }
    if (rng != nullptr) std::shuffle(pieces.begin(), pieces.end(), *rng);
    for (const auto& [begin, end] : pieces) EXPECT_TRUE(call(begin, end).ok());
  };
  in_pieces(plan.prepare_units, [&](int64_t begin, int64_t end) {
    return cpu::matmul_4bit_prepare(plan, p, begin, end);
  });
  in_pieces(plan.units,
            [&](int64_t begin, int64_t end) { return cpu::matmul_4bit(plan, p, begin, end); });
  EXPECT_TRUE(workspace.guards_intact());
  return plan.kernel;
}

void expect_exact_or_bounded(FourbitProblem& problem, const FourbitSpec& s) {
  const Matmul4bitParams p = problem.params();
  const std::string kernel = run(p);
  SCOPED_TRACE(kernel);
  ASSERT_TRUE(problem.output().guards_intact());
  const bool fast = kernel == "rows_int16" || kernel == "panel_int16";
  const bool rows = kernel == "rows_int16";
  const double x_levels = rows ? 32767.0 : 8191.0;
  const double w_levels =
      s.quant_type == QuantType::kFP4 ? (rows ? 8064.0 : 4032.0) : (rows ? 7854.0 : 4075.0);
  const float* table = code_table(s.quant_type, p.code);
  double table_max = 0.0;
  for (int i = 0; i < 16; ++i) table_max = std::max(table_max, std::fabs(double{table[i]}));
  const std::vector<double> w = problem.weights(), x = problem.inputs();
  double error2 = 0.0, norm2 = 0.0;
  for (int64_t n = 0; n < s.n; ++n) {
    std::vector<float> scales;
    for (int64_t k = 0; k < s.k; k += 32) {
      scales.push_back(block_scale(p.scales, (n * s.k + k) / s.blocksize));
    }
    for (int64_t m = 0; m < s.m; ++m) {
      double expected = 0.0, magnitude = std::fabs(problem.bias(n)), square = 0.0;
      for (int64_t k = 0; k < s.k; ++k) {
        const double product = x[m * s.k + k] * w[n * s.k + k];
        expected += product;
        magnitude += std::fabs(product);
        square += product * product;
      }
      expected += problem.bias(n);
      const double got = problem.result(m, n);
      const double rounding = testing::rounding(s.dtype) * std::fabs(expected) + 0x1p-25;
      double bound = 1e-6 * magnitude + rounding;
      if (fast) {
        bound += 1.01 * testing::fast_bound(&x[m * s.k], &w[n * s.k], s.k, x_levels, w_levels,
                                            table_max, scales.data());
      }
      ASSERT_TRUE(std::fabs(got - expected) <= bound)
          << "row " << m << " column " << n << ": got " << got << ", expected " << expected
          << " +- " << bound;
      const double error = std::max(0.0, std::fabs(got - expected) - rounding);
      error2 += error * error;
      norm2 += square;
    }
  }
  if (s.m * s.n < 16) return;  // too few for a mean
  // The length of a sum of terms of random signs; the sum itself may be near zero by chance.
  EXPECT_LE(std::sqrt(error2), l2_tolerance(s) * std::sqrt(norm2));
}

template <typename T>
T pick(std::mt19937& rng, std::initializer_list<T> values) {
  std::uniform_int_distribution<size_t> index(0, values.size() - 1);
  return *(values.begin() + index(rng));
}

FourbitSpec random_spec(std::mt19937& rng) {
  const auto upto = [&](int64_t high) {
    return std::uniform_int_distribution<int64_t>(1, high)(rng);
  };
  FourbitSpec s;
  s.m = pick<int64_t>(rng, {1, 1, 2, 3, 4, 5, 6, 7, 9, 12, 17, upto(40)});
  s.n = pick<int64_t>(rng, {1, 3, 8, 31, 32, 33, upto(100)});
  s.k = pick<int64_t>(rng, {1, 2, 63, 64, 65, 128, 192, 576, 640, 64 * upto(12), upto(700)});
  s.blocksize = pick<int64_t>(rng, {32, 64, 64, 64, 96, 128, 256, 4096, 2 * upto(50)});
  s.dtype = pick(rng, {DType::kFloat32, DType::kFloat16, DType::kBFloat16});
  s.quant_type = pick(rng, {QuantType::kNF4, QuantType::kFP4});
  s.nested = pick(rng, {false, true});
  s.bias = pick(rng, {false, true});
  s.bias_dtype = pick(rng, {DType::kFloat32, DType::kFloat16, DType::kBFloat16});
  s.custom_table = pick(rng, {false, false, true});
  s.accuracy = pick(rng, {MatmulAccuracy::kAuto, MatmulAccuracy::kExact, MatmulAccuracy::kFast});
  s.misalignment = pick<int64_t>(rng, {0, 1, 3});
  s.extra_stride = pick<int64_t>(rng, {0, 5});
  return s;
}

TEST_F(FourbitMatmul, AgreesWithExactSums) {
  for (int i = 0; i < 150; ++i) {
    const FourbitSpec spec = random_spec(rng_);
    FourbitProblem problem(spec, rng_);
    for (const cpu::Isa isa : instruction_sets()) {
      if (isa == cpu::Isa::kScalar && i >= 20) continue;
      cpu::set_isa(isa);
      SCOPED_TRACE(spec.describe() + " " + cpu::isa_name(isa) + " seed " + std::to_string(seed_));
      problem.poison_output();
      expect_exact_or_bounded(problem, spec);
      if (HasFailure()) return;
    }
  }
}

TEST_F(FourbitMatmul, AgreesOnLongAndTallProblems) {
  const FourbitSpec specs[] = {
      {.m = 1, .n = 9, .k = 20480, .nested = true, .accuracy = MatmulAccuracy::kFast},
      {.m = 3, .n = 5, .k = 16384, .blocksize = 128, .nested = true},
      {.m = 200, .n = 40, .k = 832, .nested = true, .accuracy = MatmulAccuracy::kFast},
      {.m = 389, .n = 33, .k = 512, .blocksize = 32, .dtype = DType::kBFloat16},
      {.m = 201, .n = 35, .k = 832, .bias = true},
      {.m = 26, .n = 33, .k = 2048, .extra_stride = 3},
      {.m = 100, .n = 7, .k = 831, .bias = true},
  };
  for (const FourbitSpec& spec : specs) {
    FourbitProblem problem(spec, rng_);
    for (const cpu::Isa isa : instruction_sets()) {
      if (isa == cpu::Isa::kScalar) continue;
      cpu::set_isa(isa);
      SCOPED_TRACE(spec.describe() + " " + cpu::isa_name(isa) + " seed " + std::to_string(seed_));
      problem.poison_output();
      expect_exact_or_bounded(problem, spec);
    }
  }
}

TEST_F(FourbitMatmul, RangesOfUnitsDoNotChangeABit) {
  for (int i = 0; i < 30; ++i) {
    const FourbitSpec spec = random_spec(rng_);
    FourbitProblem problem(spec, rng_);
    for (const cpu::Isa isa : instruction_sets()) {
      cpu::set_isa(isa);
      SCOPED_TRACE(spec.describe() + " " + cpu::isa_name(isa) + " seed " + std::to_string(seed_));
      run(problem.params());
      const auto* bytes = problem.output().as<uint8_t>();
      const std::vector<uint8_t> whole(bytes, bytes + problem.output().bytes());
      problem.poison_output();
      run(problem.params(), &rng_);
      EXPECT_EQ(0, std::memcmp(bytes, whole.data(), whole.size()));
    }
  }
}

TEST_F(FourbitMatmul, AGroupGivesWhatItsMembersGive) {
  for (int i = 0; i < 30; ++i) {
    std::vector<FourbitSpec> specs(pick<size_t>(rng_, {1, 2, 3}), random_spec(rng_));
    std::vector<FourbitProblem> problems;
    std::vector<Matmul4bitParams> params;
    for (FourbitSpec& spec : specs) {
      spec.n = std::uniform_int_distribution<int64_t>(1, 80)(rng_);
      problems.emplace_back(spec, rng_);
    }
    for (FourbitProblem& problem : problems) {
      params.push_back(problem.params());
      params.back().input = params[0].input;
    }
    for (const cpu::Isa isa : instruction_sets()) {
      cpu::set_isa(isa);
      SCOPED_TRACE(specs[0].describe() + " " + cpu::isa_name(isa) + " seed " +
                   std::to_string(seed_));
      std::vector<std::vector<uint8_t>> alone;
      for (size_t j = 0; j < params.size(); ++j) {
        run(params[j]);
        const auto* bytes = problems[j].output().as<uint8_t>();
        alone.emplace_back(bytes, bytes + problems[j].output().bytes());
        problems[j].poison_output();
      }
      const auto count = static_cast<int32_t>(params.size());
      const Matmul4bitPlan plan = cpu::plan_matmul_4bit_group(params.data(), count);
      GuardedBuffer workspace(plan.workspace_bytes, 1);
      for (Matmul4bitParams& p : params) p.workspace = workspace.data();
      ASSERT_TRUE(cpu::matmul_4bit_prepare(plan, params[0], 0, plan.prepare_units).ok());
      const int64_t cut = std::uniform_int_distribution<int64_t>(0, plan.units)(rng_);
      ASSERT_TRUE(cpu::matmul_4bit_group(plan, params.data(), count, cut, plan.units).ok());
      ASSERT_TRUE(cpu::matmul_4bit_group(plan, params.data(), count, 0, cut).ok());
      for (size_t j = 0; j < params.size(); ++j) {
        EXPECT_TRUE(problems[j].output().guards_intact());
        EXPECT_EQ(0, std::memcmp(problems[j].output().data(), alone[j].data(), alone[j].size()));
      }
      EXPECT_EQ(StatusCode::kInvalidArgument,
                cpu::matmul_4bit_group(plan, params.data(), count, 0, plan.units + 1).code);
    }
  }
  if (cpu::detect_isa() < cpu::Isa::kAVX2) return;
  FourbitSpec spec;
  spec.k = 128;
  Matmul4bitParams pair[2] = {FourbitProblem(spec, rng_).params(),
                              FourbitProblem(spec, rng_).params()};
  pair[1].blocksize = 48;
  EXPECT_EQ(0, cpu::plan_matmul_4bit_group(pair, 2).units);
}

TEST_F(FourbitMatmul, EveryPathIsReached) {
  if (cpu::detect_isa() < cpu::Isa::kAVX2) GTEST_SKIP() << "needs AVX2";
  const auto kernel = [&](int64_t m, int64_t k, int64_t blocksize, MatmulAccuracy accuracy) {
    FourbitSpec s;
    s.m = m, s.n = 8, s.k = k, s.blocksize = blocksize, s.accuracy = accuracy;
    return std::string(cpu::plan_matmul_4bit(FourbitProblem(s, rng_).params()).kernel);
  };
  EXPECT_EQ("rows_int16", kernel(1, 128, 64, MatmulAccuracy::kFast));
  EXPECT_EQ("rows_float32", kernel(4, 128, 64, MatmulAccuracy::kAuto));
  EXPECT_EQ("rows_any", kernel(1, 127, 64, MatmulAccuracy::kFast));
  EXPECT_EQ("panel_int16", kernel(5, 128, 32, MatmulAccuracy::kFast));
  EXPECT_EQ("panel_float32", kernel(5, 128, 64, MatmulAccuracy::kExact));
  EXPECT_EQ("panel_any", kernel(5, 128, 48, MatmulAccuracy::kExact));
}

TEST_F(FourbitMatmul, ValuesThatAreNotFiniteReachEveryOutputOfTheirRow) {
  for (const cpu::Isa isa : instruction_sets()) {
    cpu::set_isa(isa);
    for (const int64_t m : {2, 7}) {
      for (const MatmulAccuracy accuracy : {MatmulAccuracy::kExact, MatmulAccuracy::kFast}) {
        for (const float bad :
             {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
          FourbitSpec spec;
          spec.m = m, spec.n = 40, spec.k = 192, spec.accuracy = accuracy;
          FourbitProblem problem(spec, rng_);
          problem.set_input(1, 70, bad);
          run(problem.params());
          for (int64_t n = 0; n < spec.n; ++n) {
            EXPECT_FALSE(std::isfinite(problem.result(1, n)));
            EXPECT_TRUE(std::isfinite(problem.result(0, n)));
          }
        }
      }
    }
  }
}

TEST_F(FourbitMatmul, TinyAndHugeInputsKeepTheirScale) {
  for (const cpu::Isa isa : instruction_sets()) {
    cpu::set_isa(isa);
    for (const float scale : {1e-25f, 1e25f}) {
      for (const int64_t m : {1, 6}) {
        FourbitSpec spec;
        spec.m = m, spec.n = 16, spec.k = 128, spec.accuracy = MatmulAccuracy::kFast;
        FourbitProblem problem(spec, rng_);
        for (int64_t k = 0; k < spec.k; ++k) {
          for (int64_t r = 0; r < m; ++r) {
            problem.set_input(r, k, scale * static_cast<float>(1 + (k * 7 + r) % 13));
          }
        }
        expect_exact_or_bounded(problem, spec);
      }
    }
  }
}

TEST_F(FourbitMatmul, EmptyProblemsAreFineAndBadArgumentsAreRefused) {
  for (const cpu::Isa isa : instruction_sets()) {
    cpu::set_isa(isa);
    FourbitSpec spec;
    spec.m = 6, spec.n = 40, spec.k = 128, spec.bias = true, spec.accuracy = MatmulAccuracy::kFast;
    FourbitProblem problem(spec, rng_);
    Matmul4bitParams p = problem.params();
    p.m = 0;
    EXPECT_EQ(0, cpu::plan_matmul_4bit(p).prepare_units);
    EXPECT_TRUE(cpu::matmul_4bit(cpu::plan_matmul_4bit(p), p, 0, 0).ok());

    p = problem.params();
    p.k = 0;  // an empty sum: the bias
    Matmul4bitPlan plan = cpu::plan_matmul_4bit(p);
    EXPECT_TRUE(cpu::matmul_4bit(plan, p, 0, plan.units).ok());
    EXPECT_EQ(problem.bias(39), problem.result(5, 39));

    p = problem.params();
    plan = cpu::plan_matmul_4bit(p);
    EXPECT_EQ(StatusCode::kInvalidArgument, cpu::matmul_4bit(plan, p, 0, plan.units + 1).code);
    if (isa != cpu::Isa::kScalar) {
      EXPECT_EQ(StatusCode::kInvalidArgument, cpu::matmul_4bit(plan, p, 0, 1).code);  // workspace
      Matmul4bitParams other = p;
      other.m = 1;
      EXPECT_EQ(StatusCode::kInvalidArgument, cpu::matmul_4bit(plan, other, 0, 1).code);
    }
    p.scales = {};
    EXPECT_EQ(StatusCode::kInvalidArgument, cpu::matmul_4bit(plan, p, 0, 1).code);
    p = problem.params();
    p.blocksize = 63;
    EXPECT_EQ(StatusCode::kInvalidArgument, cpu::matmul_4bit(plan, p, 0, 1).code);
  }
}

TEST_F(FourbitMatmul, BackwardAgreesWithExactSums) {
  for (int i = 0; i < 60; ++i) {
    FourbitSpec spec = random_spec(rng_);
    spec.custom_table = false;
    FourbitProblem problem(spec, rng_);
    const int64_t stride = spec.n + spec.extra_stride;
    const int64_t item = itemsize(spec.dtype);
    GuardedBuffer gradient(spec.m * stride, item, spec.misalignment * item);
    std::normal_distribution<float> normal;
    for (int64_t j = 0; j < spec.m * stride; ++j) {
      store_element(gradient.data(), spec.dtype, j, normal(rng_));
    }
    const std::vector<double> w = problem.weights();
    for (const cpu::Isa isa : instruction_sets()) {
      if (isa == cpu::Isa::kScalar && i >= 10) continue;
      cpu::set_isa(isa);
      SCOPED_TRACE(spec.describe() + " " + cpu::isa_name(isa) + " seed " + std::to_string(seed_));
      GuardedBuffer output(spec.m * spec.k, item);
      std::memset(output.data(), 0xff, output.bytes());
      Matmul4bitParams p = problem.params();
      p.input = gradient.data();
      p.input_stride = stride;
      p.output = output.data();
      const int64_t units = ceil_div(spec.k, 64);
      const int64_t cut = units / 2;
      ASSERT_TRUE(cpu::matmul_4bit_backward_input(p, cut, units).ok());
      ASSERT_TRUE(cpu::matmul_4bit_backward_input(p, 0, cut).ok());
      ASSERT_TRUE(output.guards_intact());
      for (int64_t m = 0; m < spec.m; ++m) {
        for (int64_t k = 0; k < spec.k; ++k) {
          double expected = 0.0, magnitude = 0.0;
          for (int64_t n = 0; n < spec.n; ++n) {
            const double product =
                load_element(gradient.data(), spec.dtype, m * stride + n) * w[n * spec.k + k];
            expected += product;
            magnitude += std::fabs(product);
          }
          const double got = load_element(output.data(), spec.dtype, m * spec.k + k);
          ASSERT_LE(
              std::fabs(got - expected),
              1e-6 * magnitude + 0x1p-25 + testing::rounding(spec.dtype) * std::fabs(expected))
              << "row " << m << " column " << k;
        }
      }
      EXPECT_EQ(StatusCode::kInvalidArgument,
                cpu::matmul_4bit_backward_input(p, 0, units + 1).code);
    }
  }
}

}  // namespace
}  // namespace lowbit::kernels
