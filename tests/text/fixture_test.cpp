// Equality with Python's tokenizers on the committed strings.
#include "text/golden.h"

namespace lowbit::text::test {
namespace {

using Ids = std::vector<int64_t>;

class Fixture : public testing::TestWithParam<const char*> {};

TEST_P(Fixture, EncodesAndDecodesAsTheReference) {
  const std::string name = GetParam();
  const Tokenizer tokenizer = golden_tokenizer(name);
  const auto strings = golden_json("strings.json");
  const auto expected = golden_json(name + ".expected.json")["strings"];
  ASSERT_GE(strings.size(), 300u);
  ASSERT_EQ(strings.size(), expected.size());
  for (size_t i = 0; i < strings.size(); ++i) {
    const auto text = strings[i].get<std::string>();
    SCOPED_TRACE("string " + std::to_string(i) + ": " + text);
    const Ids ids = tokenizer.encode(text, false);
    EXPECT_EQ(ids, expected[i]["ids"].get<Ids>());
    EXPECT_EQ(tokenizer.encode(text), expected[i]["with_special"].get<Ids>());
    EXPECT_EQ(tokenizer.decode(ids), expected[i]["decoded"].get<std::string>());
    EXPECT_EQ(tokenizer.decode(ids, true), expected[i]["skipped"].get<std::string>());
  }
}

TEST_P(Fixture, DecodesAnyIdsAsTheReference) {
  const std::string name = GetParam();
  const Tokenizer tokenizer = golden_tokenizer(name);
  const auto expected = golden_json(name + ".expected.json");
  for (const auto& row : expected["decodes"]) {
    const auto ids = row["ids"].get<Ids>();
    SCOPED_TRACE(row["ids"].dump());
    EXPECT_EQ(tokenizer.decode(ids), row["decoded"].get<std::string>());
    EXPECT_EQ(tokenizer.decode(ids, true), row["skipped"].get<std::string>());
  }
}

TEST_P(Fixture, SavedTextReadsBackAsTheSameTokenizer) {
  const Tokenizer tokenizer = golden_tokenizer(GetParam());
  const Tokenizer again =
      Tokenizer::from_json(tokenizer.to_json(), tokenizer.config_to_json(), "again");
  EXPECT_EQ(again.vocab_size(), tokenizer.vocab_size());
  for (const auto& text : golden_json("strings.json")) {
    EXPECT_EQ(again.encode(text.get<std::string>()), tokenizer.encode(text.get<std::string>()));
  }
}

INSTANTIATE_TEST_SUITE_P(Tokenizers, Fixture, testing::ValuesIn(kTokenizers),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace lowbit::text::test
