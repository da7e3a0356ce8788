#include "lowbit/io/gguf.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "io/gguf_builder.h"
#include "io/temporary_folder.h"
#include "lowbit/error.h"
#include "lowbit/io/hf_config.h"
#include "lowbit/io/safetensors.h"
#include "support/golden_dir.h"

namespace lowbit::io {
namespace {

using lowbit::test::golden_dir;

const std::string kFixture = golden_dir() + "/gguf.gguf";

GgufFile parse_text(const std::string& bytes) {
  GgufBytes builder;
  builder.bytes = bytes;
  return builder.parse();
}

void expect_bad(const GgufBytes& bytes, std::initializer_list<const char*> parts) {
  expect_error<FormatError>([&] { bytes.parse(); }, parts);
  expect_error<FormatError>([&] { bytes.parse(); }, {"test.gguf", "expected", "found"});
}

TEST(Gguf, DecodesEveryEncodingToTheBit) {
  const auto file = GgufFile::open(kFixture);
  const auto expected = SafetensorsFile::open(golden_dir() + "/gguf.safetensors");
  ASSERT_EQ(expected.names().size(), 11u);
  for (const std::string& name : expected.names()) {
    const GgufTensor* tensor = file.find(name);
    ASSERT_NE(tensor, nullptr) << name;
    EXPECT_EQ(name, gguf_type_name(tensor->type));
    EXPECT_EQ(tensor->shape, (std::vector<int64_t>{3, 512}));
    EXPECT_EQ(tensor->numel, 1536);
    EXPECT_EQ(static_cast<int64_t>(tensor->nbytes),
              1536 / gguf_block_size(tensor->type) * gguf_block_bytes(tensor->type));
    std::vector<float> got(1536, std::numeric_limits<float>::quiet_NaN());
    file.dequantize(*tensor, 0, 512,
                    got.data());  // in two steps, the second from within the tensor
    file.dequantize(*tensor, 512, 1536, got.data() + 512);
    const TensorView want = expected.tensor(name);
    ASSERT_EQ(want.nbytes, got.size() * sizeof(float));
    size_t mismatches = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      uint32_t bits;
      std::memcpy(&bits, want.data + i * sizeof(float), sizeof(bits));
      mismatches += bits != std::bit_cast<uint32_t>(got[i]);
    }
    EXPECT_EQ(mismatches, 0u) << name;
    file.release(*tensor);
  }
}

TEST(Gguf, EveryHalfIsConvertedExactly) {
  GgufBytes bytes;
  bytes.header(1, 0).tensor("h", {65536}, 1, 0).data(0);
  for (uint32_t i = 0; i < 65536; ++i) bytes.put(static_cast<uint16_t>(i));
  const auto file = bytes.parse();
  std::vector<float> got(65536);
  file.dequantize(file.tensors()[0], 0, 65536, got.data());
  for (uint32_t i = 0; i < 65536; ++i) {
    const int exponent = static_cast<int>(i >> 10 & 31);
    const double fraction = (i & 1023) / 1024.0;
    const double sign = i & 0x8000 ? -1 : 1;
    if (exponent == 31) {
      EXPECT_TRUE(fraction == 0 ? std::isinf(got[i]) : std::isnan(got[i])) << i;
      EXPECT_EQ(std::signbit(got[i]), sign < 0);
      continue;
    }
    const double value = exponent == 0 ? sign * std::ldexp(fraction, -14)
                                       : sign * std::ldexp(1 + fraction, exponent - 15);
    EXPECT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(static_cast<float>(value)))
        << i;
  }
}

