// 4-bit quantize, dequantize and embedding: every instruction set against the scalar reference, and
// what both promise.
#include "lowbit/kernels/fourbit.h"

#include "codebook.h"
#include "instruction_sets.h"
#include "lowbit/kernels/maps.h"
#include "random_buffers.h"

namespace lowbit::kernels {
namespace {

using testing::Content;
using testing::fill_random;
using testing::GuardedBuffer;
using testing::kContents;
using testing::kDTypes;
using testing::random_element;
using testing::same_elements;

constexpr QuantType kTypes[] = {QuantType::kNF4, QuantType::kFP4};
constexpr int64_t kBlocksizes[] = {2, 6, 16, 30, 32, 34, 48, 64, 96, 128, 130, 256, 1000, 4096};

class Fourbit : public testing::EachInstructionSet {
 protected:
  template <typename T, size_t kCount>
  T pick(const T (&values)[kCount]) {
    return values[below(kCount)];
  }
};
LOWBIT_EACH_INSTRUCTION_SET(Fourbit);

struct Packed {
  explicit Packed(int64_t n, int64_t blocksize, int64_t shift = 0)
      : blocks(ceil_div(n, blocksize)),
        codes((n + 1) / 2, 1, shift),
        absmax(blocks, 4, 4 * shift) {}
  int64_t blocks;
  GuardedBuffer codes, absmax;
};

Quantize4bitParams params_for(const void* input, DType dtype, int64_t n, int64_t blocksize,
                              QuantType type, Packed& out) {
  return {input, dtype, n, blocksize, type, out.codes.as<uint8_t>(), out.absmax.as<float>()};
}

::testing::AssertionResult same_bytes(GuardedBuffer& a, GuardedBuffer& b) {
  for (size_t i = 0; i < a.bytes(); ++i) {
    if (a.as<uint8_t>()[i] != b.as<uint8_t>()[i]) {
      return ::testing::AssertionFailure()
             << "byte " << i << " of " << a.bytes() << ": " << int{a.as<uint8_t>()[i]} << " and "
             << int{b.as<uint8_t>()[i]};
    }
  }
  return ::testing::AssertionSuccess();
}

TEST_P(Fourbit, QuantizeIsTheReference) {
  for (int trial = 0; trial < 300; ++trial) {
    const DType dtype = pick(kDTypes);
    const Content content = pick(kContents);
    const QuantType type = pick(kTypes);
    const int64_t blocksize = pick(kBlocksizes);
    const int64_t n = 1 + below(trial % 3 == 0 ? 200 : 9000);
    SCOPED_TRACE(::testing::Message()
                 << "n " << n << " blocksize " << blocksize << " dtype " << int(dtype) << " type "
                 << int(type) << " content " << int(content));
    GuardedBuffer input(n, itemsize(dtype), itemsize(dtype) * below(7));
    fill_random(input.data(), dtype, n, random_, content);
    Packed ours(n, blocksize, below(5)), truth(n, blocksize);
    const auto p = params_for(input.data(), dtype, n, blocksize, type, ours);
    const int64_t cut = below(static_cast<uint32_t>(ours.blocks + 1));
    ASSERT_TRUE(cpu::quantize_4bit(p, cut, ours.blocks).ok());
    ASSERT_TRUE(cpu::quantize_4bit(p, 0, cut).ok());
    ASSERT_TRUE(ref::quantize_4bit(params_for(input.data(), dtype, n, blocksize, type, truth), 0,
                                   truth.blocks)
                    .ok());
    ASSERT_TRUE(same_bytes(ours.codes, truth.codes));
    ASSERT_TRUE(same_bytes(ours.absmax, truth.absmax));
    ASSERT_TRUE(ours.codes.guards_intact() && ours.absmax.guards_intact() && input.guards_intact());
  }
}

TEST_P(Fourbit, QuantizeWritesItsRangeOnly) {
  constexpr int64_t kN = 64 * 10 + 7;
  GuardedBuffer input(kN, 4);
  fill_random(input.data(), DType::kFloat32, kN, random_, Content::kNormal);
  Packed ours(kN, 64);
  const auto p = params_for(input.data(), DType::kFloat32, kN, 64, QuantType::kNF4, ours);
  ASSERT_TRUE(cpu::quantize_4bit(p, 3, 5).ok());
  for (int64_t b = 0; b < ours.blocks; ++b) {
    const bool inside = b == 3 || b == 4;
    EXPECT_EQ(std::bit_cast<uint32_t>(ours.absmax.as<float>()[b]) != 0xa5a5a5a5u, inside) << b;
    bool touched = false;
    for (int64_t i = b * 32; i < std::min<int64_t>((b + 1) * 32, (kN + 1) / 2); ++i) {
      touched |= ours.codes.as<uint8_t>()[i] != 0xa5;
    }
    EXPECT_EQ(touched, inside) << b;
  }
}

TEST_P(Fourbit, EveryHalfAndEveryBfloat) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    std::vector<uint16_t> every(65536);
    for (int i = 0; i < 65536; ++i) every[i] = static_cast<uint16_t>(i);
    // In order: blocks of neighbours. Shuffled: blocks of all magnitudes, and of finite ones after
    // that.
    for (int round = 0; round < 3; ++round) {
      if (round == 1) std::shuffle(every.begin(), every.end(), random_);
      if (round == 2) {
        std::erase_if(every, [&](uint16_t bits) {
          return !(std::fabs(dtype == DType::kFloat16 ? to_float(Half{bits})
                                                      : to_float(BFloat{bits})) <= 1.0f);
        });
        for (size_t i = 0; i < every.size(); i += 64) {
          every[i] = dtype == DType::kFloat16 ? 0x3c00 : 0x3f80;
        }
      }
      const auto n = static_cast<int64_t>(every.size());
      for (const QuantType type : kTypes) {
        Packed ours(n, 64), truth(n, 64);
        ASSERT_TRUE(
            cpu::quantize_4bit(params_for(every.data(), dtype, n, 64, type, ours), 0, ours.blocks)
                .ok());
        ASSERT_TRUE(
            ref::quantize_4bit(params_for(every.data(), dtype, n, 64, type, truth), 0, truth.blocks)
                .ok());
        ASSERT_TRUE(same_bytes(ours.codes, truth.codes)) << round;
        ASSERT_TRUE(same_bytes(ours.absmax, truth.absmax)) << round;
      }
    }
  }
}

