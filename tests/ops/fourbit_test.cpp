// quantize_4bit, dequantize_4bit: golden data, worked examples, layouts, sizes, storage dtypes.
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

const std::vector<std::pair<std::string, at::ScalarType>> kDtypes = {
    {"fp32", at::kFloat}, {"bf16", at::kBFloat16}, {"fp16", at::kHalf}};

at::Tensor bytes(const std::vector<int>& values) {
  return test::tensor(values).to(at::kByte).view({-1, 1});
}

using FourbitTest = test::RandomTest;

TEST(FourbitGolden, QuantizesAndDequantizesToTheBit) {
  const Golden golden("quant4.safetensors");
  int cases = 0;
  for (const auto& [name, dtype] : kDtypes) {
    const at::Tensor x = golden["x"].to(dtype);
    for (const QuantType type : {QuantType::kNF4, QuantType::kFP4}) {
      for (int64_t blocksize = 32; blocksize <= 4096; blocksize *= 2) {
        const std::string key = c10::str("cuda.", name, ".", to_string(type), ".", blocksize, ".");
        if (!golden.contains(key + "packed")) continue;
        const auto [packed, state] = quantize_4bit(x, {.blocksize = blocksize, .quant_type = type});
        const at::Tensor recorded = golden[key + "packed"];
        // 16-bit values can hit an FP4 threshold exactly; CUDA's approximate reciprocal then
        // decides otherwise.
        const int64_t ties =
            !test::on_cuda() && type == QuantType::kFP4 && dtype != at::kFloat ? 5 : 0;
        EXPECT_LE(packed.ne(recorded).sum().item<int64_t>(), ties) << key;
        EXPECT_TRUE(same_bytes(state.absmax, golden[key + "absmax"])) << key;
        if (golden.contains(key + "deq")) {
          EXPECT_TRUE(same_bytes(dequantize_4bit(recorded, state), golden[key + "deq"])) << key;
        }
        ++cases;
      }
    }
  }
  EXPECT_GE(cases, 30);
}

TEST(FourbitGolden, NestedStatistics) {
  const Golden golden("quant4.safetensors");
  const at::Tensor x = golden["dq.x"].to(at::kBFloat16);
  const auto [packed, state] =
      quantize_4bit(x, {.compress_statistics = true, .quant_type = QuantType::kNF4});
  EXPECT_TRUE(same_bytes(packed, golden["dq.cuda.packed"]));
  // The offset is a mean, whose last bit depends on the library: what follows from it is checked
  // from the file.
  EXPECT_NEAR(state.offset.item<double>(), golden["dq.cuda.offset"].item<double>(), 1e-7);
  const QuantState recorded = QuantState::from_tensors([&] {
                                auto entries = golden.with_prefix("dq.cuda.");
                                for (const char* extra : {"packed", "offset", "absmax_deq", "deq"})
                                  entries.erase(extra);
                                return entries;
                              }())
                                  .to(test::device());
  EXPECT_TRUE(same_bytes(dequantize_absmax(recorded), golden["dq.cuda.absmax_deq"]));
  EXPECT_TRUE(same_bytes(dequantize_4bit(golden["dq.cuda.packed"], recorded).flatten(),
                         golden["dq.cuda.deq"]));
  EXPECT_TRUE(same_bytes(recorded.offset, golden["dq.cuda.offset"]));
  // With the recorded offset, the codes of the statistics are the recorded ones.
  const auto [plain_packed, plain] = quantize_4bit(x, {.quant_type = QuantType::kNF4});
  const auto [codes, second] =
      quantize_blockwise(plain.absmax - recorded.offset, {.blocksize = 256});
  EXPECT_TRUE(same_bytes(codes, golden["dq.cuda.absmax"]));
  EXPECT_TRUE(same_bytes(second.absmax, golden["dq.cuda.nested_absmax"]));
}

TEST(FourbitGolden, StorageDtypesAreViewsOfTheSameBytes) {
  const Golden golden("quant4.safetensors");
  const at::Tensor x = golden["x"].slice(0, 0, 4096);
  for (const auto& [name, dtype] :
       std::vector<std::pair<std::string, at::ScalarType>>{{"uint8", at::kByte},
                                                           {"bf16", at::kBFloat16},
                                                           {"fp16", at::kHalf},
                                                           {"fp32", at::kFloat}}) {
    const auto [packed, state] =
        quantize_4bit(x, {.quant_type = QuantType::kNF4, .quant_storage = dtype});
    EXPECT_TRUE(same_bytes(packed, golden["storage." + name])) << name;
    EXPECT_TRUE(
        same_bytes(dequantize_4bit(packed, state), dequantize_4bit(golden["storage.uint8"], state)))
        << name;
  }
}