TEST(Gguf, ReadsMetadataOfEveryKind) {
  const auto file = GgufFile::open(kFixture);
  EXPECT_EQ(file.get_string("general.architecture"), "llama");
  EXPECT_EQ(file.get_int("kinds.uint8"), 200);
  EXPECT_EQ(file.get_int("kinds.int8"), -100);
  EXPECT_EQ(file.get_int("kinds.uint16"), 60000);
  EXPECT_EQ(file.get_int("kinds.int16"), -30000);
  EXPECT_EQ(file.get_int("kinds.uint32"), 4000000000);
  EXPECT_EQ(file.get_int("kinds.int32"), -2000000000);
  EXPECT_EQ(file.get_int("kinds.int64"), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(std::get<uint64_t>(file.metadata().at("kinds.uint64")),
            std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(file.get_float("kinds.float32"), double{0.1F});
  EXPECT_EQ(file.get_float("kinds.float64"), 0.1);
  EXPECT_EQ(file.get_float("kinds.uint8"), 200.0);
  EXPECT_TRUE(file.get_bool("kinds.bool", false));
  EXPECT_EQ(file.get_string("kinds.string"), "caf\u00e9");
  EXPECT_EQ(std::get<std::vector<bool>>(file.metadata().at("kinds.bools")),
            (std::vector<bool>{true, false}));
  EXPECT_EQ(std::get<std::vector<std::string>>(file.metadata().at("kinds.strings")),
            (std::vector<std::string>{"x", "", "yz"}));
  EXPECT_EQ(std::get<std::vector<std::string>>(file.metadata().at("tokenizer.ggml.tokens"))[4],
            "\U0001F600");
  EXPECT_EQ(std::get<std::vector<double>>(file.metadata().at("tokenizer.ggml.scores"))[2], -2.5);

  EXPECT_EQ(file.get_int("none", 7), 7);
  EXPECT_EQ(file.get_string("none", "x"), "x");
  EXPECT_FALSE(file.get_bool("none", false));
  expect_error<FormatError>([&] { file.get_int("none"); },
                            {"metadata `none`", "an integer", "no such key"});
  expect_error<FormatError>([&] { file.get_int("kinds.uint64"); }, {"63 bits"});
  expect_error<FormatError>([&] { file.get_int("kinds.string", 1); }, {"another kind"});
  expect_error<FormatError>([&] { file.get_string("kinds.bool"); }, {"a string"});
  expect_error<FormatError>([&] { file.get_float("kinds.bools"); }, {"a number"});
  expect_error<FormatError>([&] { file.get_bool("kinds.uint8", true); }, {"a boolean"});
}

TEST(Gguf, EveryPrefixOfAFileIsRefused) {
  const std::string whole = read_bytes(kFixture);
  const auto file = GgufFile::open(kFixture);
  EXPECT_THROW(parse_text(whole.substr(0, whole.size() - 200)), FormatError);
  // All of the header, then a sample of the data.
  const size_t header = whole.size() - static_cast<size_t>(file.tensors()[0].nbytes * 4);
  for (size_t size = 0; size < whole.size() - 64; size += size < header / 2 ? 1 : 97) {
    EXPECT_THROW(parse_text(whole.substr(0, size)), FormatError) << size;
  }
  std::string version2 = whole;
  version2[4] = 2;
  EXPECT_EQ(parse_text(version2).tensors().size(), 13u);
}

TEST(Gguf, RefusesBadHeaders) {
  GgufBytes good;
  good.header(1, 1).value_u32("a", 1).tensor("t", {32, 2}, 2, 0).data(36);
  EXPECT_EQ(good.parse().find("t")->shape, (std::vector<int64_t>{2, 32}));
  EXPECT_EQ(good.parse().find("u"), nullptr);
  expect_bad({}, {"the magic GGUF"});
  expect_bad({.bytes = std::string(100, 'x')}, {"byte 0", "the magic GGUF"});
  expect_bad(GgufBytes().header(0, 0, 1), {"version 2 or 3", "version 1"});
  expect_bad(GgufBytes().header(0, 0, 0x03000000), {"a big-endian file"});
  expect_bad(GgufBytes().header(1'000'000, 0), {"byte 8", "a number of tensors", "1000000"});
  expect_bad(GgufBytes().header(0, ~uint64_t{0}), {"a number of metadata values"});
  expect_bad(GgufBytes().header(0, 1).put(~uint64_t{0}).data(64),
             {"a number of characters", "18446744073709551615"});
  expect_bad(GgufBytes().header(0, 1).put_string("k").put<uint32_t>(13).data(8),
             {"a kind of value", "13"});
  expect_bad(GgufBytes().header(0, 1).put_string("k").put<uint32_t>(7).put<uint8_t>(2).data(8),
             {"a boolean", "found 2"});
  expect_bad(GgufBytes()
                 .header(0, 1)
                 .put_string("k")
                 .put<uint32_t>(9)
                 .put<uint32_t>(9)
                 .put<uint64_t>(1)
                 .data(8),
             {"an array of arrays"});
  expect_bad(GgufBytes()
                 .header(0, 1)
                 .put_string("k")
                 .put<uint32_t>(9)
                 .put<uint32_t>(10)
                 .put(uint64_t{1} << 61)
                 .data(64),
             {"a number of array elements"});
  expect_bad(GgufBytes().header(0, 2).value_u32("k", 1).value_u32("k", 1),
             {"unique metadata keys", "`k` twice"});
}

TEST(Gguf, RefusesBadTensors) {
  const auto one = [](std::initializer_list<uint64_t> extents, uint32_t type, uint64_t offset,
                      size_t size) {
    return GgufBytes().header(1, 0).tensor("t", extents, type, offset).data(size);
  };
  EXPECT_NO_THROW(one({32}, 2, 0, 18).parse());
  EXPECT_NO_THROW(one({}, 0, 0, 4).parse());
  expect_bad(one({32}, 2, 0, 17), {"tensor `t`", "within the file's 17 bytes", "18 bytes at 0"});
  expect_bad(one({33}, 2, 0, 99), {"a multiple of 32", "Q4_0", "33"});
  expect_bad(one({128}, 12, 0, 999), {"a multiple of 256", "Q4_K"});
  expect_bad(one({0}, 0, 0, 99), {"at least 1"});
  expect_bad(one({1, 1, 1, 1, 1}, 0, 0, 99), {"at most 4 dimensions", "5"});
  expect_bad(one({uint64_t{1} << 32, uint64_t{1} << 31}, 0, 0, 99), {"63 bits"});
  expect_bad(one({uint64_t{1} << 62}, 0, 0, 99), {"63 bits"});
  expect_bad(one({~uint64_t{0}}, 0, 0, 99), {"63 bits"});
  expect_bad(one({32}, 16, 0, 99), {"a type that can be read here", "16"});
  expect_bad(one({32}, 2, 1, 99), {"multiple of 32", "18 bytes at 1"});
  expect_bad(one({32}, 2, 64, 64), {"within the file's 64 bytes"});
  expect_bad(one({32}, 2, ~uint64_t{31}, 64), {"within the file's"});
  expect_bad(GgufBytes().header(2, 0).tensor("t", {32}, 0, 0).tensor("t", {32}, 0, 128).data(256),
             {"unique names"});
  expect_bad(GgufBytes().header(2, 0).tensor("t", {32}, 0, 0).tensor("u", {32}, 0, 96).data(256),
             {"tensor `u`", "at 128 or later (an overlap)"});
  for (const uint32_t alignment : {0U, 3U, 24U, 0x80000000U}) {
    expect_bad(GgufBytes().header(0, 1).value_u32("general.alignment", alignment),
               {"a power of two"});
  }
  expect_bad(GgufBytes()
                 .header(1, 1)
                 .value_u32("general.alignment", 1U << 20)
                 .tensor("t", {32}, 0, 0)
                 .data(256),
             {"the end of the file"});
  EXPECT_EQ(GgufBytes()
                .header(1, 1)
                .value_u32("general.alignment", 64)
                .tensor("t", {1}, 0, 0)
                .data(4, 64)
                .parse()
                .tensors()
                .size(),
            1u);
}

TEST(Gguf, RefusesBadRanges) {
  const auto file = GgufBytes().header(1, 0).tensor("t", {64}, 2, 0).data(36).parse();
  const GgufTensor& tensor = file.tensors()[0];
  std::vector<float> out(64);
  EXPECT_NO_THROW(file.dequantize(tensor, 32, 32, out.data()));
  for (const auto& [begin, end] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 32}, {0, 33}, {-32, 0}, {32, 0}, {0, 96}}) {
    expect_error<FormatError>(
        [&, b = begin, e = end] { file.dequantize(tensor, b, e, out.data()); },
        {"whole blocks of 32"});
  }
  expect_error<IoError>([] { GgufFile::open("/no/such/file.gguf"); }, {"/no/such/file.gguf"});
}

