// QuantState: the entries of files to the byte, every loading rule, moves and equality.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "lowbit/functional.h"
#include "support/error.h"
#include "support/golden.h"
#include "support/random.h"

namespace lowbit {
namespace {

using test::Golden;
using test::message_of;
using test::same_bytes;

using TensorDict = std::map<std::string, at::Tensor>;

std::string text_of(const at::Tensor& bytes) {
  return std::string(static_cast<const char*>(bytes.const_data_ptr()),
                     static_cast<size_t>(bytes.numel()));
}

at::Tensor bytes_of(const std::string& text) {
  at::Tensor bytes = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
  std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
  return bytes;
}

class QuantStateTest : public test::RandomTest {
 protected:
  QuantState state(bool nested, QuantType type = QuantType::kNF4) {
    return std::get<1>(quantize_4bit(normal({20, 96}, at::kBFloat16),
                                     {.compress_statistics = nested, .quant_type = type}));
  }
};

// What the reference wrote, read and written again: the same bytes.
void expect_rewritten(const TensorDict& recorded, const std::string& name) {
  const TensorDict written = QuantState::from_tensors(recorded).as_tensors();
  ASSERT_EQ(written.size(), recorded.size()) << name;
  for (const auto& [key, tensor] : recorded) {
    ASSERT_EQ(written.count(key), 1u) << name << key;
    EXPECT_TRUE(same_bytes(written.at(key), tensor)) << name << key;
  }
}

TEST(QuantStateGolden, LayersAreRewrittenToTheByte) {
  const Golden golden("modules.safetensors");
  for (const char* type : {"nf4", "fp4"}) {
    for (const int nested : {0, 1}) {
      for (const char* dtype : {"fp32", "bf16", "fp16"}) {
        const std::string prefix = c10::str("l4.", type, ".", nested, ".", dtype, ".sd.weight.");
        expect_rewritten(golden.with_prefix(prefix), prefix);
      }
    }
  }
}

TEST(QuantStateGolden, CheckpointsAreRewrittenToTheByte) {
  for (const char* directory : {"nf4_dq", "nf4_bf16storage", "fp4"}) {
    const Golden golden(c10::str("hf/", directory, "/model.safetensors"));
    int layers = 0;
    for (const auto& [key, tensor] : golden.with_prefix("")) {
      const size_t at = key.find(".quant_map");
      if (at == std::string::npos) continue;
      const std::string weight = key.substr(0, at);
      const TensorDict entries = golden.with_prefix(weight + ".");
      expect_rewritten(entries, c10::str(directory, " ", weight));
      // The weight itself decodes: it holds as many codes as the state's shape says.
      const QuantState state = QuantState::from_tensors(entries);
      EXPECT_EQ(dequantize_4bit(golden[weight], state).sizes(), at::IntArrayRef(*state.shape));
      ++layers;
    }
    EXPECT_GE(layers, 7) << directory;
  }
}

TEST(QuantStateGolden, OurQuantizationWritesTheRecordedFile) {
  const Golden golden("modules.safetensors");
  for (const char* type : {"nf4", "fp4"}) {
    for (const auto& [name, dtype] : std::vector<std::pair<std::string, at::ScalarType>>{
             {"fp32", at::kFloat}, {"bf16", at::kBFloat16}, {"fp16", at::kHalf}}) {
      const std::string prefix = c10::str("l4.", type, ".0.", name, ".sd.weight");
      const auto [packed, state] =
          quantize_4bit(golden["w"].to(dtype), {.quant_type = parse_quant_type(type)});
      // FP4 codes of 16-bit weights may lie on a tie that CUDA's reciprocal decides.
      const int64_t ties = std::string(type) == "fp4" && dtype != at::kFloat ? 16 : 0;
      EXPECT_LE(packed.ne(golden[prefix]).sum().item<int64_t>(), ties) << prefix;
      for (const auto& [key, tensor] : state.as_tensors()) {
        EXPECT_TRUE(same_bytes(tensor, golden[prefix + "." + key])) << prefix << key;
      }
    }
  }
}

TEST(QuantState, NumbersArePrintedAsPythonPrintsThem) {
  const auto offset_text = [](float offset) {
    auto [packed, state] = quantize_4bit(at::ones({64}), {.compress_statistics = true});
    state.offset = at::scalar_tensor(offset, at::kFloat);
    const std::string text = text_of(state.as_tensors().at("quant_state.bitsandbytes__fp4"));
    const std::string key = "\"nested_offset\": ";
    const size_t begin = text.find(key) + key.size();
    return text.substr(begin, text.size() - 1 - begin);
  };
  EXPECT_EQ(offset_text(0.0f), "0.0");
  EXPECT_EQ(offset_text(-0.0f), "-0.0");
  EXPECT_EQ(offset_text(1.0f), "1.0");
  EXPECT_EQ(offset_text(0.1f), "0.10000000149011612");
  EXPECT_EQ(offset_text(-2.5f), "-2.5");
  EXPECT_EQ(offset_text(0.051425933837890625f), "0.051425933837890625");
  EXPECT_EQ(offset_text(0.0001220703125f), "0.0001220703125");
  EXPECT_EQ(offset_text(3.0517578125e-05f), "3.0517578125e-05");
  EXPECT_EQ(offset_text(3.7252903e-09f), "3.725290298461914e-09");
  EXPECT_EQ(offset_text(1e16f), "1.0000000272564224e+16");
  EXPECT_EQ(offset_text(8388608.0f), "8388608.0");
  EXPECT_EQ(offset_text(9.9999e14f), "999989987770368.0");
  EXPECT_EQ(offset_text(3.4028235e38f), "3.4028234663852886e+38");
  EXPECT_EQ(offset_text(1e-45f), "1.401298464324817e-45");
  EXPECT_EQ(offset_text(INFINITY), "Infinity");
  EXPECT_EQ(offset_text(-INFINITY), "-Infinity");
  EXPECT_EQ(offset_text(NAN), "NaN");
}

TEST(QuantState, TheBlobOfAKnownLayer) {
  const auto [packed, state] =
      quantize_4bit(at::ones({4096, 4096}, at::kHalf), {.quant_type = QuantType::kNF4});
  EXPECT_EQ(text_of(state.as_tensors().at("quant_state.bitsandbytes__nf4")),
            R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [4096, 4096]})");
}

TEST_F(QuantStateTest, BothFormsRoundTrip) {
  for (const bool nested : {false, true}) {
    for (const QuantType type : {QuantType::kNF4, QuantType::kFP4}) {
      const QuantState original = state(nested, type);
      EXPECT_TRUE(QuantState::from_tensors(original.as_tensors()) == original);
      EXPECT_TRUE(QuantState::from_dict(original.as_dict(true)) == original);
      EXPECT_TRUE(QuantState::from_dict(original.as_dict(false)) == original);
      TensorDict prefixed;
      for (const auto& [key, tensor] : original.as_tensors())
        prefixed["model.layers.0.q_proj.weight." + key] = tensor;
      EXPECT_TRUE(QuantState::from_tensors(prefixed) == original);
    }
  }
  const auto [codes, blockwise] =
      quantize_blockwise(normal({1000}), {.blocksize = 64, .nested = true});
  EXPECT_TRUE(QuantState::from_dict(blockwise.as_dict(true)) == blockwise);
  EXPECT_TRUE(blockwise.as_dict(true).at("quant_type").isNone());
}

TEST_F(QuantStateTest, SpacingAndKeyOrderOfTheJsonDoNotMatter) {
  const QuantState original = state(false);
  TensorDict entries = original.as_tensors();
  entries["quant_state.bitsandbytes__nf4"] = bytes_of(
      "{\"shape\":[20,96],\n\t\"dtype\":\"bfloat16\",\"blocksize\":64,\"quant_type\":\"nf4\"}");
  EXPECT_TRUE(QuantState::from_tensors(entries) == original);
}

TEST_F(QuantStateTest, FilesGetTheirOwnCopyOfSharedTables) {
  const QuantState a = state(true), b = state(true);
  EXPECT_TRUE(a.state2->code.is_alias_of(b.state2->code));
  EXPECT_TRUE(a.code.is_alias_of(b.code));
  EXPECT_FALSE(
      a.as_tensors().at("nested_quant_map").is_alias_of(b.as_tensors().at("nested_quant_map")));
  EXPECT_FALSE(a.as_tensors().at("quant_map").is_alias_of(b.as_tensors().at("quant_map")));
}

TEST_F(QuantStateTest, EqualityMovesAndClones) {
  const QuantState a = state(true);
  EXPECT_TRUE(a == a.clone());
  EXPECT_FALSE(a.absmax.is_alias_of(a.clone().absmax));
  EXPECT_TRUE(a == a.to(at::kCPU));
  EXPECT_TRUE(a.absmax.is_alias_of(a.to(at::kCPU).absmax));
  EXPECT_EQ(a.to(at::kMeta).state2->absmax.device(), at::kMeta);
  QuantState b = a.clone();
  b.absmax.add_(1);
  EXPECT_FALSE(a == b);
  b = a.clone();
  b.shape = {96, 20};
  EXPECT_FALSE(a == b);
  b = a.clone();
  b.offset = b.offset + 1;
  EXPECT_FALSE(a == b);
  b = a.clone();
  b.dtype = at::kHalf;
  EXPECT_FALSE(a == b);
  EXPECT_FALSE(a == state(false));
  EXPECT_EQ(a.numel(), 1920);
}

TEST_F(QuantStateTest, BadEntriesAreNamed) {
  const TensorDict good = state(true).as_tensors();
  const std::string blob = "quant_state.bitsandbytes__nf4";
  const auto error = [&](const std::function<void(TensorDict&)>& change) {
    TensorDict entries = good;
    change(entries);
    return message_of([&] { QuantState::from_tensors(entries); });
  };
  const auto json_error = [&](const std::string& from, const std::string& to) {
    std::string text = text_of(good.at(blob));
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
    return error([&](TensorDict& e) { e[blob] = bytes_of(text); });
  };
  EXPECT_EQ(error([&](TensorDict& e) { e.erase(blob); }),
            "lowbit::QuantState: `quant_state` must be a packed quant_state.bitsandbytes__* or a "
            "quant_type, got "
            "neither.");
  EXPECT_EQ(error([](TensorDict& e) { e["w.extra"] = at::zeros({1}); }),
            "lowbit::QuantState: `w.extra` must be an entry of a QuantState, got an unknown name.");
  EXPECT_EQ(error([&](TensorDict& e) { e["quant_state.bitsandbytes__fp4"] = e[blob]; }),
            "lowbit::QuantState: `quant_state.bitsandbytes__nf4` must be the only packed "
            "quant_state, got also "
            "quant_state.bitsandbytes__fp4.");
  EXPECT_EQ(error([&](TensorDict& e) {
              e["quant_state.bitsandbytes__fp4"] = e[blob];
              e.erase(blob);
            }),
            "lowbit::QuantState: `quant_state.bitsandbytes__fp4` must be JSON whose quant_type is "
            "the key's, got nf4.");
  EXPECT_EQ(error([](TensorDict& e) { e["absmax"] = e["absmax"].slice(0, 0, 29); }),
            "lowbit::QuantState: `absmax` must be 30 elements long, got shape [29].");
  EXPECT_EQ(error([](TensorDict& e) { e["absmax"] = e["absmax"].to(at::kFloat); }),
            "lowbit::QuantState: `absmax` must be uint8, got float32.");
  EXPECT_EQ(error([](TensorDict& e) { e["quant_map"] = at::zeros({256}); }),
            "lowbit::QuantState: `quant_map` must be 16 elements long, got shape [256].");
  EXPECT_EQ(error([](TensorDict& e) { e["nested_quant_map"] = at::zeros({16}); }),
            "lowbit::QuantState: `nested_quant_map` must be 256 elements long, got shape [16].");
  EXPECT_EQ(error([](TensorDict& e) { e["nested_absmax"] = at::zeros({2}); }),
            "lowbit::QuantState: `nested_absmax` must be 1 elements long, got shape [2].");
  EXPECT_EQ(error([&](TensorDict& e) { e[blob] = bytes_of("{\"quant_type\": "); }),
            "lowbit::QuantState: `quant_state.bitsandbytes__nf4` must be a JSON object, got "
            "something else.");
  EXPECT_EQ(json_error("\"blocksize\": 64", "\"blocksize\": -64"),
            "lowbit::QuantState: `blocksize` must be a positive integer, got -64.");
  EXPECT_EQ(json_error("\"blocksize\": 64", "\"blocksize\": 48"),
            "lowbit::QuantState: `blocksize` must be a power of two from 32 to 4096, got 48.");
  EXPECT_EQ(json_error("bfloat16", "complex64"),
            "lowbit::QuantState: `dtype` must be the name of a dtype such as \"bfloat16\", got "
            "\"complex64\".");
  EXPECT_EQ(json_error("bfloat16", "int32"),
            "lowbit::QuantState: `dtype` must be float32, float16 or bfloat16, got int32.");
  EXPECT_EQ(json_error("[20, 96]", "[20, -96]"),
            "lowbit::QuantState: `shape` must be non-negative sizes of at most 2^63 elements, got "
            "[20, -96].");
  EXPECT_EQ(json_error("[20, 96]", "[4294967296, 4294967296]"),
            "lowbit::QuantState: `shape` must be non-negative sizes of at most 2^63 elements, got "
            "[4294967296, "
            "4294967296].");
  EXPECT_EQ(json_error("[20, 96]", "[20, 97]"),
            "lowbit::QuantState: `absmax` must be 31 elements long, got shape [30].");
  EXPECT_EQ(json_error("[20, 96]", "null"),
            "lowbit::QuantState: `shape` must be present, got nothing.");
  EXPECT_EQ(json_error("[20, 96]", "[20, \"96\"]"),
            "lowbit::QuantState: `shape` must be a list of integers, got [20,\"96\"].");
  EXPECT_EQ(json_error("\"nested_blocksize\": 256, ", ""),
            "lowbit::QuantState: `nested_blocksize` must be present, got nothing.");
  EXPECT_EQ(json_error("\"nested_offset\": ", "\"nested_offset\": 1e999, \"x\": "),
            "lowbit::QuantState: `quant_state.bitsandbytes__nf4` must be a JSON object, got "
            "something else.");
  EXPECT_EQ(json_error("\"quant_type\"", "\"surprise\": 1, \"quant_type\""),
            "lowbit::QuantState: `quant_state.bitsandbytes__nf4: surprise` must be an entry of a "
            "QuantState, got an "
            "unknown name.");
}

}  // namespace
}  // namespace lowbit
