#include "lowbit/io/hf_config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "io/temporary_folder.h"
#include "lowbit/error.h"
#include "lowbit/io/safetensors.h"
#include "support/golden_dir.h"

namespace lowbit::io {
namespace {

using lowbit::test::golden_dir;

using Json = nlohmann::json;

Json minimal() {
  return {{"model_type", "llama"},          {"vocab_size", 100},      {"hidden_size", 64},
          {"intermediate_size", 192},       {"num_hidden_layers", 2}, {"num_attention_heads", 4},
          {"max_position_embeddings", 2048}};
}

ModelConfig parse(const Json& json) { return parse_model_config(json.dump(), "config.json"); }

/// The minimal file with one field changed is refused, with these words.
void expect_bad(const char* key, const Json& value, std::initializer_list<const char*> parts) {
  Json json = minimal();
  json[key] = value;
  expect_error<FormatError>([&] { parse(json); }, parts);
  expect_error<FormatError>([&] { parse(json); }, {"config.json: `", "expected", "found"});
}

TEST(HfConfig, ReadsAndRewritesGoldenDirectories) {
  for (const std::string name : {"base", "nf4_dq", "nf4_bf16storage", "fp4", "int8"}) {
    const std::string directory = golden_dir() + "/hf/" + name;
    const ModelConfig config = read_model_config(directory);
    EXPECT_EQ(config.model_type, "llama");
    EXPECT_EQ(config.architectures, std::vector<std::string>{"LlamaForCausalLM"});
    EXPECT_EQ(config.vocab_size, 128);
    EXPECT_EQ(config.hidden_size, 64);
    EXPECT_EQ(config.num_key_value_heads, 2);
    EXPECT_EQ(config.head_dim, 16);
    EXPECT_TRUE(config.attention_bias);
    EXPECT_FALSE(config.tie_word_embeddings);
    EXPECT_EQ(config.dtype, "bfloat16");
    EXPECT_EQ(config.rope, (RopeConfig{.original_max_position_embeddings = 64}));
    EXPECT_EQ(config.bos_token_id, 1);
    EXPECT_EQ(config.eos_token_ids, std::vector<int64_t>{2});
    EXPECT_FALSE(config.pad_token_id);
    EXPECT_EQ(config.quantization.has_value(), name != "base");
    EXPECT_EQ(model_config_to_json(config), read_bytes(directory + "/config.json")) << name;
    const GenerationConfigJson generation = read_generation_config(directory);
    EXPECT_EQ(generation.eos_token_ids, std::vector<int64_t>{2});
    EXPECT_FALSE(generation.temperature);
  }
  const auto nf4 = read_model_config(golden_dir() + "/hf/nf4_dq").quantization;
  EXPECT_EQ(*nf4, (QuantizationConfigJson{.load_in_4bit = true,
                                          .bnb_4bit_compute_dtype = "bfloat16",
                                          .bnb_4bit_quant_type = "nf4",
                                          .bnb_4bit_use_double_quant = true}));
  EXPECT_EQ(
      read_model_config(golden_dir() + "/hf/nf4_bf16storage").quantization->bnb_4bit_quant_storage,
      "bfloat16");
  EXPECT_TRUE(read_model_config(golden_dir() + "/hf/int8").quantization->load_in_8bit);
}

TEST(HfConfig, QuantizingBaseGivesTheReferenceFile) {
  ModelConfig config = read_model_config(golden_dir() + "/hf/base");
  config.quantization = QuantizationConfigJson{.load_in_4bit = true,
                                               .bnb_4bit_compute_dtype = "bfloat16",
                                               .bnb_4bit_quant_type = "nf4",
                                               .bnb_4bit_use_double_quant = true};
  EXPECT_EQ(model_config_to_json(config), read_bytes(golden_dir() + "/hf/nf4_dq/config.json"));
  config.quantization.reset();
  EXPECT_EQ(model_config_to_json(config), read_bytes(golden_dir() + "/hf/base/config.json"));
}

TEST(HfConfig, BothSpellingsMeanTheSame) {
  Json v4 = minimal();
  v4["rope_theta"] = 500000.0;
  v4["torch_dtype"] = "float16";
  v4["rope_scaling"] = {{"rope_type", "llama3"},
                        {"factor", 8.0},
                        {"low_freq_factor", 1.0},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 8192}};
  Json v5 = minimal();
  v5["dtype"] = "float16";
  v5["rope_parameters"] = v4["rope_scaling"];
  v5["rope_parameters"]["rope_theta"] = 500000.0;
  const ModelConfig a = parse(v4), b = parse(v5);
  EXPECT_EQ(a.rope, b.rope);
  EXPECT_EQ(a.rope, (RopeConfig{.type = "llama3",
                                .theta = 500000.0,
                                .factor = 8.0,
                                .low_freq_factor = 1.0,
                                .high_freq_factor = 4.0,
                                .original_max_position_embeddings = 8192}));
  EXPECT_EQ(a.dtype, "float16");
  EXPECT_EQ(b.dtype, "float16");
  Json oldest = minimal();
  oldest["rope_scaling"] = {{"type", "linear"}, {"factor", 2}};
  EXPECT_EQ(parse(oldest).rope.type, "linear");
  EXPECT_EQ(parse(oldest).rope.factor, 2.0);

