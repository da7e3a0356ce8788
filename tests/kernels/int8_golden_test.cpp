// LLM.int8() against recorded outputs of the CUDA implementation.
#include "golden.h"
#include "instruction_sets.h"
#include "lowbit/kernels/int8.h"

namespace lowbit::kernels {
namespace {

using testing::Golden;
using testing::Tally;

constexpr int64_t kRows = 33, kCols = 256, kOut = 96;

struct Rowwise {
  std::vector<int8_t> q;
  std::vector<float> stats;
  std::vector<uint8_t> columns;
};

Rowwise quantize_rows(const std::vector<uint16_t>& halves, int64_t rows, int64_t cols,
                      float threshold) {
  Rowwise result{std::vector<int8_t>(static_cast<size_t>(rows * cols), 99),
                 std::vector<float>(static_cast<size_t>(rows), NAN),
                 std::vector<uint8_t>(static_cast<size_t>(cols), 0)};
  const QuantizeRowwiseParams p{halves.data(),
                                cols,
                                DType::kFloat16,
                                rows,
                                cols,
                                threshold,
                                result.q.data(),
                                result.stats.data(),
                                result.columns.data()};
  EXPECT_TRUE(cpu::quantize_rowwise(p, 0, rows).ok());
  if (threshold > 0.0f && rows > 1) {
    EXPECT_TRUE(cpu::zero_outlier_columns(p, 0, rows).ok());
  }
  return result;
}

std::vector<int64_t> indexes(const std::vector<uint8_t>& columns) {
  std::vector<int64_t> found;
  for (size_t c = 0; c < columns.size(); ++c) {
    if (columns[c] != 0) found.push_back(static_cast<int64_t>(c));
  }
  return found;
}

/// One element of A lies on a rounding tie that the hardware's approximate reciprocal decides the
/// other way.
constexpr int64_t kReciprocalTies = 1;

/// -0.0 and 0.0 are the same statistic.
std::vector<float> without_sign_of_zero(std::vector<float> values) {
  for (float& v : values) v += 0.0f;
  return values;
}

class Int8Golden : public testing::EachInstructionSet {
 protected:
  const Golden golden_{"int8.safetensors"};
};
LOWBIT_EACH_INSTRUCTION_SET(Int8Golden);

TEST_P(Int8Golden, Rowwise) {
  Tally tally("int8 row-wise");
  const auto a = golden_.get<uint16_t>("A");
  for (const std::string threshold : {"0.0", "6.0"}) {
    const Rowwise ours = quantize_rows(a, kRows, kCols, std::stof(threshold));
    tally.compare("q." + threshold, ours.q, golden_.get<int8_t>("cuda.q." + threshold),
                  threshold == "6.0" ? kReciprocalTies : 0);
    tally.compare("s." + threshold, ours.stats, golden_.get<float>("cuda.s." + threshold));
    if (threshold != "0.0") {
      tally.compare("oc", indexes(ours.columns), golden_.get<int64_t>("cuda.oc." + threshold));
    }
  }
  const Rowwise weight = quantize_rows(golden_.get<uint16_t>("W"), kOut, kCols, 0.0f);
  tally.compare("CB", weight.q, golden_.get<int8_t>("cuda.CB"));
  tally.compare("SCB", weight.stats, golden_.get<float>("cuda.SCB"));
}

TEST_P(Int8Golden, RoundingAndSpecialRows) {
  Tally tally("int8 special rows");
  const Rowwise ours = quantize_rows(golden_.get<uint16_t>("R"), 5, 8, 0.0f);
  tally.compare("R.q", ours.q, golden_.get<int8_t>("cuda.R.q"));
  tally.compare("R.s", without_sign_of_zero(ours.stats),
                without_sign_of_zero(golden_.get<float>("cuda.R.s")));
}

TEST_P(Int8Golden, DoubleQuantization) {
  Tally tally("int8 double quantization");
  const auto a = golden_.get<uint16_t>("A");
  for (const std::string threshold : {"0.0", "6.0"}) {
    std::vector<int8_t> q(kRows * kCols, 99);
    std::vector<float> stats(kCols, NAN);
    const QuantizeColwiseParams p{a.data(), kCols,       DType::kFloat16,
                                  kRows,    kCols,       std::stof(threshold),
                                  q.data(), stats.data()};
    ASSERT_TRUE(cpu::quantize_colwise(p, 0, kCols / 2 + 3).ok());
    ASSERT_TRUE(cpu::quantize_colwise(p, kCols / 2 + 3, kCols).ok());
    tally.compare("col." + threshold, q, golden_.get<int8_t>("cuda.dq.col." + threshold));
    tally.compare("scol." + threshold, stats, golden_.get<float>("cuda.dq.scol." + threshold));
    const Rowwise rows = quantize_rows(a, kRows, kCols, std::stof(threshold));
    tally.compare("row." + threshold, rows.q, golden_.get<int8_t>("cuda.dq.row." + threshold),
                  threshold == "6.0" ? kReciprocalTies : 0);
    tally.compare("srow." + threshold, rows.stats, golden_.get<float>("cuda.dq.srow." + threshold));
  }
}

TEST_P(Int8Golden, Dequantize) {
  const auto q = golden_.get<int8_t>("cuda.CB");
  const auto stats = golden_.get<float>("cuda.SCB");
  std::vector<float> output(kOut * kCols, NAN);
  ASSERT_TRUE(cpu::dequantize_rowwise(
                  {q.data(), stats.data(), kOut, kCols, output.data(), DType::kFloat32}, 0, kOut)
                  .ok());
  Tally("int8 dequantized").compare("vdq", output, golden_.get<float>("cuda.vdq"));
}

TEST_P(Int8Golden, MatmulIsExact) {
  Tally tally("int8 matmul int32");
  const auto b = golden_.get<int8_t>("cuda.CB");
  for (const std::string threshold : {"0.0", "6.0"}) {
    const auto a = golden_.get<int8_t>("cuda.q." + threshold);
    std::vector<int32_t> c(kRows * kOut, -1);
    MatmulInt8Params p;
    p.a = a.data(), p.b = b.data(), p.m = kRows, p.n = kOut, p.k = kCols, p.c = c.data();
    ASSERT_TRUE(cpu::matmul_int8(p, 0, kOut).ok());
    tally.compare(threshold, c, golden_.get<int32_t>("cuda.i32." + threshold));
  }
  std::vector<int8_t> a(14), k7(21);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<int8_t>(static_cast<int>(i) - 7);
  for (size_t i = 0; i < k7.size(); ++i) k7[i] = static_cast<int8_t>(static_cast<int>(i) - 10);
  std::vector<int32_t> c(6, -1);
  MatmulInt8Params p;
  p.a = a.data(), p.b = k7.data(), p.m = 2, p.n = 3, p.k = 7, p.c = c.data();
  ASSERT_TRUE(cpu::matmul_int8(p, 0, 3).ok());
  tally.compare("k7", c, golden_.get<int32_t>("cuda.i32.k7"));
}

TEST_P(Int8Golden, DequantizeMatmul) {
  Tally tally("int8 epilogue");
  const auto bias = golden_.get<uint16_t>("bias");
  const auto col_stats = golden_.get<float>("cuda.SCB");
  for (const std::string threshold : {"0.0", "6.0"}) {
    const auto a = golden_.get<int32_t>("cuda.i32." + threshold);
    const auto row_stats = golden_.get<float>("cuda.s." + threshold);
    for (const bool with_bias : {false, true}) {
      std::vector<uint16_t> output(kRows * kOut, 0x7e00);
      const DequantizeMatmulParams p{a.data(),
                                     row_stats.data(),
                                     col_stats.data(),
                                     with_bias ? bias.data() : nullptr,
                                     DType::kFloat16,
                                     kRows,
                                     kOut,
                                     output.data(),
                                     DType::kFloat16};
      ASSERT_TRUE(cpu::dequantize_matmul(p, 0, kRows).ok());
      const std::string name = std::string(with_bias ? "bias." : "nobias.") + threshold;
      tally.compare(name, output, golden_.get<uint16_t>("cuda.mmdq." + name));
    }
  }
}

}  // namespace
}  // namespace lowbit::kernels
