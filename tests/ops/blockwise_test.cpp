// quantize_blockwise, dequantize_blockwise, code maps.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "lowbit/functional.h"
#include "ops/dispatch.h"
#include "support/golden.h"
#include "support/random.h"
#include "support/tolerance.h"

namespace lowbit {
namespace {

using test::Golden;
using test::same_bytes;

using BlockwiseTest = test::RandomTest;

TEST(BlockwiseGolden, QuantizesAndDequantizesToTheBit) {
  const Golden golden("quant8.safetensors");
  int cases = 0;
  for (const auto& [name, dtype] : std::vector<std::pair<std::string, at::ScalarType>>{
           {"fp32", at::kFloat}, {"bf16", at::kBFloat16}, {"fp16", at::kHalf}}) {
    for (const char* map : {"s", "u"}) {
      const at::Tensor x = *map == 'u' ? golden["x"].abs().to(dtype) : golden["x"].to(dtype);
      const at::Tensor code = golden[c10::str("code.", map)];
      for (int64_t blocksize = 64; blocksize <= 4096; blocksize *= 2) {
        const std::string key = c10::str("cuda.", name, ".", map, ".", blocksize, ".");
        if (!golden.contains(key + "q")) continue;
        const auto [codes, state] = quantize_blockwise(x, {.code = code, .blocksize = blocksize});
        // 16-bit values can lie half-way between two codes; CUDA's approximate reciprocal then
        // decides otherwise.
        const at::Tensor recorded = golden[key + "q"];
        const int64_t ties = test::on_cuda() || dtype == at::kFloat ? 0 : 5;
        EXPECT_LE(codes.ne(recorded).sum().item<int64_t>(), ties) << key;
        if (golden.contains(key + "absmax")) {
          EXPECT_TRUE(same_bytes(state.absmax, golden[key + "absmax"])) << key;
        }
        if (golden.contains(key + "deq")) {
          EXPECT_TRUE(same_bytes(dequantize_blockwise(recorded, state), golden[key + "deq"]))
              << key;
        }
        ++cases;
      }
    }
  }
  EXPECT_GE(cases, 6);
}

TEST(BlockwiseGolden, MapsToTheBit) {
  const Golden golden("tables.safetensors");
  EXPECT_TRUE(same_bytes(create_dynamic_map(), golden["dynamic_s_native"]));
  EXPECT_TRUE(same_bytes(create_dynamic_map(false), golden["dynamic_u_native"]));
  EXPECT_TRUE(same_bytes(create_linear_map(), golden["linear_signed"]));
  EXPECT_TRUE(same_bytes(create_linear_map(false), golden["linear_unsigned"]));
  EXPECT_TRUE(same_bytes(create_fp8_map(), golden["fp8_e5p2"]));
  EXPECT_TRUE(same_bytes(create_fp8_map(true, 4, 3), golden["fp8_e4p3"]));
  EXPECT_TRUE(same_bytes(create_fp8_map(true, 2, 1, 4), golden["fp4_map"]));
  EXPECT_TRUE(same_bytes(create_normal_map(), golden["normal_extra"]));
  EXPECT_TRUE(same_bytes(create_normal_map(0.9677083, false), golden["normal_sym"]));
  EXPECT_TRUE(same_bytes(get_4bit_type("nf4"), golden["nf4"]));
  EXPECT_TRUE(same_bytes(get_4bit_type("fp4"), golden["fp4"]));
}

TEST(Blockwise, OtherFourBitTables) {
  const at::Tensor int4 = get_4bit_type("int4");
  EXPECT_EQ(int4[0].item<float>(), 1.0f);
  EXPECT_EQ(int4[15].item<float>(), -1.0f);
  EXPECT_EQ(int4[6].item<float>(), 1.0f / 7.0f);
  const at::Tensor af4 = get_4bit_type("af4");
  EXPECT_TRUE(at::equal(std::get<0>(af4.sort(0, /*descending=*/true)), af4));
}

TEST_F(BlockwiseTest, EveryCodeIsTheNearest) {
  const at::Tensor code = create_dynamic_map().to(test::device());
  for (const int64_t blocksize : {1, 7, 100, 256, 5000}) {
    const at::Tensor x = normal({37, 29});
    const auto [codes, state] = quantize_blockwise(x, {.blocksize = blocksize});
    ASSERT_EQ(codes.sizes(), x.sizes());
    const int64_t blocks = (x.numel() + blocksize - 1) / blocksize;
    ASSERT_EQ(state.absmax.numel(), blocks);
    const at::Tensor scale = state.absmax.unsqueeze(1)
                                 .expand({blocks, blocksize})
                                 .reshape(-1)
                                 .slice(0, 0, x.numel())
                                 .view(x.sizes());
    const at::Tensor y = (x / scale).to(at::kDouble);
    const at::Tensor distances = (y.unsqueeze(-1) - code.to(at::kDouble)).abs();
    const at::Tensor chosen = distances.gather(-1, codes.to(at::kLong).unsqueeze(-1)).squeeze(-1);
    EXPECT_LE((chosen - std::get<0>(distances.min(-1))).max().item<double>(), 1e-6) << blocksize;
    EXPECT_LE((dequantize_blockwise(codes, state) - x).abs().max().item<double>(),
              0.04 * x.abs().max().item<double>());
  }
}

TEST_F(BlockwiseTest, LayoutsRanksDtypesAndNesting) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const at::Tensor& x :
         {normal({30, 40}, dtype).t(), normal({}, dtype), normal({2, 3, 4, 5}, dtype),
          normal({0, 4}, dtype), normal({100}, dtype).slice(0, 0, 100, 3)}) {
      const auto [codes, state] = quantize_blockwise(x, {.blocksize = 64});
      const auto [copy_codes, copy_state] = quantize_blockwise(x.contiguous(), {.blocksize = 64});
      EXPECT_TRUE(same_bytes(codes, copy_codes));
      EXPECT_TRUE(same_bytes(state.absmax, copy_state.absmax));
      const at::Tensor y = dequantize_blockwise(codes, state);
      EXPECT_EQ(y.scalar_type(), dtype);
      EXPECT_EQ(y.sizes(), x.sizes());
      EXPECT_FALSE(state.shape.has_value());
      EXPECT_FALSE(state.quant_type.has_value());
    }
  }
  const at::Tensor x = normal({64, 640});
  const auto [codes, state] = quantize_blockwise(x, {.blocksize = 64, .nested = true});
  ASSERT_TRUE(state.nested());
  EXPECT_EQ(state.absmax.scalar_type(), at::kByte);
  EXPECT_EQ(state.state2->blocksize, 64);
  EXPECT_LE((dequantize_blockwise(codes, state) - x).abs().max().item<double>(),
            0.05 * x.abs().max().item<double>());
}

TEST_F(BlockwiseTest, OutVariantWritesIntoStrides) {
  const at::Tensor x = normal({12, 20});
  const auto [codes, state] = quantize_blockwise(x, {.blocksize = 32});
  const auto op = c10::Dispatcher::singleton()
                      .findSchemaOrThrow("lowbit::dequantize_blockwise", "out")
                      .typed<void(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t,
                                  at::ScalarType, const at::Tensor&)>();
  at::Tensor out = test::full({20, 12}, NAN).t();
  op.call(codes, state.absmax, state.code, 32, at::kFloat, out);
  EXPECT_TRUE(same_bytes(out, dequantize_blockwise(codes, state)));
}

}  // namespace
}  // namespace lowbit
