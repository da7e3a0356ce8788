// tokenizer_config.json, special_tokens_map.json and chat_template.jinja.
#include "text/golden.h"

namespace lowbit::text::test {
namespace {

using nlohmann::json;
using Ids = std::vector<int64_t>;

Tokenizer with_config(const json& config) {
  return Tokenizer::from_json(golden_file("byte_level.tokenizer.json"), config.dump(),
                              "byte_level");
}

TEST(Config, NamesTheSpecialTokens) {
  const Tokenizer tokenizer =
      with_config({{"bos_token", "<|im_start|>"},
                   {"eos_token", {{"content", "<|im_end|>"}, {"lstrip", false}}},
                   {"pad_token", "<absent>"},
                   {"unk_token", nullptr},
                   {"chat_template", "{{ x }}"}});
  EXPECT_EQ(tokenizer.bos_id(), 1);
  EXPECT_EQ(tokenizer.eos_id(), 2);
  EXPECT_EQ(tokenizer.pad_id(), std::nullopt);
  EXPECT_EQ(tokenizer.unk_id(), std::nullopt);
  EXPECT_EQ(tokenizer.chat_template(), "{{ x }}");
  EXPECT_TRUE(tokenizer.is_special(1));
  EXPECT_FALSE(tokenizer.is_special(100));
  EXPECT_EQ(tokenizer.token_to_id("<|im_end|>"), 2);
  EXPECT_EQ(tokenizer.token_to_id("\u0120the"), tokenizer.encode(" the").at(0));
  EXPECT_EQ(tokenizer.token_to_id("no such token"), std::nullopt);
}

TEST(Config, WithoutOneThereAreNoSpecialTokens) {
  const Tokenizer tokenizer = golden_tokenizer("byte_level");
  EXPECT_EQ(tokenizer.bos_id(), std::nullopt);
  EXPECT_EQ(tokenizer.eos_id(), std::nullopt);
  EXPECT_EQ(tokenizer.chat_template(), "");
}

TEST(Config, SaysWhatIsAddedAroundTheText) {
  const json names = {{"bos_token", "<|im_start|>"}, {"eos_token", "<|im_end|>"}};
  const auto around = [&](bool bos, bool eos) {
    json config = names;
    config["add_bos_token"] = bos;
    config["add_eos_token"] = eos;
    return with_config(config).encode("a");
  };
  const int64_t a = with_config(names).encode("a").at(0);
  EXPECT_EQ(around(false, false), (Ids{a}));
  EXPECT_EQ(around(true, false), (Ids{1, a}));
  EXPECT_EQ(around(true, true), (Ids{1, a, 2}));
}

TEST(Config, PicksTheDefaultOfSeveralTemplates) {
  const Tokenizer tokenizer = with_config(
      {{"chat_template",
        {{{"name", "tool_use"}, {"template", "T"}}, {{"name", "default"}, {"template", "D"}}}}});
  EXPECT_EQ(tokenizer.chat_template(), "D");
}

TEST(Config, AddsTheTokensThatTokenizerJsonLacks) {
  const Tokenizer base = golden_tokenizer("byte_level");
  const int64_t next = base.vocab_size();
  const Tokenizer tokenizer = with_config(
      {{"added_tokens_decoder",
        {{std::to_string(next), {{"content", "<extra>"}, {"special", true}, {"rstrip", true}}},
         {"1", {{"content", "<|im_start|>"}, {"special", true}}}}}});
  EXPECT_EQ(tokenizer.vocab_size(), next + 1);
  EXPECT_EQ(tokenizer.encode("<extra>  a").size(), 2u);
  EXPECT_TRUE(tokenizer.is_special(next));
}

TEST(Config, ADirectoryIsReadAsAWholeAndSavedInTwoFiles) {
  const auto folder =
      std::filesystem::temp_directory_path() / ("lowbit_text_" + std::to_string(Random().seed));
  std::filesystem::create_directories(folder);
  const auto write = [&](const char* name, const std::string& text) {
    std::ofstream(folder / name, std::ios::binary) << text;
  };
  write("tokenizer.json", golden_file("byte_level.tokenizer.json"));
  write("tokenizer_config.json", R"({"eos_token": "<|im_end|>", "chat_template": "old"})");
  write("special_tokens_map.json",
        R"({"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|endoftext|>"})");
  write("chat_template.jinja", "new");
  const Tokenizer tokenizer = Tokenizer::from_pretrained(folder.string());
  std::filesystem::remove_all(folder);
  EXPECT_EQ(tokenizer.bos_id(), 1);
  EXPECT_EQ(tokenizer.eos_id(), 2);
  EXPECT_EQ(tokenizer.chat_template(), "new");
  EXPECT_EQ(tokenizer.to_json(), golden_file("byte_level.tokenizer.json"));
  const auto saved = json::parse(tokenizer.config_to_json());
  EXPECT_EQ(saved["chat_template"], "new");
  EXPECT_EQ(saved["bos_token"]["content"], "<|im_start|>");
}

}  // namespace
}  // namespace lowbit::text::test