TEST_P(Fourbit, ThresholdsAreStrict) {
  std::vector<float> values{1.0f};
  std::vector<int> nf4{15}, fp4{3};
  for (int k = 0; k < 15; ++k) {
    const float t = codebook::kNf4Thresholds[k];
    values.insert(values.end(), {t, std::nextafter(t, 2.0f)});
  }
  Packed out(31, 64);
  ASSERT_TRUE(cpu::quantize_4bit(
                  params_for(values.data(), DType::kFloat32, 31, 64, QuantType::kNF4, out), 0, 1)
                  .ok());
  const auto code = [&](int i) {
    return i % 2 == 0 ? out.codes.as<uint8_t>()[i / 2] >> 4 : out.codes.as<uint8_t>()[i / 2] & 15;
  };
  for (int k = 0; k < 15; ++k) {
    EXPECT_EQ(code(1 + 2 * k), k);
    EXPECT_EQ(code(2 + 2 * k), k + 1);
  }
  values.assign({1.0f});
  for (float t : codebook::kFp4Thresholds) {
    values.insert(values.end(), {t, std::nextafter(t, 2.0f), -t, std::nextafter(-t, -2.0f)});
  }
  Packed out4(29, 64);
  ASSERT_TRUE(cpu::quantize_4bit(
                  params_for(values.data(), DType::kFloat32, 29, 64, QuantType::kFP4, out4), 0, 1)
                  .ok());
  for (int k = 0; k < 7; ++k) {
    for (int j = 0; j < 4; ++j) {
      const int i = 1 + 4 * k + j;
      const int byte = out4.codes.as<uint8_t>()[i / 2];
      const int expected = codebook::kFp4Ascending[k + j % 2] | (j >= 2 ? 8 : 0);
      EXPECT_EQ(i % 2 == 0 ? byte >> 4 : byte & 15, expected) << k << " " << j;
    }
  }
}