  // A change is written in the spelling of the file, and read back.
  for (ModelConfig config : {a, b}) {
    const bool new_spelling = config.json.find("rope_parameters") != std::string::npos;
    config.rope.theta = 1234.5;
    config.dtype = "float32";
    const Json written = Json::parse(model_config_to_json(config));
    EXPECT_EQ(written.contains("rope_theta"), !new_spelling);
    EXPECT_EQ(written.contains("rope_parameters"), new_spelling);
    EXPECT_EQ(written.contains("dtype"), new_spelling);
    EXPECT_EQ(written.contains("torch_dtype"), !new_spelling);
    EXPECT_EQ(parse(written).rope, config.rope);
    EXPECT_EQ(parse(written).dtype, "float32");
  }
}

TEST(HfConfig, KeepsUnknownFieldsAndWritesChangedOnes) {
  Json json = minimal();
  json["transformers_version"] = "9.9";
  json["nested"] = {{"list", {1, 2.5, nullptr}}, {"text", "caf\u00e9"}};
  ModelConfig config = parse(json);
  EXPECT_EQ(model_config_to_json(config), json.dump(2, ' ', true) + "\n");
  config.vocab_size = 101;
  config.eos_token_ids = {5, 6};
  config.sliding_window = 16;
  json["vocab_size"] = 101;
  json["eos_token_id"] = {5, 6};
  json["sliding_window"] = 16;
  EXPECT_EQ(Json::parse(model_config_to_json(config)), json);
}

TEST(HfConfig, ChangedRotaryParametersKeepTheOthers) {
  Json json = minimal();
  json["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 4.0}, {"beta_fast", 32.0}};
  ModelConfig config = parse(json);
  config.rope.factor = 2.0;
  config.rope.theta = 5e5;
  json["rope_scaling"]["factor"] = 2.0;
  json["rope_theta"] = 5e5;
  EXPECT_EQ(Json::parse(model_config_to_json(config)), json);
  // Numbers beside an unscaled type mean nothing, but they are the file's.
  json["rope_scaling"] = {{"factor", 2.0}};
  config = parse(json);
  config.rope.theta = 7.0;
  EXPECT_EQ(parse_model_config(model_config_to_json(config), "written").rope, config.rope);
}

TEST(HfConfig, DefaultsAreThoseOfTheFamily) {
  const ModelConfig llama = parse(minimal());
  EXPECT_EQ(llama.num_key_value_heads, 4);
  EXPECT_EQ(llama.head_dim, 16);
  EXPECT_EQ(llama.rms_norm_eps, 1e-6);
  EXPECT_EQ(llama.hidden_act, "silu");
  EXPECT_FALSE(llama.sliding_window);
  EXPECT_FALSE(llama.tie_word_embeddings);
  EXPECT_EQ(llama.dtype, "");
  EXPECT_FALSE(llama.quantization);
  Json json = minimal();
  json["model_type"] = "mistral";
  json["num_attention_heads"] = 32;
  EXPECT_EQ(parse(json).sliding_window, 4096);
  EXPECT_EQ(parse(json).num_key_value_heads, 8);
  json["sliding_window"] = nullptr;
  EXPECT_FALSE(parse(json).sliding_window);
  json["sliding_window"] = 128;
  json["use_sliding_window"] = false;
  EXPECT_FALSE(parse(json).sliding_window);
  json = minimal();
  json["pad_token_id"] = -1;
  json["eos_token_id"] = {7, 8};
  EXPECT_FALSE(parse(json).pad_token_id);
  EXPECT_EQ(parse(json).eos_token_ids, (std::vector<int64_t>{7, 8}));
}

TEST(HfConfig, RefusesBadNumbers) {
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads"}) {
    Json json = minimal();
    json.erase(key);
    expect_error<FormatError>([&] { parse(json); }, {key, "an integer from 1", "no such field"});
    for (const Json& bad :
         {Json(0), Json(-1), Json(1.5), Json("4"), Json(true), Json::array(), Json(1e300),
          Json(std::numeric_limits<int64_t>::max()), Json(std::numeric_limits<uint64_t>::max())}) {
      expect_bad(key, bad, {key, "an integer from 1"});
    }
  }
  expect_bad("num_attention_heads", 3, {"a divisor of hidden_size"});
  expect_bad("num_key_value_heads", 3, {"a divisor of num_attention_heads (4)"});
  expect_bad("head_dim", 15, {"`head_dim`", "even"});
  expect_bad("head_dim", 0, {"`head_dim`", "from 1"});
  expect_bad("rms_norm_eps", -1e-6, {"`rms_norm_eps`", "from 0"});
  expect_bad("rms_norm_eps", "tiny", {"a number", "`tiny`"});
  expect_bad("tie_word_embeddings", 1, {"true or false"});
  expect_bad("rope_theta", 0, {"`rope_theta`"});
  expect_bad("sliding_window", 0, {"`sliding_window`"});
  expect_bad("eos_token_id", {1, "x"}, {"`eos_token_id`"});
  expect_bad("architectures", "LlamaForCausalLM", {"a list of strings"});
  expect_bad("model_type", nullptr, {"`model_type`"});
}

TEST(HfConfig, RefusesBadRotaryParameters) {
  expect_bad("rope_scaling", "linear", {"`rope_scaling`", "an object"});
  expect_bad("rope_scaling", {{"type", "linear"}, {"factor", 0}}, {"`rope_scaling.factor`"});
  expect_bad("rope_parameters", {{"rope_theta", -1}}, {"`rope_parameters.rope_theta`"});
  expect_bad("rope_parameters", {{"rope_type", "llama3"}, {"factor", 8.0}},
             {"`rope_parameters.low_freq_factor`", "llama3 needs it"});
  expect_bad("rope_scaling",
             {{"rope_type", "llama3"},
              {"factor", 8.0},
              {"low_freq_factor", 4.0},
              {"high_freq_factor", 4.0},
              {"original_max_position_embeddings", 8192}},
             {"less than high_freq_factor"});
  expect_bad("rope_parameters", {{"full_attention", {{"rope_theta", 1e4}}}}, {"for all layers"});
  expect_bad("partial_rotary_factor", 0.5, {"whole heads"});
  expect_bad("rope_parameters", {{"partial_rotary_factor", 0.5}},
             {"`rope_parameters.partial_rotary_factor`"});
}

TEST(HfConfig, QuantizationConfig) {
  const auto with = [](const Json& quantization) {
    Json json = minimal();
    json["quantization_config"] = quantization;
    return parse(json).quantization;
  };
  EXPECT_FALSE(with(nullptr));
  EXPECT_EQ(*with({{"load_in_4bit", true}}), QuantizationConfigJson{.load_in_4bit = true});
  EXPECT_EQ(
      with({{"load_in_8bit", true}, {"llm_int8_threshold", 0}, {"unknown", 1}})->llm_int8_threshold,
      0.0);
  const Json skip = {{"load_in_8bit", true}, {"llm_int8_skip_modules", {"lm_head"}}};
  EXPECT_EQ(with(skip)->llm_int8_skip_modules, std::vector<std::string>{"lm_head"});
  ModelConfig config = parse(minimal());
  config.quantization = QuantizationConfigJson{.load_in_8bit = true,
                                               .llm_int8_skip_modules = std::vector<std::string>{}};
  const Json written = Json::parse(model_config_to_json(config))["quantization_config"];
  EXPECT_EQ(written.size(), 13u);
  EXPECT_EQ(written["llm_int8_skip_modules"], Json::array());
  EXPECT_EQ(written["_load_in_8bit"], true);
  EXPECT_EQ(*with(written), *config.quantization);

  const char* key = "quantization_config";
  expect_bad(key, {{"quant_method", "gptq"}},
             {"`quantization_config.quant_method`", "bitsandbytes", "`gptq`"});
  expect_bad(key, {{"quant_method", "bitsandbytes"}}, {"exactly one", "neither"});
  expect_bad(key, {{"load_in_4bit", true}, {"load_in_8bit", true}}, {"exactly one", "both"});
  expect_bad(key, {{"load_in_4bit", "yes"}}, {"true or false"});
  expect_bad(key, {{"load_in_4bit", true}, {"bnb_4bit_quant_type", "nf5"}},
             {"bnb_4bit_quant_type", "fp4 nf4", "`nf5`"});
  expect_bad(key, {{"load_in_4bit", true}, {"bnb_4bit_quant_storage", "int4"}},
             {"bnb_4bit_quant_storage"});
  expect_bad(key, {{"load_in_4bit", true}, {"bnb_4bit_compute_dtype", "int8"}},
             {"bnb_4bit_compute_dtype"});
  expect_bad(key, {{"load_in_8bit", true}, {"llm_int8_threshold", -1}}, {"llm_int8_threshold"});
  expect_bad(key, {{"load_in_8bit", true}, {"llm_int8_skip_modules", "lm_head"}},
             {"a list of strings"});
  expect_bad(key, 4, {"`quantization_config`", "an object"});
}

TEST(HfConfig, RefusesBadText) {
  const auto bad = [](const std::string& text, std::initializer_list<const char*> parts) {
    expect_error<FormatError>([&] { parse_model_config(text, "config.json"); }, parts);
  };
  bad("", {"config.json", "valid JSON", "the end"});
  bad("[1]", {"an object", "an array"});
  bad("{\"a\":1,\"a\":2}", {"unique keys", "`a` twice"});
  bad("{\"x\":{\"a\":1,\"a\":2}}", {"`x`", "`a` twice"});
  bad("{\"a\":1} trailing", {"valid JSON", "byte"});
  bad("{\"a\":" + std::string(1'000'000, '['), {"at most 64 levels"});
  bad("{\"a\":" + std::string(63, '[') + std::string(63, ']') + "}", {"model_type"});
  bad("\xff\xfe{", {"valid JSON"});
}

TEST(HfConfig, FilesThatAreMissingOrTooLarge) {
  TemporaryFolder folder;
  expect_error<IoError>([&] { read_model_config(folder.path()); },
                        {"/config.json", "No such file"});
  EXPECT_TRUE(read_generation_config(folder.path()).eos_token_ids.empty());
  write_text_file(folder / "text", "12345");
  EXPECT_EQ(read_text_file(folder / "text", 5), "12345");
  expect_error<FormatError>([&] { read_text_file(folder / "text", 4); }, {"at most 4 bytes", "5"});
  write_text_file(folder / "text", "");
  EXPECT_EQ(read_text_file(folder / "text"), "");
}

TEST(GenerationConfig, ReadsAndChecks) {
  const auto config = parse_generation_config(
      R"({"temperature":0.7,"top_p":0.9,"top_k":50,"min_p":null,"repetition_penalty":1.1,"do_sample":true,"eos_token_id":[1,2]})",
      "generation_config.json");
  EXPECT_EQ(config.temperature, 0.7);
  EXPECT_EQ(config.top_p, 0.9);
  EXPECT_EQ(config.top_k, 50);
  EXPECT_FALSE(config.min_p);
  EXPECT_EQ(config.repetition_penalty, 1.1);
  EXPECT_EQ(config.do_sample, true);
  EXPECT_EQ(config.eos_token_ids, (std::vector<int64_t>{1, 2}));
  for (const char* bad :
       {R"({"temperature":-1})", R"({"top_p":1.5})", R"({"top_k":-1})", R"({"min_p":"x"})",
        R"({"repetition_penalty":0})", R"({"do_sample":0})", R"({"max_new_tokens":1e3})"}) {
    expect_error<FormatError>([&] { parse_generation_config(bad, "generation_config.json"); },
                              {"generation_config.json: `"});
  }
}

}  // namespace
}  // namespace lowbit::io