TEST(Fourbit, WorkedExamples) {
  const auto quantize = [](const at::Tensor& x, QuantType type) {
    return std::get<0>(quantize_4bit(x, {.quant_type = type}));
  };
  const std::vector<int> ramp = {0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef};
  EXPECT_TRUE(at::equal(quantize(get_4bit_type("nf4").to(test::device()) * 2, QuantType::kNF4),
                        bytes(ramp)));
  const at::Tensor fp4 = test::tensor({0.f, .0625f, 8.f, 12.f, 4.f, 6.f, 2.f, 3.f, -0.f, -.0625f,
                                       -8.f, -12.f, -4.f, -6.f, -2.f, -3.f});
  EXPECT_TRUE(at::equal(quantize(fp4, QuantType::kFP4),
                        bytes({0x01, 0x23, 0x45, 0x67, 0x09, 0xab, 0xcd, 0xef})));
  const at::Tensor three = test::tensor({0.7f, -0.3f, 0.1f});
  EXPECT_TRUE(at::equal(quantize(three, QuantType::kNF4), bytes({0xf3, 0x97})));
  EXPECT_TRUE(at::equal(quantize(three, QuantType::kFP4), bytes({0x3d, 0x60})));
  EXPECT_TRUE(at::equal(quantize(test::tensor({0.7f}), QuantType::kNF4), bytes({0xf7})));
  EXPECT_TRUE(at::equal(quantize(test::tensor({0.7f}), QuantType::kFP4), bytes({0x30})));
}

TEST(Fourbit, FP4IsTheDefaultAndTypedFunctionsAgree) {
  const at::Tensor x = test::randn({130});
  const auto [packed, state] = quantize_4bit(x);
  EXPECT_EQ(state.quant_type, QuantType::kFP4);
  EXPECT_TRUE(at::equal(packed, std::get<0>(quantize_fp4(x))));
  EXPECT_TRUE(
      at::equal(std::get<0>(quantize_nf4(x, {.blocksize = 128})),
                std::get<0>(quantize_4bit(x, {.blocksize = 128, .quant_type = QuantType::kNF4}))));
}

TEST_F(FourbitTest, AnyShapeAndLayoutRoundTrips) {
  const std::vector<std::vector<int64_t>> shapes = {
      {},       {1},      {63},      {0},          {0, 5},          {3, 0},
      {7, 9},   {64, 64}, {2, 3, 5}, {2, 3, 4, 5}, {1, 2, 3, 4, 5}, {4097},
      {33, 130}};
  for (const auto& shape : shapes) {
    for (const auto& [name, dtype] : kDtypes) {
      for (const bool nested : {false, true}) {
        const at::Tensor x = normal(shape, dtype);
        const auto [packed, state] = quantize_4bit(
            x, {.compress_statistics = nested && x.numel() > 0, .quant_type = QuantType::kNF4});
        EXPECT_EQ(packed.numel(), (x.numel() + 1) / 2);
        const at::Tensor y = dequantize_4bit(packed, state);
        ASSERT_EQ(y.sizes(), x.sizes());
        ASSERT_EQ(y.scalar_type(), dtype);
        if (x.numel() == 0) continue;
        // Half the widest gap of NF4 is 0.152 of the block's absmax; 0.02 for nested scales and the
        // dtype.
        const double bound = x.abs().max().to(at::kFloat).item<double>() * 0.18;
        EXPECT_LE((y - x).abs().max().to(at::kFloat).item<double>(), bound)
            << name << " " << x.sizes();
      }
    }
  }
}

TEST_F(FourbitTest, StridedInputEqualsItsCopy) {
  const at::Tensor base = normal({40, 66});
  for (const at::Tensor& view : {base.t(), base.slice(1, 1, 65), base.slice(0, 0, 40, 3),
                                 base.expand({2, 40, 66}), base.flip(0).t()}) {
    const auto [a, state_a] = quantize_4bit(view, {.quant_type = QuantType::kNF4});
    const auto [b, state_b] =
        quantize_4bit(view.clone(at::MemoryFormat::Contiguous), {.quant_type = QuantType::kNF4});
    EXPECT_TRUE(same_bytes(a, b));
    EXPECT_TRUE(same_bytes(state_a.absmax, state_b.absmax));
  }
}

TEST_F(FourbitTest, WideStorageIsRoundedUpAndZeroFilled) {
  for (const at::ScalarType storage : {at::kBFloat16, at::kHalf, at::kFloat, at::kDouble}) {
    const int64_t size = static_cast<int64_t>(c10::elementSize(storage));
    for (const int64_t numel : {1, 3, 5, 7, 9, 129, 1023}) {
      const at::Tensor x = normal({numel});
      const auto [packed, state] =
          quantize_4bit(x, {.quant_type = QuantType::kNF4, .quant_storage = storage});
      const auto [plain, plain_state] = quantize_4bit(x, {.quant_type = QuantType::kNF4});
      const int64_t used = (numel + 1) / 2;
      EXPECT_EQ(packed.numel(), (used + size - 1) / size);
      const at::Tensor raw = packed.view(-1).view(at::kByte);
      EXPECT_TRUE(at::equal(raw.slice(0, 0, used), plain.view(-1)));
      EXPECT_EQ(raw.slice(0, used).sum().item<int64_t>(), 0);
      EXPECT_TRUE(same_bytes(dequantize_4bit(packed, state), dequantize_4bit(plain, plain_state)));
    }
  }
}

