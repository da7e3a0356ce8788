// Damaged and hostile tokenizer files: each is refused with a message that says what and where.
#include <chrono>

#include "lowbit/error.h"
#include "text/golden.h"

namespace lowbit::text::test {
namespace {

using nlohmann::json;

/// A valid little tokenizer to damage.
json valid() {
  return json::parse(R"({
    "version": "1.0", "added_tokens": [{"id": 4, "content": "<s>", "special": true}],
    "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": ["a b"]}})");
}

std::string complaint(const std::string& text, const std::string& config = "") {
  try {
    (void)Tokenizer::from_json(text, config, "file.json");
  } catch (const FormatError& error) {
    return error.what();
  }
  return "no error";
}

/// Damage at a JSON pointer gives an error that holds all of `parts`.
void expect_refused(const std::string& pointer, const json& value,
                    const std::vector<std::string>& parts) {
  json damaged = valid();
  damaged[json::json_pointer(pointer)] = value;
  const std::string message = complaint(damaged.dump());
  EXPECT_NE(message.find("file.json"), std::string::npos) << message;
  for (const auto& part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << message << "\nlacks " << part;
}

TEST(BadInput, TheUndamagedFileIsAccepted) {
  const Tokenizer tokenizer = Tokenizer::from_json(valid().dump(), "", "file.json");
  EXPECT_EQ(tokenizer.encode("abc<s>ba"), (std::vector<int64_t>{2, 3, 4, 1, 0}));
  EXPECT_EQ(tokenizer.vocab_size(), 5);
  EXPECT_EQ(tokenizer.decode({0, 1}), "a b");  // no decoder: joined with spaces
}

TEST(BadInput, NotJson) {
  EXPECT_NE(complaint("").find("JSON"), std::string::npos);
  EXPECT_NE(complaint("{\"model\": ").find("JSON"), std::string::npos);
  EXPECT_NE(complaint("\xFF\xFE").find("JSON"), std::string::npos);
  EXPECT_NE(complaint("[]").find("an object"), std::string::npos);
  EXPECT_NE(complaint("7").find("an object"), std::string::npos);
  EXPECT_NE(complaint("{}").find("$.model"), std::string::npos);
  EXPECT_NE(complaint(std::string(100000, '[')).find("levels"), std::string::npos);
  EXPECT_NE(complaint(R"({"model": {}, "model": {}})").find("twice"), std::string::npos);
  EXPECT_NE(complaint(valid().dump(), "[1]").find("tokenizer_config"), std::string::npos);
}

TEST(BadInput, KindsThatAreNotSupportedAreNamed) {
  expect_refused("/model/type", "Unigram", {"$.model.type", "Unigram"});
  expect_refused("/model/dropout", 0.1, {"dropout"});
  expect_refused("/model/end_of_word_suffix", "</w>", {"end_of_word_suffix", "</w>"});
  expect_refused("/model/continuing_subword_prefix", "##", {"continuing_subword_prefix"});
  expect_refused("/normalizer", {{"type", "BertNormalizer"}},
                 {"$.normalizer.type", "BertNormalizer"});
  expect_refused("/pre_tokenizer", {{"type", "Whitespace"}},
                 {"$.pre_tokenizer.type", "Whitespace"});
  expect_refused("/decoder", {{"type", "WordPiece"}}, {"$.decoder.type", "WordPiece"});
  expect_refused("/post_processor", {{"type", "RobertaProcessing"}},
                 {"$.post_processor.type", "Roberta"});
  expect_refused("/pre_tokenizer",
                 json::parse(R"({"type":"Sequence","pretokenizers":[{"type":"Punctuation"}]})"),
                 {"$.pre_tokenizer.pretokenizers[0].type", "Punctuation"});
  expect_refused("/normalizer", json::parse(R"({"type":"Replace","pattern":{"Regex":"a"
}
, "content" : "$1"
})"),
                 {"content", "$1"});
}