TEST_P(Fourbit, BlocksWithoutMagnitudeReadBackAsZero) {
  for (const DType dtype : kDTypes) {
    for (const QuantType type : kTypes) {
      for (const float value : {0.0f, -0.0f, 1e-40f, -1e-40f}) {
        std::vector<float> wide(67, value);
        std::vector<uint8_t> input(67 * 4);
        for (int i = 0; i < 67; ++i) store_element(input.data(), dtype, i, value);
        Packed out(67, 64);
        ASSERT_TRUE(
            cpu::quantize_4bit(params_for(input.data(), dtype, 67, 64, type, out), 0, 2).ok());
        const uint8_t zero = type == QuantType::kNF4 ? 0x77 : 0x00;
        for (int i = 0; i < 34; ++i) EXPECT_EQ(out.codes.as<uint8_t>()[i], zero);
        for (int i = 0; i < 2; ++i) {
          EXPECT_EQ(std::bit_cast<uint32_t>(out.absmax.as<float>()[i]), 0u);
        }
      }
    }
  }
}

TEST_P(Fourbit, NanIsIgnoredInAbsmaxAndOddTailsAreCompletedWithZero) {
  const float input[] = {NAN, 0.5f, -0.25f};
  Packed nf4(3, 64), fp4(3, 64);
  ASSERT_TRUE(
      cpu::quantize_4bit(params_for(input, DType::kFloat32, 3, 64, QuantType::kNF4, nf4), 0, 1)
          .ok());
  ASSERT_TRUE(
      cpu::quantize_4bit(params_for(input, DType::kFloat32, 3, 64, QuantType::kFP4, fp4), 0, 1)
          .ok());
  EXPECT_EQ(nf4.absmax.as<float>()[0], 0.5f);
  EXPECT_EQ(nf4.codes.as<uint8_t>()[0], 0x0f);  // NaN has code 0
  EXPECT_EQ(nf4.codes.as<uint8_t>()[1] & 15, 7);
  EXPECT_EQ(fp4.codes.as<uint8_t>()[0], 0x03);
  EXPECT_EQ(fp4.codes.as<uint8_t>()[1] & 15, 0);
}

/// Random codes with plain or nested scales, among them awkward ones.
struct Weight {
  Weight(int64_t n, int64_t blocksize, bool nested, std::mt19937& random, int64_t shift)
      : codes((n + 1) / 2, 1, shift),
        absmax(ceil_div(n, blocksize), 4),
        absmax8(ceil_div(n, blocksize), 1),
        absmax2(ceil_div(ceil_div(n, blocksize), kNestedBlocksize), 4) {
    for (size_t i = 0; i < codes.bytes(); ++i) {
      codes.as<uint8_t>()[i] = static_cast<uint8_t>(random());
    }
    for (size_t i = 0; i < absmax8.bytes(); ++i) {
      absmax8.as<uint8_t>()[i] = static_cast<uint8_t>(random());
      const Content content = random() % 4 == 0 ? Content::kAnyBits : Content::kNormal;
      absmax.as<float>()[i] = random_element(random, content);
    }
    for (size_t i = 0; i < absmax2.bytes() / 4; ++i) {
      absmax2.as<float>()[i] = random_element(random, Content::kNormal);
    }
    offset = random_element(random, Content::kNormal);
    if (nested) {
      scales.absmax_8bit = absmax8.as<uint8_t>();
      scales.absmax2 = absmax2.as<float>();
      scales.absmax_code = dynamic_map(true);
      scales.absmax_offset = &offset;
    } else {
      scales.absmax = absmax.as<float>();
    }
  }
  GuardedBuffer codes, absmax, absmax8, absmax2;
  float offset;
  BlockScales scales;
};