TEST_F(FourbitTest, PackedRowVectorGivesTheTransposedWeight) {
  const at::Tensor w = normal({6, 10});
  const auto [packed, state] = quantize_4bit(w);
  EXPECT_TRUE(at::equal(dequantize_4bit(packed.t(), state), dequantize_4bit(packed, state).t()));
  // One byte is both a row and a column: not transposed by accident.
  const auto [tiny, tiny_state] = quantize_4bit(normal({2, 1}));
  EXPECT_EQ(dequantize_4bit(tiny.t(), tiny_state).sizes(), at::IntArrayRef({2, 1}));
}

TEST_F(FourbitTest, AllZeroBlocksStayZero) {
  at::Tensor x = normal({4, 64});
  x[1].zero_();
  for (const QuantType type : {QuantType::kNF4, QuantType::kFP4}) {
    const auto [packed, state] = quantize_4bit(x, {.quant_type = type});
    EXPECT_EQ(dequantize_4bit(packed, state)[1].abs().max().item<float>(), 0.0f);
    EXPECT_EQ(state.absmax[1].item<float>(), 0.0f);
    // The code of zero, not the code that -1 * 0 would come from.
    const int code = packed.view({4, 32})[1][0].item<int>();
    EXPECT_EQ(code, type == QuantType::kNF4 ? 0x77 : 0x00);
  }
}

TEST_F(FourbitTest, OutVariantsWriteIntoTheGivenTensor) {
  const at::Tensor w = normal({48, 96});
  const auto [packed, state] = quantize_4bit(w, {.quant_type = QuantType::kNF4});
  const auto op = c10::Dispatcher::singleton()
                      .findSchemaOrThrow("lowbit::dequantize_4bit", "out")
                      .typed<void(const at::Tensor&, const at::Tensor&, int64_t, std::string_view,
                                  at::IntArrayRef, at::ScalarType, const at::Tensor&)>();
  at::Tensor dense = test::full({48, 96}, NAN);
  at::Tensor strided = test::full({96, 48}, NAN).t();
  op.call(packed, state.absmax, 64, "nf4", {48, 96}, at::kFloat, dense);
  op.call(packed, state.absmax, 64, "nf4", {48, 96}, at::kFloat, strided);
  EXPECT_TRUE(same_bytes(dense, dequantize_4bit(packed, state)));
  EXPECT_TRUE(same_bytes(strided, dense));
}

TEST_F(FourbitTest, CountsNonfiniteValues) {
  for (const auto& [name, dtype] : kDtypes) {
    at::Tensor x = normal({300, 401}, dtype);
    EXPECT_EQ(count_nonfinite(x), 0);
    x[3][4] = INFINITY;
    x[299][400] = -INFINITY;
    x[77][0] = NAN;
    EXPECT_EQ(count_nonfinite(x), 3) << name;
    EXPECT_EQ(count_nonfinite(x.t()), 3) << name;
  }
  EXPECT_EQ(count_nonfinite(test::empty({0})), 0);
}

TEST(Fourbit, NonfiniteValuesQuantizeAsTheReferenceDoes) {
  const Golden golden("quant4.safetensors");
  int cases = 0;
  for (const auto& [name, x] : golden.with_prefix("sp.")) {
    if (name.size() < 2 || name.substr(name.size() - 2) != ".x") continue;
    const std::string block = name.substr(0, name.size() - 2);
    const int64_t blocksize = block.find("sweep") == std::string::npos ? 64 : 128;
    for (const QuantType type : {QuantType::kNF4, QuantType::kFP4}) {
      const std::string key = c10::str("sp.", block, ".cuda.", to_string(type), ".");
      if (!golden.contains(key + "packed")) continue;
      const auto [packed, state] = quantize_4bit(x, {.blocksize = blocksize, .quant_type = type});
      // An all-zero block keeps the code of zero here; the reference writes code 0 (-1 for NF4).
      const bool deviates = type == QuantType::kNF4 && state.absmax.eq(0).any().item<bool>();
      EXPECT_TRUE(deviates || same_bytes(packed, golden[key + "packed"])) << key;
      EXPECT_TRUE(same_bytes(state.absmax, golden[key + "absmax"])) << key;
      ++cases;
    }
  }
  EXPECT_GE(cases, 10);
}

}  // namespace
}  // namespace lowbit