TEST(GgufConfig, IsReadFromMetadata) {
  const ModelConfig config = model_config_from_gguf(GgufFile::open(kFixture));
  EXPECT_EQ(config.model_type, "llama");
  EXPECT_EQ(config.architectures, std::vector<std::string>{"LlamaForCausalLM"});
  EXPECT_EQ(config.vocab_size, 5);
  EXPECT_EQ(config.hidden_size, 256);
  EXPECT_EQ(config.intermediate_size, 640);
  EXPECT_EQ(config.num_hidden_layers, 2);
  EXPECT_EQ(config.num_attention_heads, 4);
  EXPECT_EQ(config.num_key_value_heads, 2);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.max_position_embeddings, 2048);
  EXPECT_EQ(config.rms_norm_eps, 1e-5);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_FALSE(config.attention_bias);
  EXPECT_EQ(config.bos_token_id, 0);
  EXPECT_EQ(config.eos_token_ids, std::vector<int64_t>{1});
  EXPECT_FALSE(config.pad_token_id);
  const RopeConfig rope = {.type = "llama3",
                           .theta = 500000.0,
                           .factor = 32.0,
                           .low_freq_factor = 1.0,
                           .high_freq_factor = 4.0,
                           .original_max_position_embeddings = 8192};
  EXPECT_EQ(config.rope, rope);

  const ModelConfig again = parse_model_config(model_config_to_json(config), "written");
  EXPECT_EQ(again.rope, rope);
  EXPECT_EQ(again.hidden_size, 256);
  EXPECT_EQ(again.rms_norm_eps, 1e-5);
  EXPECT_EQ(again.eos_token_ids, config.eos_token_ids);
}

