// Block-wise 8-bit quantize and dequantize: every instruction set against the scalar reference,
// over awkward maps.
#include "lowbit/kernels/blockwise.h"

#include "cpu/blockwise_isa.h"
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

using Map = std::vector<float>;

std::vector<Map> maps(std::mt19937& random) {
  std::vector<Map> all;
  all.emplace_back(dynamic_map(true), dynamic_map(true) + 256);
  all.emplace_back(dynamic_map(false), dynamic_map(false) + 256);
  Map map(256);
  EXPECT_TRUE(make_linear_map(true, 8, true, map.data()).ok());
  all.push_back(map);
  EXPECT_TRUE(make_fp8_map(true, 4, 3, 8, map.data()).ok());
  all.push_back(map);
  EXPECT_TRUE(make_fp8_map(false, 5, 3, 8, map.data()).ok());
  all.push_back(map);
  EXPECT_TRUE(make_normal_map(0.9677083f, true, map.data()).ok());  // 241 zeros
  all.push_back(map);
  EXPECT_TRUE(make_dynamic_map(true, 3, 5, map.data()).ok());
  all.push_back(map);
  const auto add_sorted = [&](auto&& make) {
    for (float& v : map) v = make();
    std::sort(map.begin(), map.end());
    all.push_back(map);
  };
  const auto normal = [&] { return random_element(random, Content::kNormal); };
  add_sorted(normal);
  add_sorted([&] { return normal() * 0.1f; });
  add_sorted([&] { return std::round(normal() * 4.0f) / 8.0f; });  // repeated values
  add_sorted([&] { return normal() * 4e-38f; });                   // subnormals among them
  add_sorted([&] { return normal() * 1e-12f; });                   // all in the buckets next to 0
  add_sorted([&] { return std::ldexp(normal(), static_cast<int>(random() % 60) - 40); });
  for (int i = 0; i < 256; ++i) {  // neighbours: no float lies between them
    map[i] = std::bit_cast<float>(0x3f000000u + static_cast<uint32_t>(i));
  }
  all.push_back(map);
  all.emplace_back(256, 0.25f);
  all.emplace_back(256, 0.0f);
  for (int i = 0; i < 256; ++i) map[i] = i < 128 ? -0.0f : 0.0f;
  all.push_back(map);
  return all;
}

class Blockwise : public testing::EachInstructionSet {
 protected:
  template <typename T, size_t kCount>
  T pick(const T (&values)[kCount]) {
    return values[below(kCount)];
  }

  void expect_reference(const void* input, DType dtype, int64_t n, int64_t blocksize,
                        const Map& map) {
    const int64_t blocks = ceil_div(n, blocksize);
    GuardedBuffer codes(n, 1, below(5)), absmax(blocks, 4), true_codes(n, 1),
        true_absmax(blocks, 4);
    const QuantizeBlockwiseParams p{
        input, dtype, n, blocksize, map.data(), codes.as<uint8_t>(), absmax.as<float>()};
    const QuantizeBlockwiseParams truth{
        input, dtype, n, blocksize, map.data(), true_codes.as<uint8_t>(), true_absmax.as<float>()};
    const int64_t cut = below(static_cast<uint32_t>(blocks + 1));
    ASSERT_TRUE(cpu::quantize_blockwise(p, cut, blocks).ok());
    ASSERT_TRUE(cpu::quantize_blockwise(p, 0, cut).ok());
    ASSERT_TRUE(ref::quantize_blockwise(truth, 0, blocks).ok());
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_EQ(int{p.codes[i]}, int{truth.codes[i]})
          << "element " << i << ": " << load_element(input, dtype, i) << " absmax "
          << p.absmax[i / blocksize];
    }
    ASSERT_TRUE(same_elements(absmax.data(), true_absmax.data(), DType::kFloat32, blocks));
    ASSERT_TRUE(codes.guards_intact() && absmax.guards_intact());
  }
};
LOWBIT_EACH_INSTRUCTION_SET(Blockwise);

constexpr int64_t kBlocksizes[] = {1, 7, 32, 64, 100, 256, 1000, 4096};

TEST_P(Blockwise, QuantizeIsTheReference) {
  const std::vector<Map> all = maps(random_);
  for (int trial = 0; trial < 300; ++trial) {
    const DType dtype = pick(kDTypes);
    const Content content = pick(kContents);
    const int64_t blocksize = pick(kBlocksizes), n = 1 + below(trial % 3 == 0 ? 200 : 6000);
    const size_t map = below(static_cast<uint32_t>(all.size()));
    SCOPED_TRACE(::testing::Message() << "n " << n << " blocksize " << blocksize << " map " << map
                                      << " content " << int(content));
    GuardedBuffer input(n, itemsize(dtype), itemsize(dtype) * below(7));
    fill_random(input.data(), dtype, n, random_, content);
    expect_reference(input.data(), dtype, n, blocksize, all[map]);
    if (HasFatalFailure()) return;
  }
}