TEST(BadInput, Vocabulary) {
  expect_refused("/model/vocab", json::array(), {"$.model.vocab", "an object"});
  expect_refused("/model/vocab/d", -1, {"`d`", "-1"});
  expect_refused("/model/vocab/d", 1.5, {"`d`", "1.5"});
  expect_refused("/model/vocab/d", "3", {"`d`"});
  expect_refused("/model/vocab/d", 3, {"`d`", "an id of its own", "`c`"});
  expect_refused("/model/vocab/d", 1 << 30, {"`d`", "1073741824"});
  expect_refused("/model/vocab/d", UINT64_MAX, {"integer"});
  json empty = valid();
  empty["model"]["vocab"] = json::object();
  empty["model"]["merges"] = empty["added_tokens"] = json::array();
  EXPECT_NE(complaint(empty.dump()).find("tokens"), std::string::npos);
}

TEST(BadInput, AHoleInTheVocabularyIsNoToken) {
  json holed = valid();
  holed["model"]["vocab"]["d"] = 9;
  const Tokenizer tokenizer = Tokenizer::from_json(holed.dump(), "", "file.json");
  EXPECT_EQ(tokenizer.vocab_size(), 10);
  EXPECT_EQ(tokenizer.token(9), "d");
  for (int64_t id : {int64_t{7}, int64_t{-1}, int64_t{10}, INT64_MAX, INT64_MIN}) {
    EXPECT_THROW((void)tokenizer.token(id), std::out_of_range) << id;
    EXPECT_THROW((void)tokenizer.decode({0, id}), std::out_of_range) << id;
    EXPECT_FALSE(tokenizer.is_special(id));
  }
}

TEST(BadInput, Merges) {
  expect_refused("/model/merges", "a b", {"$.model.merges", "an array"});
  expect_refused("/model/merges/0", "ab", {"$.model.merges[0]", "space"});
  expect_refused("/model/merges/0", "a b c", {"$.model.merges[0]", "space"});
  expect_refused("/model/merges/0", {"a"}, {"$.model.merges[0]", "pair"});
  expect_refused("/model/merges/0", {"a", 1}, {"$.model.merges[0]", "pair"});
  expect_refused("/model/merges/0", {"a", "z"}, {"$.model.merges[0]", "`z`"});
  expect_refused("/model/merges/0", {"b", "a"}, {"$.model.merges[0]", "`ba`"});
}

TEST(BadInput, AddedTokens) {
  expect_refused("/added_tokens", 5, {"$.added_tokens", "an array"});
  expect_refused("/added_tokens/0/id", -1, {"$.added_tokens[0].id", "-1"});
  expect_refused("/added_tokens/0/id", 1 << 30, {"$.added_tokens[0].id"});
  expect_refused("/added_tokens/0/id", 2, {"$.added_tokens[0]", "`ab`"});
  expect_refused("/added_tokens/0/content", "ab", {"$.added_tokens[0]", "as in the vocabulary"});
  expect_refused("/added_tokens/1", {{"id", 4}, {"content", "<t>"}},
                 {"$.added_tokens[1]", "twice"});
  expect_refused("/added_tokens/1", {{"id", 5}, {"content", "<s>"}},
                 {"$.added_tokens[1]", "twice"});
  expect_refused("/added_tokens/0/special", "yes", {"$.added_tokens[0].special", "true or false"});
}

TEST(BadInput, RegularExpressions) {
  const auto split = [](const std::string& regex) {
    return json{{"type", "Split"},
                {"pattern", {{"Regex", regex}}},
                {"behavior", "Isolated"},
                {"invert", false}};
  };
  for (const char* regex : {"(", "a{2,1}", "[b-a]", "*", "\\p{Nonsense}", "(?<=a*)b", ""}) {
    expect_refused("/pre_tokenizer", split(regex),
                   {"$.pre_tokenizer.pattern", "regular expression"});
  }
  // Constructs that mean something else to the reference's engine.
  for (const char* regex :
       {"[a[b]]", "[a&&b]", "\\h", "\\bword", "(?m:.)", "(?<n>a)", "(*UTF)a", "a{2}+", "\\K", "\\C",
        "(?1)", "[]a]", "\\Qa\\E", "(?C1)", "\\g1", "[^\\S]"}) {
    expect_refused("/pre_tokenizer", split(regex),
                   {"$.pre_tokenizer.pattern", "supported constructs"});
  }
  expect_refused("/pre_tokenizer", split(std::string(100000, 'a')), {"100000 bytes"});
  expect_refused("/pre_tokenizer/behavior", "Sideways", {"$.pre_tokenizer"});
}

