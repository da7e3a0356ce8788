// Block-wise 8-bit quantization against recorded outputs of the CUDA implementation, to the bit.
#include <map>

#include "golden.h"
#include "instruction_sets.h"
#include "lowbit/kernels/blockwise.h"
#include "lowbit/kernels/maps.h"

namespace lowbit::kernels {
namespace {

using testing::cast;
using testing::dtype_named;
using testing::Golden;
using testing::split;
using testing::Tally;

struct Quantized {
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
};

Quantized quantize(const std::vector<float>& values, DType dtype, const float* map,
                   int64_t blocksize) {
  const std::vector<uint8_t> input = cast(values, dtype);
  const auto n = static_cast<int64_t>(values.size());
  const int64_t blocks = ceil_div(n, blocksize);
  Quantized result{std::vector<uint8_t>(values.size(), 0xa5),
                   std::vector<float>(static_cast<size_t>(blocks), NAN)};
  const Status status = cpu::quantize_blockwise(
      {input.data(), dtype, n, blocksize, map, result.codes.data(), result.absmax.data()}, 0,
      blocks);
  EXPECT_TRUE(status.ok()) << status.reason;
  return result;
}

class BlockwiseGolden : public testing::EachInstructionSet {
 protected:
  const Golden golden_{"quant8.safetensors"};
};
LOWBIT_EACH_INSTRUCTION_SET(BlockwiseGolden);

// Codes that hang on the last bit of the hardware's approximate reciprocal (see
// fourbit_golden_test.cpp).
const std::map<std::string, int64_t> kReciprocalTies = {
    {"fp16.s.256", 1},
    {"fp16.u.256", 1},
};

TEST_P(BlockwiseGolden, EveryDtypeMapAndBlocksize) {
  const std::vector<float> x = golden_.get<float>("x");
  std::vector<float> magnitudes;
  for (float v : x) magnitudes.push_back(std::fabs(v));
  Tally absmax_tally("quant8 absmax"), dequantized_tally("quant8 dequantized");
  Tally codes_tally("quant8 codes");
  for (const std::string& stem : golden_.stems("cuda.", ".q")) {
    const std::vector<std::string> part = split(stem);  // dtype, map, blocksize
    const DType dtype = dtype_named(part.at(0));
    const std::vector<float> map = golden_.get<float>("code." + part.at(1));
    const int64_t blocksize = std::stoll(part.at(2));
    const auto codes = golden_.get<uint8_t>("cuda." + stem + ".q");
    const Quantized ours =
        quantize(part.at(1) == "u" ? magnitudes : x, dtype, map.data(), blocksize);
    const auto known = kReciprocalTies.find(stem);
    codes_tally.compare(stem, ours.codes, codes,
                        known == kReciprocalTies.end() ? 0 : known->second);
    if (!golden_.contains("cuda." + stem + ".absmax")) continue;
    const auto absmax = golden_.get<float>("cuda." + stem + ".absmax");
    absmax_tally.compare(stem, ours.absmax, absmax);
    const auto n = static_cast<int64_t>(x.size());
    std::vector<uint8_t> output(x.size() * static_cast<size_t>(itemsize(dtype)), 0xa5);
    const Status status = cpu::dequantize_blockwise(
        {codes.data(), absmax.data(), map.data(), n, blocksize, output.data(), dtype}, 0,
        ceil_div(n, blocksize));
    EXPECT_TRUE(status.ok()) << status.reason;
    dequantized_tally.compare(stem, output, golden_.get<uint8_t>("cuda." + stem + ".deq"));
  }
}

TEST_P(BlockwiseGolden, MidpointsAndTheirNeighbours) {
  Tally tally("quant8 ties");
  for (const std::string map : {"s", "u"}) {
    const std::vector<float> code = golden_.get<float>("code." + map);
    tally.compare(
        map,
        quantize(golden_.get<float>("ties." + map + ".x"), DType::kFloat32, code.data(), 4096)
            .codes,
        golden_.get<uint8_t>("ties." + map + ".cuda.q"));
  }
}

TEST_P(BlockwiseGolden, SpecialBlocks) {
  Tally tally("quant8 special blocks");
  for (const std::string& name : golden_.stems("sp.", ".cuda.q")) {
    const Quantized ours =
        quantize(golden_.get<float>("sp." + name + ".x"), DType::kFloat32, dynamic_map(true), 64);
    tally.compare(name, ours.absmax, golden_.get<float>("sp." + name + ".cuda.absmax"));
    if (name == "zeros" || name == "negzeros" || name == "subnormal") {
      // A block of zeros gets the code of 0.0; CUDA stores code 0.
      EXPECT_EQ(ours.codes, std::vector<uint8_t>(ours.codes.size(), 127)) << name;
    } else {
      tally.compare(name, ours.codes, golden_.get<uint8_t>("sp." + name + ".cuda.q"));
    }
  }
}

TEST_P(BlockwiseGolden, WorkedExamples) {
  EXPECT_EQ(quantize({0.7f, -0.3f, 0.1f}, DType::kFloat32, dynamic_map(true), 64).codes,
            (std::vector<uint8_t>{255, 40, 194}));
}

}  // namespace
}  // namespace lowbit::kernels