TEST_P(Fourbit, DequantizeIsTheReference) {
  for (int trial = 0; trial < 300; ++trial) {
    const int64_t blocksize = pick(kBlocksizes);
    const int64_t n = 1 + below(trial % 3 == 0 ? 200 : 20000);
    const bool nested = below(2) == 0;
    Weight weight(n, blocksize, nested, random_, below(5));
    float table[16];
    for (float& v : table) {
      v = random_element(random_, below(2) == 0 ? Content::kAnyBits : Content::kTiny);
    }
    Dequantize4bitParams p;
    p.packed = weight.codes.as<uint8_t>();
    p.scales = weight.scales;
    p.numel = n;
    p.blocksize = blocksize;
    p.quant_type = pick(kTypes);
    p.code = below(3) == 0 ? table : nullptr;
    p.output_dtype = pick(kDTypes);
    GuardedBuffer ours(n, itemsize(p.output_dtype), itemsize(p.output_dtype) * below(9));
    GuardedBuffer truth(n, itemsize(p.output_dtype));
    const int64_t blocks = ceil_div(n, blocksize);
    const int64_t cut = below(static_cast<uint32_t>(blocks + 1));
    p.output = ours.data();
    ASSERT_TRUE(cpu::dequantize_4bit(p, cut, blocks).ok());
    ASSERT_TRUE(cpu::dequantize_4bit(p, 0, cut).ok());
    p.output = truth.data();
    ASSERT_TRUE(ref::dequantize_4bit(p, 0, blocks).ok());
    ASSERT_TRUE(same_elements(ours.data(), truth.data(), p.output_dtype, n))
        << "n " << n << " blocksize " << blocksize << " nested " << nested << " dtype "
        << int(p.output_dtype);
    ASSERT_TRUE(ours.guards_intact());
  }
}

TEST_P(Fourbit, SubnormalProductsAreFlushedWhereTheyBegin) {
  constexpr int64_t kBlocks = 2000;
  std::vector<uint8_t> codes(kBlocks, 0x01);  // codes 0 and 1
  std::vector<float> scales(kBlocks);
  float table[16] = {};
  const float factor = 1.0f + static_cast<float>(below(1 << 23)) * 0x1p-23f;
  table[0] = factor * 0x1p-60f;
  table[1] = -table[0];
  for (float& s : scales) {  // products around 2^-126
    s = std::bit_cast<float>(std::bit_cast<uint32_t>(0x1p-66f / factor) + below(9) - 4);
  }
  Dequantize4bitParams p;
  p.packed = codes.data();
  p.scales.absmax = scales.data();
  p.numel = 2 * kBlocks;
  p.blocksize = 2;
  p.code = table;
  std::vector<float> ours(2 * kBlocks, NAN), truth(2 * kBlocks, NAN);
  p.output = ours.data();
  ASSERT_TRUE(cpu::dequantize_4bit(p, 0, kBlocks).ok());
  p.output = truth.data();
  ASSERT_TRUE(ref::dequantize_4bit(p, 0, kBlocks).ok());
  ASSERT_TRUE(same_elements(ours.data(), truth.data(), DType::kFloat32, 2 * kBlocks));
  for (float v : ours) EXPECT_TRUE(v == 0.0f || std::fabs(v) >= FLT_MIN);
}