TEST(BadInput, BacktrackingWithoutEndIsStopped) {
  json hostile = valid();
  hostile["pre_tokenizer"] = {{"type", "Split"},
                              {"pattern", {{"Regex", "(a+)+$|(a|a)*b"}}},
                              {"behavior", "Isolated"},
                              {"invert", false}};
  const Tokenizer tokenizer = Tokenizer::from_json(hostile.dump(), "", "file.json");
  EXPECT_EQ(tokenizer.encode("aab"), (std::vector<int64_t>{0, 2}));
  const auto start = std::chrono::steady_clock::now();
  try {
    (void)tokenizer.encode(std::string(5000, 'a') + "c");
    FAIL() << "expected FormatError";
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find("backtracking"), std::string::npos) << error.what();
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

TEST(BadInput, ReplacementsThatBlowUpAreStopped) {
  json hostile = valid();
  json steps = json::array();
  for (int i = 0; i < 60; ++i) {
    steps.push_back({{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}});
  }
  hostile["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
  const Tokenizer tokenizer = Tokenizer::from_json(hostile.dump(), "", "file.json");
  EXPECT_THROW((void)tokenizer.encode("aaaa"), FormatError);
}

TEST(BadInput, NestedSequences) {
  json deep = {{"type", "NFC"}};
  for (int i = 0; i < 12; ++i) deep = {{"type", "Sequence"}, {"normalizers", {deep}}};
  expect_refused("/normalizer", deep, {"nested"});
}

TEST(BadInput, PostProcessor) {
  const auto processor = [](const char* single, const char* specials) {
    return json::parse(std::string(R"({"type":"TemplateProcessing","pair":[],"single":)") + single +
                       R"(,"special_tokens":)" + specials + "}");
  };
  const char* text = R"([{"Sequence":{"id":"A","type_id":0}}])";
  const char* bos =
      R"([{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}])";
  expect_refused("/post_processor", processor("[]", "{}"), {"$.post_processor.single", "text"});
  expect_refused("/post_processor", processor(bos, "{}"), {"SpecialToken.id", "special_tokens"});
  expect_refused("/post_processor", processor(bos, R"({"<s>":{"ids":[77]}})"),
                 {"$.post_processor", "77"});
  expect_refused("/post_processor", processor(bos, R"({"<s>":{"ids":[-1]}})"), {"ids[0]", "-1"});
  expect_refused("/post_processor", processor(R"([{"Sequence":{"id":"B","type_id":0}}])", "{}"),
                 {"the text once"});
  EXPECT_EQ(complaint([&] {
              json j = valid();
              j["post_processor"] = processor(text, "{}");
              return j.dump();
            }()),
            "no error");
}

TEST(BadInput, AnUnknownTokenThatTheVocabularyLacks) {
  json lacking = valid();
  lacking["model"]["unk_token"] = "<unk>";
  const Tokenizer tokenizer = Tokenizer::from_json(lacking.dump(), "", "file.json");
  EXPECT_EQ(tokenizer.encode("ab"), (std::vector<int64_t>{2}));
  EXPECT_THROW((void)tokenizer.encode("x"), FormatError);
}

TEST(BadInput, Directory) {
  EXPECT_THROW((void)Tokenizer::from_pretrained("/nonexistent/model"), IoError);
}

}  // namespace
}  // namespace lowbit::text::test
