// The int8 matmul of every instruction set: bit for bit against the scalar one; the weight-only
// linear against exact sums.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "instruction_sets.h"
#include "lowbit/kernels/int8.h"
#include "random_buffers.h"

namespace lowbit::kernels {
namespace {

using testing::GuardedBuffer;

constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

class Int8Matmul : public testing::EachInstructionSet {
 protected:
  int64_t size(std::initializer_list<int64_t> usual, uint32_t limit) {
    const uint32_t i = below(static_cast<uint32_t>(usual.size()) + 1);
    return i < usual.size() ? *(usual.begin() + i) : 1 + below(limit);
  }
  GuardedBuffer codes(int64_t n) {
    GuardedBuffer b(n, 1, below(4));
    for (int64_t i = 0; i < n; ++i) b.as<int8_t>()[i] = static_cast<int8_t>(below(256) - 128);
    return b;
  }
  GuardedBuffer normals(int64_t n, DType type, float scale) {
    GuardedBuffer b(n, itemsize(type), itemsize(type) * below(3));
    for (int64_t i = 0; i < n; ++i) store_element(b.data(), type, i, scale * normal_(random_));
    return b;
  }
  std::normal_distribution<float> normal_;
};
LOWBIT_EACH_INSTRUCTION_SET(Int8Matmul);

TEST_P(Int8Matmul, IsBitIdenticalWithTheScalarOne) {
  for (int i = 0; i < 80; ++i) {
    const int64_t m = size({1, 2, 3, 4, 5, 6, 12, 97, 200}, 30);
    const int64_t n = size({1, 31, 32, 33, 65}, 80);
    const int64_t k = size({1, 2, 15, 16, 17, 64, 383, 384, 385, 2048, 2049}, 900);
    if (m * n * k > 4'000'000) continue;
    const DType type = kTypes[below(3)], bias_type = kTypes[below(3)];
    SCOPED_TRACE("m " + std::to_string(m) + " n " + std::to_string(n) + " k " + std::to_string(k));
    GuardedBuffer a = codes(m * k), b = codes(n * k);
    GuardedBuffer row_stats = normals(m, DType::kFloat32, 3.0f);
    GuardedBuffer col_stats = normals(n, DType::kFloat32, 3.0f);
    GuardedBuffer bias = normals(n, bias_type, 10.0f);
    row_stats.as<float>()[0] = 0.0f;  // a row of zeros
    col_stats.as<float>()[n - 1] = std::numeric_limits<float>::infinity();
    const bool sums = below(2) == 0, fused = !sums || below(2) == 0;
    GuardedBuffer c[2] = {{m * n, 4}, {m * n, 4, 4}};
    GuardedBuffer y[2] = {{m * n, itemsize(type)}, {m * n, itemsize(type), itemsize(type)}};
    for (int which = 0; which < 2; ++which) {
      MatmulInt8Params p;
      p.a = a.as<int8_t>(), p.b = b.as<int8_t>();
      p.m = m, p.n = n, p.k = k;
      if (sums) p.c = c[which].as<int32_t>();
      if (fused) {
        p.row_stats = row_stats.as<float>(), p.col_stats = col_stats.as<float>();
        p.output = y[which].data(), p.output_dtype = type;
        if (i % 3 != 0) p.bias = bias.data(), p.bias_dtype = bias_type;
      }
      const int64_t cut = below(static_cast<uint32_t>(n) + 1);
      const auto run = which == 0 ? ref::matmul_int8 : cpu::matmul_int8;
      ASSERT_TRUE(run(p, cut, n).ok());
      ASSERT_TRUE(run(p, 0, cut).ok());
      EXPECT_TRUE(c[which].guards_intact() && y[which].guards_intact());
    }
    ASSERT_EQ(0, std::memcmp(c[0].data(), c[1].data(), c[0].bytes()));
    for (int64_t j = 0; fused && j < m * n; ++j) {
      const float expected = load_element(y[0].data(), type, j);
      const float got = load_element(y[1].data(), type, j);
      // 0 * inf is NaN of either sign.
      ASSERT_TRUE(got == expected || (std::isnan(got) && std::isnan(expected)))
          << "element " << j << ": " << got << " and " << expected;
    }
  }
}

TEST_P(Int8Matmul, LargestSumsDoNotSaturate) {
  const int64_t m = 6, n = 3, k = 5000;
  GuardedBuffer a(m * k, 1), b(n * k, 1), c(m * n, 4);
  std::memset(a.data(), -128, a.bytes());
  std::memset(b.data(), -128, b.bytes());
  MatmulInt8Params p;
  p.a = a.as<int8_t>(), p.b = b.as<int8_t>(), p.c = c.as<int32_t>();
  p.m = m, p.n = n, p.k = k;
  for (const int64_t rows : {int64_t{1}, m}) {
    p.m = rows;
    ASSERT_TRUE(cpu::matmul_int8(p, 0, n).ok());
    for (int64_t i = 0; i < rows * n; ++i) EXPECT_EQ(128 * 128 * k, c.as<int32_t>()[i]);
  }
}

TEST_P(Int8Matmul, LinearAgreesWithExactSums) {
  for (int i = 0; i < 80; ++i) {
    const int64_t m = size({1, 2, 3, 4, 5, 6, 12, 65}, 30);
    const int64_t n = size({1, 31, 32, 33}, 80);
    const int64_t k = size({1, 7, 64, 255, 257, 576, 1024, 2049, 4100}, 900);
    if (m * n * k > 1'000'000) continue;
    const DType type = kTypes[below(3)], bias_type = kTypes[below(3)];
    SCOPED_TRACE("m " + std::to_string(m) + " n " + std::to_string(n) + " k " + std::to_string(k));
    const int64_t stride = k + below(3);
    GuardedBuffer x = normals(m * stride, type, 1.0f), bias = normals(n, bias_type, 1.0f);
    GuardedBuffer q = codes(n * k), stats = normals(n, DType::kFloat32, 1.0f);
    GuardedBuffer y(m * n, itemsize(type), itemsize(type));
    LinearInt8Params p;
    p.input = x.data(), p.input_stride = stride, p.dtype = type;
    p.m = m, p.n = n, p.k = k;
    p.q = q.as<int8_t>(), p.stats = stats.as<float>();
    if (i % 3 != 0) p.bias = bias.data(), p.bias_dtype = bias_type;
    p.output = y.data();
    ASSERT_TRUE(cpu::linear_int8(p, 0, n).ok());
    ASSERT_TRUE(y.guards_intact());
    // float32 sums of k terms; then half a unit in the last place of the type.
    const double half_ulp = type == DType::kFloat32   ? 0x1p-24
                            : type == DType::kFloat16 ? 0x1p-11
                                                      : 0x1p-8;
    for (int64_t r = 0; r < m; ++r) {
      for (int64_t c = 0; c < n; ++c) {
        double expected = p.bias == nullptr ? 0.0 : load_element(p.bias, bias_type, c);
        double magnitude = std::fabs(expected);
        for (int64_t j = 0; j < k; ++j) {
          const double product = double{load_element(x.data(), type, r * stride + j)} *
                                 p.q[c * k + j] * p.stats[c] / 127.0;
          expected += product;
          magnitude += std::fabs(product);
        }
        ASSERT_LE(std::fabs(load_element(y.data(), type, r * n + c) - expected),
                  1e-6 * magnitude + half_ulp * std::fabs(expected) + 0x1p-25)
            << "row " << r << " column " << c;
      }
    }
    // The same bits from other ranges.
    const std::vector<uint8_t> whole(y.as<uint8_t>(), y.as<uint8_t>() + y.bytes());
    y.poison();
    const int64_t cut = below(static_cast<uint32_t>(n) + 1);
    ASSERT_TRUE(cpu::linear_int8(p, cut, n).ok());
    ASSERT_TRUE(cpu::linear_int8(p, 0, cut).ok());
    EXPECT_EQ(0, std::memcmp(whole.data(), y.data(), whole.size()));
  }
}

TEST_P(Int8Matmul, EmptyProblemsAreFineAndBadArgumentsAreRefused) {
  GuardedBuffer a = codes(64), b = codes(64), c(64, 4);
  MatmulInt8Params p;
  p.a = a.as<int8_t>(), p.b = b.as<int8_t>();
  p.m = 2, p.n = 4, p.k = 8;
  EXPECT_EQ(StatusCode::kInvalidArgument, cpu::matmul_int8(p, 0, 4).code);  // nowhere to write
  p.c = c.as<int32_t>();
  EXPECT_TRUE(cpu::matmul_int8(p, 0, 4).ok());
  EXPECT_EQ(StatusCode::kInvalidArgument, cpu::matmul_int8(p, 0, 5).code);
  p.m = 0;
  EXPECT_TRUE(cpu::matmul_int8(p, 0, 4).ok());
  p.m = 2, p.k = 0;
  EXPECT_TRUE(cpu::matmul_int8(p, 0, 4).ok());
  EXPECT_EQ(0, c.as<int32_t>()[7]);
  p.m = -1;
  EXPECT_EQ(StatusCode::kInvalidArgument, cpu::matmul_int8(p, 0, 4).code);

  LinearInt8Params l;
  l.input = a.data(), l.q = b.as<int8_t>(), l.output = c.data();
  l.m = 1, l.n = 4, l.k = 8, l.input_stride = 8;
  EXPECT_EQ(StatusCode::kInvalidArgument, cpu::linear_int8(l, 0, 4).code);  // no stats
  l.m = 0;
  EXPECT_TRUE(cpu::linear_int8(l, 0, 4).ok());
}

}  // namespace
}  // namespace lowbit::kernels