TEST_P(Fourbit, EmbeddingGathersRowsOfTheTable) {
  for (int trial = 0; trial < 100; ++trial) {
    const int64_t rows = 1 + below(40), dim = 1 + below(trial % 2 == 0 ? 300 : 40);
    const int64_t blocksize = pick(kBlocksizes), count = 1 + below(20);
    const bool nested = below(2) == 0;
    const DType dtype = pick(kDTypes);
    Weight weight(rows * dim, blocksize, nested, random_, below(5));
    Dequantize4bitParams all;
    all.packed = weight.codes.as<uint8_t>();
    all.scales = weight.scales;
    all.numel = rows * dim;
    all.blocksize = blocksize;
    all.quant_type = pick(kTypes);
    all.output_dtype = dtype;
    std::vector<uint8_t> table(static_cast<size_t>(rows * dim * itemsize(dtype)));
    all.output = table.data();
    ASSERT_TRUE(ref::dequantize_4bit(all, 0, ceil_div(rows * dim, blocksize)).ok());
    std::vector<int64_t> ids(static_cast<size_t>(count));
    for (int64_t& id : ids) id = below(static_cast<uint32_t>(rows));
    GuardedBuffer output(count * dim, itemsize(dtype), itemsize(dtype) * below(3));
    Embedding4bitParams p;
    p.ids = ids.data();
    p.count = count;
    p.rows = rows;
    p.dim = dim;
    p.packed = all.packed;
    p.scales = weight.scales;
    p.blocksize = blocksize;
    p.quant_type = all.quant_type;
    p.output = output.data();
    p.output_dtype = dtype;
    const int64_t cut = below(static_cast<uint32_t>(count + 1));
    ASSERT_TRUE(cpu::embedding_4bit(p, 0, cut).ok());
    ASSERT_TRUE(cpu::embedding_4bit(p, cut, count).ok());
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_TRUE(same_elements(element_address(output.data(), dtype, i * dim),
                                element_address(table.data(), dtype, ids[i] * dim), dtype, dim))
          << "row " << ids[i] << " of " << rows << " x " << dim << " blocksize " << blocksize;
    }
    ASSERT_TRUE(output.guards_intact());
  }
}

TEST_P(Fourbit, RoundTripIsBoundedAndIdempotent) {
  constexpr int64_t kN = 64 * 300;
  for (const QuantType type : kTypes) {
    // Half the widest gap between neighbouring values.
    const double bound = type == QuantType::kNF4 ? 0.152 : 0.1667;
    std::vector<float> x(kN), once(kN), twice(kN);
    fill_random(x.data(), DType::kFloat32, kN, random_, Content::kNormal);
    const auto round_trip = [&](const std::vector<float>& from, std::vector<float>& to) {
      Packed packed(kN, 64);
      ASSERT_TRUE(cpu::quantize_4bit(params_for(from.data(), DType::kFloat32, kN, 64, type, packed),
                                     0, packed.blocks)
                      .ok());
      Dequantize4bitParams p;
      p.packed = packed.codes.as<uint8_t>();
      p.scales.absmax = packed.absmax.as<float>();
      p.numel = kN;
      p.quant_type = type;
      p.output = to.data();
      ASSERT_TRUE(cpu::dequantize_4bit(p, 0, packed.blocks).ok());
      for (int64_t i = 0; i < kN; ++i) {
        ASSERT_LE(std::fabs(from[i] - to[i]), bound * packed.absmax.as<float>()[i / 64]);
      }
    };
    round_trip(x, once);
    round_trip(once, twice);
    for (int64_t i = 0; i < kN; ++i) ASSERT_EQ(once[i], twice[i]) << i;
  }
}

#if defined(__x86_64__)
TEST_P(Fourbit, TheCallersFloatingPointModeNeitherMattersNorChanges) {
  constexpr int64_t kN = 4096;
  std::vector<float> x(kN);
  fill_random(x.data(), DType::kFloat32, kN, random_, Content::kTiny);
  Packed plain(kN, 64), flushing(kN, 64);
  const unsigned mode = __builtin_ia32_stmxcsr();
  ASSERT_TRUE(
      cpu::quantize_4bit(params_for(x.data(), DType::kFloat32, kN, 64, QuantType::kNF4, plain), 0,
                         plain.blocks)
          .ok());
  EXPECT_EQ(__builtin_ia32_stmxcsr() & 0xffc0, mode & 0xffc0);
  __builtin_ia32_ldmxcsr(mode | 0x8040);
  const Status status = cpu::quantize_4bit(
      params_for(x.data(), DType::kFloat32, kN, 64, QuantType::kNF4, flushing), 0, plain.blocks);
  const unsigned after = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(mode);
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(after & 0xffc0, (mode | 0x8040) & 0xffc0);
  EXPECT_TRUE(same_bytes(plain.codes, flushing.codes));
  EXPECT_TRUE(same_bytes(plain.absmax, flushing.absmax));
}
#endif

}  // namespace
}  // namespace lowbit::kernels