class BadGgufConfig : public testing::Test {
 protected:
  using Change = std::pair<const char*, uint32_t>;

  static GgufFile model(std::initializer_list<Change> changes,
                        const std::string& architecture = "llama") {
    std::map<std::string, uint32_t> numbers = {{"block_count", 1},
                                               {"context_length", 32},
                                               {"embedding_length", 8},
                                               {"feed_forward_length", 16},
                                               {"attention.head_count", 2}};
    for (const auto& [key, value] : changes) numbers[key] = value;
    std::erase_if(numbers, [](const auto& item) { return item.second == kMissing; });
    GgufBytes bytes;
    bytes.header(2, numbers.size() + 2).value_string("general.architecture", architecture);
    bytes.value_f32("llama.attention.layer_norm_rms_epsilon", 1e-6F);
    for (const auto& [key, value] : numbers) bytes.value_u32("llama." + key, value);
    bytes.tensor("token_embd.weight", {8, 4}, 0, 0)
        .tensor("rope_freqs.weight_", {2}, 0, 128)
        .data(136);
    return bytes.parse();
  }
  static void expect_bad(std::initializer_list<Change> changes,
                         std::initializer_list<const char*> parts) {
    const GgufFile file = model(changes);
    expect_error<FormatError>([&] { model_config_from_gguf(file); }, parts);
  }
  static constexpr uint32_t kMissing = 0xdeadbeef;
};

TEST_F(BadGgufConfig, NamesTheKey) {
  EXPECT_EQ(model_config_from_gguf(model({})).head_dim, 4);
  EXPECT_EQ(model_config_from_gguf(model({})).rope,
            (RopeConfig{.original_max_position_embeddings = 32}));
  expect_error<FormatError>([] { model_config_from_gguf(model({}, "phi3")); },
                            {"general.architecture", "`phi3`"});
  expect_error<FormatError>([] { model_config_from_gguf(GgufBytes().header(0, 0).parse()); },
                            {"general.architecture", "no such key"});
  expect_bad({{"embedding_length", kMissing}}, {"`llama.embedding_length`", "no such key"});
  expect_bad({{"block_count", 0}}, {"`llama.block_count`", "from 1 to"});
  expect_bad({{"block_count", 4'000'000'000}}, {"`llama.block_count`"});
  expect_bad({{"attention.head_count", 0}}, {"`llama.attention.head_count`"});
  expect_bad({{"attention.head_count", 3}}, {"a divisor of embedding_length"});
  expect_bad({{"attention.head_count_kv", 3}}, {"a divisor of num_attention_heads"});
  expect_bad({{"attention.head_count", 8}}, {"`head_dim`", "even"});
  expect_bad({{"rope.dimension_count", 2}}, {"rope.dimension_count", "the head size 4"});
  expect_bad({{"attention.key_length", 6}, {"attention.value_length", 4}}, {"key_length 6"});
  expect_bad({{"expert_count", 8}}, {"without experts"});
  expect_bad({{"rope.scaling.type", 1}}, {"rope.scaling.type", "a string"});
}

TEST_F(BadGgufConfig, RefusesOtherRotaryFactors) {
  std::string bytes = read_bytes(kFixture);
  const auto file = GgufFile::open(kFixture);
  const GgufTensor* tensor = file.find("rope_freqs.weight");
  ASSERT_NE(tensor, nullptr);
  const float other = 1.5F;
  std::memcpy(bytes.data() + bytes.size() - 64, &other, sizeof(other));
  const auto changed = parse_text(bytes);
  expect_error<FormatError>([&] { model_config_from_gguf(changed); },
                            {"rope_freqs.weight", "llama3"});
}

}  // namespace
}  // namespace lowbit::io
