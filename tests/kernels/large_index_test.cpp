// More than 2^31 elements: the last units of problems whose memory is reserved, not used.
#include <gtest/gtest.h>

#include "instruction_sets.h"
#include "lowbit/kernels/blockwise.h"
#include "lowbit/kernels/fourbit.h"
#include "lowbit/kernels/int8.h"
#include "lowbit/kernels/maps.h"
#include "random_buffers.h"

#if defined(__linux__)
#include <sys/mman.h>

namespace lowbit::kernels {
namespace {

using testing::Content;
using testing::fill_random;
using testing::random_element;

constexpr int64_t kN = (int64_t{1} << 32) + 64 * 5 + 3;  // wraps to 323 in 32 bits
constexpr int64_t kTail = 64 * 3 + 3;                    // the last four blocks
constexpr int64_t kFirst = kN - kTail;
constexpr int64_t kBlocks = (kN + 63) / 64;

/// Zeros that cost memory only where they are touched.
class Sparse {
 public:
  explicit Sparse(int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {
    data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    EXPECT_NE(data_, MAP_FAILED);
  }
  ~Sparse() { munmap(data_, bytes_); }
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
  void* data() { return data_; }
  template <typename T>
  T* as() {
    return static_cast<T*>(data_);
  }

 private:
  size_t bytes_;
  void* data_;
};

class LargeIndex : public testing::EachInstructionSet {};
LOWBIT_EACH_INSTRUCTION_SET(LargeIndex);

TEST_P(LargeIndex, Fourbit) {
  Sparse input(kN * 2), packed((kN + 1) / 2), absmax(kBlocks * 4), output(kN * 2);
  auto* tail = input.as<uint16_t>() + kFirst;
  fill_random(tail, DType::kBFloat16, kTail, random_, Content::kNormal);
  ASSERT_TRUE(cpu::quantize_4bit({input.data(), DType::kBFloat16, kN, 64, QuantType::kNF4,
                                  packed.as<uint8_t>(), absmax.as<float>()},
                                 kBlocks - 4, kBlocks)
                  .ok());
  uint8_t codes[(kTail + 1) / 2];
  float scales[4];
  ASSERT_TRUE(
      ref::quantize_4bit({tail, DType::kBFloat16, kTail, 64, QuantType::kNF4, codes, scales}, 0, 4)
          .ok());
  EXPECT_EQ(std::memcmp(packed.as<uint8_t>() + kFirst / 2, codes, sizeof codes), 0);
  EXPECT_EQ(std::memcmp(absmax.as<float>() + kBlocks - 4, scales, sizeof scales), 0);

  Dequantize4bitParams p;
  p.packed = packed.as<uint8_t>();
  p.scales.absmax = absmax.as<float>();
  p.numel = kN;
  p.output = output.data();
  p.output_dtype = DType::kBFloat16;
  ASSERT_TRUE(cpu::dequantize_4bit(p, kBlocks - 4, kBlocks).ok());
  uint16_t expected[kTail];
  p.packed = codes;
  p.scales.absmax = scales;
  p.numel = kTail;
  p.output = expected;
  ASSERT_TRUE(ref::dequantize_4bit(p, 0, 4).ok());
  EXPECT_EQ(std::memcmp(output.as<uint16_t>() + kFirst, expected, sizeof expected), 0);

  // The last row of a table whose rows are the tail's length.
  Embedding4bitParams e;
  const int64_t id = kN / 65 - 1;
  e.ids = &id;
  e.count = 1;
  e.rows = kN / 65;
  e.dim = 65;
  e.packed = packed.as<uint8_t>();
  e.scales.absmax = absmax.as<float>();
  uint16_t row[65];
  e.output = row;
  e.output_dtype = DType::kBFloat16;
  ASSERT_TRUE(cpu::embedding_4bit(e, 0, 1).ok());
  ASSERT_GE(id * 65, kFirst);
  EXPECT_EQ(std::memcmp(row, output.as<uint16_t>() + id * 65, sizeof row), 0);
}

TEST_P(LargeIndex, Blockwise) {
  Sparse input(kN * 2), codes(kN), absmax(kBlocks * 4), output(kN * 2);
  auto* tail = input.as<uint16_t>() + kFirst;
  fill_random(tail, DType::kFloat16, kTail, random_, Content::kNormal);
  ASSERT_TRUE(cpu::quantize_blockwise({input.data(), DType::kFloat16, kN, 64, dynamic_map(true),
                                       codes.as<uint8_t>(), absmax.as<float>()},
                                      kBlocks - 4, kBlocks)
                  .ok());
  uint8_t expected[kTail];
  float scales[4];
  ASSERT_TRUE(ref::quantize_blockwise(
                  {tail, DType::kFloat16, kTail, 64, dynamic_map(true), expected, scales}, 0, 4)
                  .ok());
  EXPECT_EQ(std::memcmp(codes.as<uint8_t>() + kFirst, expected, sizeof expected), 0);
  EXPECT_EQ(std::memcmp(absmax.as<float>() + kBlocks - 4, scales, sizeof scales), 0);
  ASSERT_TRUE(cpu::dequantize_blockwise({codes.as<uint8_t>(), absmax.as<float>(), dynamic_map(true),
                                         kN, 64, output.data(), DType::kFloat16},
                                        kBlocks - 4, kBlocks)
                  .ok());
  uint16_t values[kTail];
  ASSERT_TRUE(ref::dequantize_blockwise(
                  {expected, scales, dynamic_map(true), kTail, 64, values, DType::kFloat16}, 0, 4)
                  .ok());
  EXPECT_EQ(std::memcmp(output.as<uint16_t>() + kFirst, values, sizeof values), 0);
}

TEST_P(LargeIndex, Int8) {
  constexpr int64_t kCols = 1000, kRows = (int64_t{1} << 32) / kCols + 2;
  constexpr int64_t kLast = (kRows - 1) * kCols;
  Sparse input(kRows * kCols * 2), q(kRows * kCols), stats(kRows * 4), output(kRows * kCols * 2);
  auto* tail = input.as<uint16_t>() + kLast;
  fill_random(tail, DType::kFloat16, kCols, random_, Content::kNormal);
  std::vector<uint8_t> columns(kCols, 0);
  const QuantizeRowwiseParams p{input.data(),  kCols, DType::kFloat16, kRows,
                                kCols,         2.0f,  q.as<int8_t>(),  stats.as<float>(),
                                columns.data()};
  ASSERT_TRUE(cpu::quantize_rowwise(p, kRows - 1, kRows).ok());
  std::vector<int8_t> expected(kCols);
  std::vector<uint8_t> expected_columns(kCols, 0);
  float stat = NAN;
  ASSERT_TRUE(ref::quantize_rowwise({tail, kCols, DType::kFloat16, 1, kCols, 2.0f, expected.data(),
                                     &stat, expected_columns.data()},
                                    0, 1)
                  .ok());
  EXPECT_EQ(std::memcmp(q.as<int8_t>() + kLast, expected.data(), kCols), 0);
  EXPECT_EQ(stats.as<float>()[kRows - 1], stat);
  EXPECT_EQ(columns, expected_columns);

  const int64_t id = kRows - 1;
  std::vector<uint16_t> row(kCols), truth(kCols);
  ASSERT_TRUE(cpu::embedding_int8({&id, 1, kRows, kCols, q.as<int8_t>(), stats.as<float>(),
                                   row.data(), DType::kFloat16},
                                  0, 1)
                  .ok());
  ASSERT_TRUE(cpu::dequantize_rowwise(
                  {q.as<int8_t>(), stats.as<float>(), kRows, kCols, output.data(), DType::kFloat16},
                  kRows - 1, kRows)
                  .ok());
  ASSERT_TRUE(ref::dequantize_rowwise(
                  {expected.data(), &stat, 1, kCols, truth.data(), DType::kFloat16}, 0, 1)
                  .ok());
  EXPECT_EQ(row, truth);
  EXPECT_EQ(std::memcmp(output.as<uint16_t>() + kLast, truth.data(), kCols * 2), 0);

  std::fill(columns.begin(), columns.end(), uint8_t{1});
  ASSERT_TRUE(cpu::zero_outlier_columns(p, kRows - 1, kRows).ok());
  EXPECT_EQ(std::count(q.as<int8_t>() + kLast, q.as<int8_t>() + kLast + kCols, 0), kCols);

  // Rows far apart.
  constexpr int64_t kStride = int64_t{1} << 31;
  std::vector<int8_t> far(2 * 3), near(2 * 3);
  float far_stats[3], near_stats[3];
  auto* second = input.as<uint16_t>() + kStride;
  for (int c = 0; c < 3; ++c) {
    input.as<uint16_t>()[c] = static_cast<uint16_t>(0x3c00 + c);
    second[c] = static_cast<uint16_t>(0x4000 - c);
  }
  const uint16_t both[6] = {0x3c00, 0x3c01, 0x3c02, 0x4000, 0x3fff, 0x3ffe};
  ASSERT_TRUE(cpu::quantize_colwise(
                  {input.data(), kStride, DType::kFloat16, 2, 3, 0.0f, far.data(), far_stats}, 0, 3)
                  .ok());
  ASSERT_TRUE(
      ref::quantize_colwise({both, 3, DType::kFloat16, 2, 3, 0.0f, near.data(), near_stats}, 0, 3)
          .ok());
  EXPECT_EQ(far, near);
  EXPECT_EQ(std::memcmp(far_stats, near_stats, sizeof near_stats), 0);
}

}  // namespace
}  // namespace lowbit::kernels
#endif
