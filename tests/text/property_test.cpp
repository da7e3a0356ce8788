// What must hold for any text and any ids.
#include "text/golden.h"
#include "text/utf8.h"

namespace lowbit::text::test {
namespace {

/// Characters from everywhere, runs of one character, and pieces of special tokens.
std::string random_text(Random& random) {
  static const std::pair<char32_t, char32_t> kRanges[] = {
      {0x00, 0x20},     {0x20, 0x7F},       {0x20, 0x7F},       {0x80, 0x250},
      {0x300, 0x370},   {0x370, 0x700},     {0x900, 0x1200},    {0x2000, 0x2100},
      {0x3040, 0x3100}, {0x4E00, 0x9FFF},   {0xAC00, 0xD7A3},   {0xE000, 0xF900},
      {0xFF00, 0xFFF0}, {0x1F300, 0x1F700}, {0x10000, 0x110000}};
  static const char* const kParts[] = {"<|im_start|>", "<|im",   "|>", "<s>", "</s>",
                                       "<0x41>",       "\u2581", "  ", "\n"};
  std::string text;
  for (size_t n = random.below(60); n > 0; --n) {
    if (random.below(12) == 0) {
      text += kParts[random.below(std::size(kParts))];
      continue;
    }
    const auto [low, high] = kRanges[random.below(std::size(kRanges))];
    const auto c = static_cast<char32_t>(low + random.below(high - low));
    for (size_t run = random.below(8) == 0 ? random.below(70) : 1; run > 0; --run)
      append_utf8(text, c);
  }
  return text;
}

TEST(Property, ByteLevelDecodingGivesTheTextBack) {
  const Tokenizer tokenizer = golden_tokenizer("byte_level");
  Random random;
  SCOPED_TRACE("seed " + std::to_string(random.seed));
  for (int i = 0; i < 2000; ++i) {
    const std::string text = random_text(random);
    ASSERT_TRUE(is_valid_utf8(text));
    ASSERT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
}

TEST(Property, ByteFallbackDecodingGivesTheTextBack) {
  const Tokenizer tokenizer = golden_tokenizer("metaspace_like");
  Random random;
  SCOPED_TRACE("seed " + std::to_string(random.seed));
  int compared = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string text = random_text(random);
    // What the vocabulary's own notation means is not told apart from text that looks like it.
    if (text.find("\u2581") != std::string::npos || text.find("<0x") != std::string::npos) continue;
    if (text.starts_with(" ")) continue;  // the first space stands for the one put in front
    ASSERT_EQ(tokenizer.decode(tokenizer.encode(text, false)), text);
    ++compared;
  }
  EXPECT_GT(compared, 200);
}

TEST(Property, NormalizedTextComesBackNormalized) {
  const Tokenizer tokenizer = golden_tokenizer("qwen2_like");
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("cafe\u0301 \u1100\u1161")), "caf\u00E9 \uAC00");
}

TEST(Property, BrokenUtf8IsReadAsReplacementCharacters) {
  const Tokenizer tokenizer = golden_tokenizer("byte_level");
  const std::pair<std::string, std::string> cases[] = {
      {"a\xFF z", "a\uFFFD z"},
      {"\xC3", "\uFFFD"},
      {"\xE2\x82 x", "\uFFFD x"},
      {"\xF0\x9F\x98", "\uFFFD"},
      {"\xC0\x80", "\uFFFD\uFFFD"},
      {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
      {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},
      {"ok\x80", "ok\uFFFD"}};
  for (const auto& [broken, repaired] : cases) {
    EXPECT_EQ(tokenizer.encode(broken), tokenizer.encode(repaired));
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(broken)), repaired);
  }
}

class Stream : public testing::TestWithParam<const char*> {};

TEST_P(Stream, PiecesAreWholeCharactersAndMakeUpTheText) {
  const Tokenizer tokenizer = golden_tokenizer(GetParam());
  Random random;
  SCOPED_TRACE("seed " + std::to_string(random.seed));
  const auto size = static_cast<size_t>(tokenizer.vocab_size());
  for (int i = 0; i < 3000; ++i) {
    const bool skip = random.below(2) == 0;
    std::vector<int64_t> ids;
    if (i % 3 == 0) {
      ids = tokenizer.encode(random_text(random));
    } else {
      // Low ids are bytes and special tokens, where the difficulties are.
      const size_t limit = i % 3 == 1 ? std::min<size_t>(size, 300) : size;
      for (size_t n = random.below(30); n > 0; --n)
        ids.push_back(static_cast<int64_t>(random.below(limit)));
    }
    StreamDecoder stream(tokenizer, skip);
    std::string text;
    for (int64_t id : ids) {
      const std::string piece = stream.push(id);
      ASSERT_TRUE(is_valid_utf8(piece));
      text += piece;
    }
    text += stream.flush();
    ASSERT_EQ(text, tokenizer.decode(ids, skip)) << nlohmann::json(ids).dump();
    EXPECT_EQ(stream.flush(), "");
  }
}

INSTANTIATE_TEST_SUITE_P(Tokenizers, Stream, testing::ValuesIn(kTokenizers),
                         [](const auto& info) { return std::string(info.param); });

TEST(StreamDecoder, ShowsACharacterWithItsLastByteAndNotBefore) {
  const Tokenizer tokenizer = golden_tokenizer("byte_level");
  const auto ids = tokenizer.encode("x\U00010348y", false);
  ASSERT_GE(ids.size(), 4u);  // the letter is several tokens
  StreamDecoder stream(tokenizer);
  std::vector<std::string> pieces;
  for (int64_t id : ids) pieces.push_back(stream.push(id));
  std::vector<std::string> expected = {"x"};
  expected.resize(ids.size() - 2);
  expected.insert(expected.end(), {"\U00010348", "y"});
  EXPECT_EQ(pieces, expected);
}

TEST(StreamDecoder, DropsTheSpaceThatSentencePiecePutsInFront) {
  const Tokenizer tokenizer = golden_tokenizer("sentencepiece_like");
  StreamDecoder stream(tokenizer);
  std::string text;
  for (int64_t id : tokenizer.encode("the licence")) text += stream.push(id);
  EXPECT_EQ(text, "the licence");
}

TEST(StreamDecoder, AnUnknownIdChangesNothing) {
  const Tokenizer tokenizer = golden_tokenizer("byte_level");
  StreamDecoder stream(tokenizer);
  const auto ids = tokenizer.encode("\U00010348", false);
  ASSERT_GE(ids.size(), 2u);
  std::string text = stream.push(ids[0]);
  EXPECT_THROW((void)stream.push(tokenizer.vocab_size()), std::out_of_range);
  EXPECT_THROW((void)stream.push(-1), std::out_of_range);
  for (size_t i = 1; i < ids.size(); ++i) text += stream.push(ids[i]);
  EXPECT_EQ(text + stream.flush(), "\U00010348");
}

}  // namespace
}  // namespace lowbit::text::test
