// Code tables and map generators against recorded ones.
#include "lowbit/kernels/maps.h"

#include "codebook.h"
#include "golden.h"

namespace lowbit::kernels {
namespace {

using testing::Golden;
using testing::Tally;

/// Distance in units of the last place; the maps of the recorded machine hang on its linspace.
int64_t ulps(float a, float b) {
  const auto ordered = [](float x) {
    const auto bits = std::bit_cast<int32_t>(x);
    return int64_t{bits < 0 ? INT32_MIN - bits : bits};
  };
  return std::abs(ordered(a) - ordered(b));
}

std::vector<float> vector_of(const float* values, size_t n) { return {values, values + n}; }

TEST(Maps, FourbitTables) {
  const Golden golden("tables.safetensors");
  Tally tally("tables 4-bit");
  tally.compare("nf4", vector_of(codebook_4bit(QuantType::kNF4), 16), golden.get<float>("nf4"));
  tally.compare("fp4", vector_of(codebook_4bit(QuantType::kFP4), 16), golden.get<float>("fp4"));
}

TEST(Maps, Nf4ThresholdsAreMidpointsToOneUlp) {
  for (int k = 0; k < 15; ++k) {
    const double mid = (double{codebook::kNf4[k]} + codebook::kNf4[k + 1]) / 2;
    EXPECT_LE(ulps(codebook::kNf4Thresholds[k], static_cast<float>(mid)), 1) << k;
  }
}

TEST(Maps, CanonicalDynamicMaps) {
  const Golden golden("tables.safetensors");
  Tally tally("tables dynamic");
  for (const std::string cpu : {"avx2", "avx512", "native"}) {
    tally.compare("s_" + cpu, vector_of(dynamic_map(true), 256),
                  golden.get<float>("dynamic_s_" + cpu));
    tally.compare("u_" + cpu, vector_of(dynamic_map(false), 256),
                  golden.get<float>("dynamic_u_" + cpu));
  }
  // A libtorch without fused multiply-add makes others, at most 2 units off.
  for (const bool is_signed : {true, false}) {
    const auto other = golden.get<float>(is_signed ? "dynamic_s_default" : "dynamic_u_default");
    for (int i = 0; i < 256; ++i) EXPECT_LE(ulps(dynamic_map(is_signed)[i], other[i]), 2) << i;
  }
}

struct Made {
  std::vector<float> map = std::vector<float>(256, NAN);
  Status status;
};
template <typename Make, typename... Args>
std::vector<float> made(Make make, Args... args) {
  std::vector<float> map(256, NAN);
  const Status status = make(args..., map.data());
  EXPECT_TRUE(status.ok()) << status.reason;
  return map;
}

TEST(Maps, Generators) {
  const Golden golden("tables.safetensors");
  Tally tally("tables generated");
  tally.compare("dynamic", made(make_dynamic_map, true, 7, 8), vector_of(dynamic_map(true), 256));
  for (int bits = 3; bits <= 7; ++bits) {
    const std::string name = "dynamic_s_bits" + std::to_string(bits);
    if (!golden.contains(name)) continue;
    tally.compare(name, made(make_dynamic_map, true, bits - 1, bits), golden.get<float>(name));
  }
  tally.compare("linear", made(make_linear_map, true, 8, true), golden.get<float>("linear_signed"));
  tally.compare("linear_unsigned", made(make_linear_map, false, 8, true),
                golden.get<float>("linear_unsigned"));
  for (int bits = 2; bits <= 7; ++bits) {
    const std::string name = "linear_signed_" + std::to_string(bits);
    tally.compare(name, made(make_linear_map, true, bits, true), golden.get<float>(name));
  }
  for (int e = 2; e <= 5; ++e) {
    const std::string name = "fp8_e" + std::to_string(e) + "p" + std::to_string(7 - e);
    tally.compare(name, made(make_fp8_map, true, e, 7 - e, 8), golden.get<float>(name));
  }
  tally.compare("fp8u", made(make_fp8_map, false, 5, 3, 8), golden.get<float>("fp8u_e5p3"));
  tally.compare("fp4_map", made(make_fp8_map, true, 2, 1, 4), golden.get<float>("fp4_map"));
  tally.compare("normal", made(make_normal_map, 0.9677083f, true),
                golden.get<float>("normal_extra"));
  tally.compare("normal_sym", made(make_normal_map, 0.9677083f, false),
                golden.get<float>("normal_sym"));
}

TEST(Maps, EveryGeneratorHas256FiniteEntriesAndAMaximumOfOne) {
  const auto check = [](const std::vector<float>& map) {
    for (float v : map) ASSERT_TRUE(std::isfinite(v));
    EXPECT_EQ(*std::max_element(map.begin(), map.end()), 1.0f);
  };
  for (int bits = 2; bits <= 8; ++bits) {
    for (int exponent = 1; exponent < bits; ++exponent) {
      for (const bool is_signed : {true, false}) {
        const auto map = made(make_dynamic_map, is_signed, exponent, bits);
        check(map);
        EXPECT_TRUE(std::is_sorted(map.begin(), map.end()));
        check(made(make_fp8_map, is_signed, exponent, bits - exponent - (is_signed ? 1 : 0), bits));
      }
      check(made(make_linear_map, true, bits, false));
    }
  }
  for (float offset : {0.51f, 0.9f, 0.999f}) check(made(make_normal_map, offset, true));
}

TEST(Maps, BadParametersAreRefusedAndLeaveTheMapAlone) {
  float map[256];
  std::fill(map, map + 256, 42.0f);
  const auto refused = [&](const Status& status) {
    EXPECT_EQ(status.code, StatusCode::kInvalidArgument);
    EXPECT_STRNE(status.reason, "");
    for (float v : map) ASSERT_EQ(v, 42.0f);
  };
  refused(make_dynamic_map(true, 7, 9, map));
  refused(make_dynamic_map(true, 0, 8, map));
  refused(make_dynamic_map(true, 8, 8, map));
  refused(make_linear_map(true, 0, true, map));
  refused(make_linear_map(true, 9, true, map));
  refused(make_fp8_map(true, 5, 3, 8, map));
  refused(make_fp8_map(true, 0, 7, 8, map));
  refused(make_fp8_map(false, 6, 3, 9, map));
  refused(make_normal_map(0.5f, true, map));
  refused(make_normal_map(1.0f, true, map));
  refused(make_normal_map(NAN, true, map));
}

}  // namespace
}  // namespace lowbit::kernels
