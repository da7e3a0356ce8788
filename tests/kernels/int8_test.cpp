// LLM.int8() quantize and dequantize: every instruction set against the scalar reference, and what
// both promise.
#include "lowbit/kernels/int8.h"

#include <thread>

#include "instruction_sets.h"
#include "int8_scalar.h"
#include "random_buffers.h"

namespace lowbit::kernels {
namespace {

using testing::Content;
using testing::fill_random;
using testing::GuardedBuffer;
using testing::kContents;
using testing::kDTypes;
using testing::same_elements;

class Int8 : public testing::EachInstructionSet {
 protected:
  template <typename T, size_t kCount>
  T pick(const T (&values)[kCount]) {
    return values[below(kCount)];
  }
};
LOWBIT_EACH_INSTRUCTION_SET(Int8);

constexpr float kThresholds[] = {0.0f, 0.0f, 6.0f, 1.0f, 0.3f, 2.7f, 1e-30f, 1e30f, HUGE_VALF};

/// A matrix with rows farther apart than they are long.
struct Matrix {
  Matrix(int64_t rows_, int64_t cols_, DType dtype_, Content content, std::mt19937& random)
      : rows(rows_),
        cols(cols_),
        stride(cols_ + static_cast<int64_t>(random() % 3) * 5),
        dtype(dtype_),
        storage((rows - 1) * stride + cols, itemsize(dtype),
                itemsize(dtype) * static_cast<int64_t>(random() % 5)) {
    fill_random(storage.data(), dtype, (rows - 1) * stride + cols, random, content);
  }
  float at(int64_t r, int64_t c) { return load_element(storage.data(), dtype, r * stride + c); }
  int64_t rows, cols, stride;
  DType dtype;
  GuardedBuffer storage;
};

struct Quantized {
  Quantized(const Matrix& m, int64_t stat_count)
      : q(m.rows * m.cols, 1, 3), stats(stat_count, 4), columns(m.cols, 1) {
    std::memset(columns.data(), 0, columns.bytes());
  }
  GuardedBuffer q, stats, columns;
  bool guards_intact() const {
    return q.guards_intact() && stats.guards_intact() && columns.guards_intact();
  }
};

QuantizeRowwiseParams rowwise(Matrix& m, float threshold, Quantized& out) {
  return {m.storage.data(),
          m.stride,
          m.dtype,
          m.rows,
          m.cols,
          threshold,
          out.q.as<int8_t>(),
          out.stats.as<float>(),
          out.columns.as<uint8_t>()};
}

void expect_same(Quantized& a, Quantized& b, int64_t stat_count) {
  for (size_t i = 0; i < a.q.bytes(); ++i) {
    ASSERT_EQ(int{a.q.as<int8_t>()[i]}, int{b.q.as<int8_t>()[i]}) << i;
  }
  ASSERT_TRUE(same_elements(a.stats.data(), b.stats.data(), DType::kFloat32, stat_count));
  ASSERT_EQ(std::memcmp(a.columns.data(), b.columns.data(), a.columns.bytes()), 0);
  ASSERT_TRUE(a.guards_intact());
}

TEST_P(Int8, QuantizeRowwiseIsTheReference) {
  for (int trial = 0; trial < 300; ++trial) {
    const Content content = pick(kContents);
    Matrix m(1 + below(9), 1 + below(trial % 2 == 0 ? 40 : 1200), pick(kDTypes), content, random_);
    const float threshold = pick(kThresholds);
    SCOPED_TRACE(::testing::Message() << m.rows << " x " << m.cols << " threshold " << threshold
                                      << " dtype " << int(m.dtype) << " content " << int(content));
    Quantized ours(m, m.rows), truth(m, m.rows);
    const int64_t cut = below(static_cast<uint32_t>(m.rows + 1));
    ASSERT_TRUE(cpu::quantize_rowwise(rowwise(m, threshold, ours), cut, m.rows).ok());
    ASSERT_TRUE(cpu::quantize_rowwise(rowwise(m, threshold, ours), 0, cut).ok());
    ASSERT_TRUE(ref::quantize_rowwise(rowwise(m, threshold, truth), 0, m.rows).ok());
    expect_same(ours, truth, m.rows);
    if (HasFatalFailure()) return;
  }
}

TEST_P(Int8, OutliersAreLeftOutOfStatisticsAndClearTheirColumns) {
  Matrix m(5, 300, DType::kFloat32, Content::kNormal, random_);
  const float threshold = 1.7f;  // not a float16: rounded to one
  const float rounded = to_float(from_float<Half>(threshold));
  float* x = m.storage.as<float>();
  x[7] = rounded;  // at least: an outlier
  x[8] = -rounded;
  x[9] = std::nextafter(rounded, 0.0f);  // not quite
  Quantized out(m, m.rows);
  const auto p = rowwise(m, threshold, out);
  ASSERT_TRUE(cpu::quantize_rowwise(p, 0, m.rows).ok());
  ASSERT_TRUE(cpu::zero_outlier_columns(p, 0, m.rows).ok());
  int outliers = 0;
  for (int64_t c = 0; c < m.cols; ++c) {
    bool expected = false;
    for (int64_t r = 0; r < m.rows; ++r) expected |= std::fabs(m.at(r, c)) >= rounded;
    EXPECT_EQ(p.outlier_columns[c] == 1, expected) << c;
    EXPECT_TRUE(p.outlier_columns[c] <= 1);
    outliers += expected;
    for (int64_t r = 0; expected && r < m.rows; ++r) EXPECT_EQ(p.q[r * m.cols + c], 0);
  }
  EXPECT_TRUE(outliers > 10 && outliers < 290) << outliers;
  EXPECT_EQ(p.outlier_columns[7], 1);
  EXPECT_EQ(p.outlier_columns[8], 1);
  for (int64_t r = 0; r < m.rows; ++r) {
    float stat = 0.0f;  // values below the threshold count, also those in outlier columns
    for (int64_t c = 0; c < m.cols; ++c) {
      if (std::fabs(m.at(r, c)) < rounded) stat = std::max(stat, std::fabs(m.at(r, c)));
    }
    EXPECT_EQ(p.stats[r], stat);
    for (int64_t c = 0; c < m.cols; ++c) {
      if (p.outlier_columns[c] == 0) {
        EXPECT_LE(std::fabs(m.at(r, c) - p.q[r * m.cols + c] * stat / 127.0f), stat / 253.9f);
      }
    }
  }
}

TEST_P(Int8, ThreadsShareTheOutlierColumns) {
  Matrix m(64, 500, DType::kFloat16, Content::kNormal, random_);
  Quantized ours(m, m.rows), truth(m, m.rows);
  const auto p = rowwise(m, 2.0f, ours);
  std::thread other([&] { EXPECT_TRUE(cpu::quantize_rowwise(p, 0, 32).ok()); });
  EXPECT_TRUE(cpu::quantize_rowwise(p, 32, 64).ok());
  other.join();
  ASSERT_TRUE(ref::quantize_rowwise(rowwise(m, 2.0f, truth), 0, m.rows).ok());
  expect_same(ours, truth, m.rows);
}

TEST_P(Int8, TiesGoToEvenAndExtremesToZero) {
  const float rows[4][8] = {{127, .5f, 1.5f, 2.5f, -.5f, -1.5f, -2.5f, 126.5f},
                            {HUGE_VALF, 1, -2, 3, 4, 5, 6, 7},
                            {NAN, 127, -127, 0, 1, 2, 3, 4},
                            {0, -0.0f, 0, 0, 0, 0, 0, 0}};
  const int expected[4][8] = {{127, 0, 2, 2, 0, -2, -2, 126},
                              {0, 0, 0, 0, 0, 0, 0, 0},
                              {0, 127, -127, 0, 1, 2, 3, 4},
                              {0, 0, 0, 0, 0, 0, 0, 0}};
  const float stats[4] = {127, HUGE_VALF, 127, 0};
  for (const DType dtype : kDTypes) {
    uint8_t input[32 * 4];
    for (int i = 0; i < 32; ++i) store_element(input, dtype, i, rows[i / 8][i % 8]);
    int8_t q[32];
    float s[4];
    ASSERT_TRUE(cpu::quantize_rowwise({input, 8, dtype, 4, 8, 0.0f, q, s, nullptr}, 0, 4).ok());
    for (int i = 0; i < 32; ++i) EXPECT_EQ(q[i], expected[i / 8][i % 8]) << i;
    for (int r = 0; r < 4; ++r) EXPECT_EQ(s[r], stats[r]);
  }
}

TEST_P(Int8, QuantizeColwiseIsTheReference) {
  for (int trial = 0; trial < 200; ++trial) {
    const Content content = pick(kContents);
    Matrix m(1 + below(20), 1 + below(200), pick(kDTypes), content, random_);
    const float threshold = pick(kThresholds);
    SCOPED_TRACE(::testing::Message() << m.rows << " x " << m.cols << " threshold " << threshold
                                      << " dtype " << int(m.dtype) << " content " << int(content));
    Quantized ours(m, m.cols), truth(m, m.cols);
    const auto params = [&](Quantized& out) {
      return QuantizeColwiseParams{
          m.storage.data(),     m.stride, m.dtype, m.rows, m.cols, threshold, out.q.as<int8_t>(),
          out.stats.as<float>()};
    };
    const int64_t cut = below(static_cast<uint32_t>(m.cols + 1));
    ASSERT_TRUE(cpu::quantize_colwise(params(ours), cut, m.cols).ok());
    ASSERT_TRUE(cpu::quantize_colwise(params(ours), 0, cut).ok());
    ASSERT_TRUE(ref::quantize_colwise(params(truth), 0, m.cols).ok());
    expect_same(ours, truth, m.cols);
    if (HasFatalFailure()) return;
  }
}

TEST_P(Int8, DequantizeRowwiseAndEmbeddingAreTheReference) {
  for (int trial = 0; trial < 150; ++trial) {
    const int64_t rows = 1 + below(20), cols = 1 + below(300);
    GuardedBuffer q(rows * cols, 1, below(5)), stats(rows, 4);
    for (size_t i = 0; i < q.bytes(); ++i) q.as<int8_t>()[i] = static_cast<int8_t>(random_());
    fill_random(stats.data(), DType::kFloat32, rows, random_, pick(kContents));
    const DType dtype = pick(kDTypes);
    GuardedBuffer ours(rows * cols, itemsize(dtype), itemsize(dtype) * below(5));
    GuardedBuffer truth(rows * cols, itemsize(dtype));
    const auto params = [&](GuardedBuffer& out) {
      return DequantizeRowwiseParams{q.as<int8_t>(), stats.as<float>(), rows,
                                     cols,           out.data(),        dtype};
    };
    const int64_t cut = below(static_cast<uint32_t>(rows + 1));
    ASSERT_TRUE(cpu::dequantize_rowwise(params(ours), cut, rows).ok());
    ASSERT_TRUE(cpu::dequantize_rowwise(params(ours), 0, cut).ok());
    ASSERT_TRUE(ref::dequantize_rowwise(params(truth), 0, rows).ok());
    ASSERT_TRUE(same_elements(ours.data(), truth.data(), dtype, rows * cols));
    ASSERT_TRUE(ours.guards_intact());

    const int64_t count = 1 + below(30);
    std::vector<int64_t> ids(static_cast<size_t>(count));
    for (int64_t& id : ids) id = below(static_cast<uint32_t>(rows));
    GuardedBuffer gathered(count * cols, itemsize(dtype));
    ASSERT_TRUE(cpu::embedding_int8({ids.data(), count, rows, cols, q.as<int8_t>(),
                                     stats.as<float>(), gathered.data(), dtype},
                                    0, count)
                    .ok());
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_TRUE(same_elements(element_address(gathered.data(), dtype, i * cols),
                                element_address(truth.data(), dtype, ids[i] * cols), dtype, cols));
    }
    ASSERT_TRUE(gathered.guards_intact());
  }
}

TEST_P(Int8, DequantizeMatmulIsTheReference) {
  for (int trial = 0; trial < 200; ++trial) {
    const int64_t rows = 1 + below(12), cols = 1 + below(200);
    GuardedBuffer a(rows * cols, 4, 4 * below(5)), row_stats(rows, 4), col_stats(cols, 4);
    const uint32_t shift = below(32);
    for (int64_t i = 0; i < rows * cols; ++i) {
      a.as<int32_t>()[i] = static_cast<int32_t>(random_()) >> shift;
    }
    const Content content = pick(kContents);
    fill_random(row_stats.data(), DType::kFloat32, rows, random_, content);
    fill_random(col_stats.data(), DType::kFloat32, cols, random_, content);
    const DType bias_dtype = pick(kDTypes), dtype = pick(kDTypes);
    GuardedBuffer bias(cols, itemsize(bias_dtype), itemsize(bias_dtype) * below(5));
    fill_random(bias.data(), bias_dtype, cols, random_, content);
    GuardedBuffer ours(rows * cols, itemsize(dtype), itemsize(dtype) * below(5));
    GuardedBuffer truth(rows * cols, itemsize(dtype));
    const bool with_bias = below(2) == 0;
    const auto params = [&](GuardedBuffer& out) {
      return DequantizeMatmulParams{a.as<int32_t>(),
                                    row_stats.as<float>(),
                                    col_stats.as<float>(),
                                    with_bias ? bias.data() : nullptr,
                                    bias_dtype,
                                    rows,
                                    cols,
                                    out.data(),
                                    dtype};
    };
    const int64_t cut = below(static_cast<uint32_t>(rows + 1));
    ASSERT_TRUE(cpu::dequantize_matmul(params(ours), cut, rows).ok());
    ASSERT_TRUE(cpu::dequantize_matmul(params(ours), 0, cut).ok());
    ASSERT_TRUE(ref::dequantize_matmul(params(truth), 0, rows).ok());
    ASSERT_TRUE(same_elements(ours.data(), truth.data(), dtype, rows * cols))
        << rows << " x " << cols << " content " << int(content);
    ASSERT_TRUE(ours.guards_intact());
  }
}

}  // namespace
}  // namespace lowbit::kernels