TEST_P(Blockwise, ValuesAndMidpointsOfEveryMapAndTheirNeighbours) {
  for (const Map& map : maps(random_)) {
    const float largest = std::max(std::fabs(map.front()), std::fabs(map.back()));
    // A power of two as absmax: normalized values are exact.
    const float scale = largest > 0.0f ? std::exp2(std::ceil(std::log2(largest))) : 1.0f;
    std::vector<float> x;
    for (int i = 0; i < 255; ++i) {
      for (float v : {map[i], map[i + 1], (map[i] + map[i + 1]) * 0.5f}) {
        if (x.size() % 256 == 0) x.push_back(1.0f);
        v /= scale;
        x.insert(x.end(), {v, std::nextafter(v, 2.0f), std::nextafter(v, -2.0f)});
      }
    }
    // The same map in units of `scale`, so that absmax 1 leaves y as it stands.
    Map scaled = map;
    for (float& v : scaled) v /= scale;
    expect_reference(x.data(), DType::kFloat32, static_cast<int64_t>(x.size()), 256, scaled);
    if (HasFatalFailure()) return;
  }
}

TEST_P(Blockwise, EveryHalfAndEveryBfloat) {
  const Map map(dynamic_map(true), dynamic_map(true) + 256);
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    std::vector<uint16_t> every(65536);
    for (int i = 0; i < 65536; ++i) every[i] = static_cast<uint16_t>(i);
    expect_reference(every.data(), dtype, 65536, 256, map);
    std::shuffle(every.begin(), every.end(), random_);
    expect_reference(every.data(), dtype, 65536, 64, map);
    if (HasFatalFailure()) return;
  }
}

TEST_P(Blockwise, BlocksOfZerosHaveTheCodeOfZero) {
  const std::vector<float> zeros(100, -0.0f);
  std::vector<uint8_t> codes(100, 0xa5);
  std::vector<float> absmax(2, NAN);
  ASSERT_TRUE(cpu::quantize_blockwise({zeros.data(), DType::kFloat32, 100, 64, dynamic_map(true),
                                       codes.data(), absmax.data()},
                                      0, 2)
                  .ok());
  EXPECT_EQ(codes, std::vector<uint8_t>(100, 127));
  EXPECT_EQ(absmax, std::vector<float>(2, 0.0f));
}

TEST_P(Blockwise, ValuesOfTheMapKeepTheirIndex) {
  for (const bool is_signed : {true, false}) {
    const float* map = dynamic_map(is_signed);
    std::vector<uint8_t> codes(256, 0);
    float absmax = NAN;
    ASSERT_TRUE(
        cpu::quantize_blockwise({map, DType::kFloat32, 256, 256, map, codes.data(), &absmax}, 0, 1)
            .ok());
    EXPECT_EQ(absmax, 1.0f);
    for (int i = 0; i < 256; ++i) EXPECT_EQ(codes[i], i);
  }
}

TEST_P(Blockwise, DequantizeIsTheReference) {
  for (int trial = 0; trial < 200; ++trial) {
    const int64_t blocksize = pick(kBlocksizes), n = 1 + below(trial % 3 == 0 ? 100 : 8000);
    const int64_t blocks = ceil_div(n, blocksize);
    GuardedBuffer codes(n, 1, below(9)), absmax(blocks, 4);
    for (int64_t i = 0; i < n; ++i) codes.as<uint8_t>()[i] = static_cast<uint8_t>(random_());
    const Content content = pick(kContents);
    fill_random(absmax.data(), DType::kFloat32, blocks, random_, content);
    Map map(256);
    for (float& v : map) v = random_element(random_, content);
    DequantizeBlockwiseParams p{codes.as<uint8_t>(), absmax.as<float>(), map.data(), n, blocksize};
    p.output_dtype = pick(kDTypes);
    GuardedBuffer ours(n, itemsize(p.output_dtype), itemsize(p.output_dtype) * below(7));
    GuardedBuffer truth(n, itemsize(p.output_dtype));
    const int64_t cut = below(static_cast<uint32_t>(blocks + 1));
    p.output = ours.data();
    ASSERT_TRUE(cpu::dequantize_blockwise(p, cut, blocks).ok());
    ASSERT_TRUE(cpu::dequantize_blockwise(p, 0, cut).ok());
    p.output = truth.data();
    ASSERT_TRUE(ref::dequantize_blockwise(p, 0, blocks).ok());
    ASSERT_TRUE(same_elements(ours.data(), truth.data(), p.output_dtype, n))
        << "blocksize " << blocksize << " content " << int(content);
    ASSERT_TRUE(ours.guards_intact());
  }
}

TEST(BlockwiseMap, OneLookSufficesForTheDynamicMapsOnly) {
  EXPECT_TRUE(cpu::MapSearch(dynamic_map(true)).one_look);
  EXPECT_TRUE(cpu::MapSearch(dynamic_map(false)).one_look);
  const Map same(256, 0.25f);
  EXPECT_FALSE(cpu::MapSearch(same.data()).one_look);
  EXPECT_EQ(cpu::MapSearch(same.data()).comparisons, 255);
}

}  // namespace
}  // namespace lowbit::kernels
