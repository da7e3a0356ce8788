// Tokenizers of GGUF files: small ones made here, and SmolLM2's where it is at hand.
#include "lowbit/io/gguf.h"

#include "lowbit/error.h"
#include "text/golden.h"

namespace lowbit::text::test {
namespace {

using Ids = std::vector<int64_t>;

/// A GGUF file of metadata alone.
class Writer {
 public:
  void text(const std::string& key, const std::string& value) {
    entry(key, 8);
    string(value);
  }
  void flag(const std::string& key, bool value) {
    entry(key, 7);
    body_ += static_cast<char>(value);
  }
  void number(const std::string& key, uint32_t value) {
    entry(key, 4);
    raw(value);
  }
  void texts(const std::string& key, const std::vector<std::string>& values) {
    array(key, 8, values.size());
    for (const auto& value : values) string(value);
  }
  void numbers(const std::string& key, const std::vector<int32_t>& values) {
    array(key, 5, values.size());
    for (int32_t value : values) raw(value);
  }
  void numbers(const std::string& key, const std::vector<float>& values) {
    array(key, 6, values.size());
    for (float value : values) raw(value);
  }
  io::GgufFile file() const {
    auto bytes = std::make_shared<std::string>("GGUF");
    append(*bytes, uint32_t{3});
    append(*bytes, uint64_t{0});
    append(*bytes, count_);
    *bytes += body_;
    bytes->resize((bytes->size() + 31) / 32 * 32);
    return io::GgufFile::parse(bytes, reinterpret_cast<const std::byte*>(bytes->data()),
                               bytes->size(), "made.gguf");
  }

 private:
  template <class T>
  static void append(std::string& out, T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  template <class T>
  void raw(T value) {
    append(body_, value);
  }
  void string(const std::string& value) {
    raw(uint64_t{value.size()});
    body_ += value;
  }
  void entry(const std::string& key, uint32_t kind) {
    string(key);
    raw(kind);
    ++count_;
  }
  void array(const std::string& key, uint32_t kind, size_t size) {
    entry(key, 9);
    raw(kind);
    raw(uint64_t{size});
  }
  std::string body_;
  uint64_t count_ = 0;
};

struct Damage {
  std::string model = "gpt2", pre = "smollm";
  bool duplicate = false, broken_utf8 = false, short_types = false, bad_bos = false,
       no_merges = false;
};

/// The committed byte-level tokenizer as a GGUF file, whole or damaged.
io::GgufFile byte_level_gguf(const Damage& damage = {}) {
  const auto model = golden_json("byte_level.tokenizer.json")["model"];
  std::vector<std::string> tokens(model["vocab"].size());
  for (const auto& [token, id] : model["vocab"].items()) tokens[id.get<size_t>()] = token;
  std::vector<int32_t> types(tokens.size(), 1);
  std::fill(types.begin(), types.begin() + 5, 3);
  if (damage.duplicate) tokens[100] = tokens[101];
  if (damage.broken_utf8) tokens[100] = "\xFF";
  if (damage.short_types) types.pop_back();
  Writer writer;
  writer.text("tokenizer.ggml.model", damage.model);
  writer.text("tokenizer.ggml.pre", damage.pre);
  writer.texts("tokenizer.ggml.tokens", tokens);
  writer.numbers("tokenizer.ggml.token_type", types);
  if (!damage.no_merges)
    writer.texts("tokenizer.ggml.merges", model["merges"].get<std::vector<std::string>>());
  writer.number("tokenizer.ggml.bos_token_id", damage.bad_bos ? 999999 : 1);
  writer.number("tokenizer.ggml.eos_token_id", 2);
  writer.text("tokenizer.chat_template", "{{ 1 }}");
  return writer.file();
}

/// SentencePiece: scores say what is merged first.
io::GgufFile llama_gguf(bool prefix) {
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<int32_t> types = {2, 3, 3};
  std::vector<float> scores = {0, 0, 0};
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", static_cast<unsigned>(byte));
    tokens.push_back(name);
    types.push_back(6);
    scores.push_back(0);
  }
  // "abc" is made from "ab" and "c" although "bc" is there too: "ab" has the better score.
  for (const char* piece : {"ab", "bc", "abc", "\u2581abc", "\u2581a", "a", "b", "c", "\u2581"}) {
    tokens.push_back(piece);
    types.push_back(1);
    scores.push_back(-static_cast<float>(scores.size()));
  }
  tokens.push_back("<user>");
  types.push_back(4);
  scores.push_back(0);
  Writer writer;
  writer.text("tokenizer.ggml.model", "llama");
  writer.texts("tokenizer.ggml.tokens", tokens);
  writer.numbers("tokenizer.ggml.token_type", types);
  writer.numbers("tokenizer.ggml.scores", scores);
  writer.number("tokenizer.ggml.bos_token_id", 1);
  writer.number("tokenizer.ggml.eos_token_id", 2);
  if (!prefix) writer.flag("tokenizer.ggml.add_space_prefix", false);
  return writer.file();
}

TEST(Gguf, AByteLevelTokenizerGivesTheReferencesIds) {
  const Tokenizer tokenizer = Tokenizer::from_gguf(byte_level_gguf());
  const auto strings = golden_json("strings.json");
  const auto expected = golden_json("byte_level.expected.json")["strings"];
  for (size_t i = 0; i < strings.size(); ++i) {
    const Ids ids = tokenizer.encode(strings[i].get<std::string>());
    EXPECT_EQ(ids, expected[i]["ids"].get<Ids>()) << strings[i];
    EXPECT_EQ(tokenizer.decode(ids), expected[i]["decoded"].get<std::string>());
  }
  EXPECT_EQ(tokenizer.bos_id(), 1);
  EXPECT_EQ(tokenizer.eos_id(), 2);
  EXPECT_EQ(tokenizer.chat_template(), "{{ 1 }}");
  EXPECT_EQ(tokenizer.vocab_size(), golden_tokenizer("byte_level").vocab_size());
}

TEST(Gguf, WhatIsSavedReadsBackWithEqualIds) {
  for (const io::GgufFile& file : {byte_level_gguf(), llama_gguf(true), llama_gguf(false)}) {
    const Tokenizer tokenizer = Tokenizer::from_gguf(file);
    const Tokenizer again =
        Tokenizer::from_json(tokenizer.to_json(), tokenizer.config_to_json(), "saved");
    EXPECT_EQ(again.bos_id(), tokenizer.bos_id());
    EXPECT_EQ(again.eos_id(), tokenizer.eos_id());
    EXPECT_EQ(again.chat_template(), tokenizer.chat_template());
    for (const auto& text : golden_json("strings.json")) {
      EXPECT_EQ(again.encode(text.get<std::string>()), tokenizer.encode(text.get<std::string>()));
    }
  }
}

TEST(Gguf, SentencePieceMergesByScore) {
  const Tokenizer tokenizer = Tokenizer::from_gguf(llama_gguf(true));
  const auto id = [&](const char* token) { return tokenizer.token_to_id(token).value(); };
  EXPECT_EQ(tokenizer.encode("abc"), (Ids{1, id("\u2581abc")}));
  EXPECT_EQ(tokenizer.encode("abc", false), (Ids{id("\u2581abc")}));
  EXPECT_EQ(tokenizer.encode("b bc", false), (Ids{id("\u2581"), id("b"), id("\u2581"), id("bc")}));
  EXPECT_EQ(tokenizer.encode("x", false), (Ids{id("\u2581"), id("<0x78>")}));
  EXPECT_EQ(tokenizer.encode("a<user>a</s>", false),
            (Ids{id("\u2581a"), id("<user>"), id("\u2581a"), 2}));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("abc \u00E9 c", false)), "abc \u00E9 c");
  EXPECT_TRUE(tokenizer.is_special(0));
  EXPECT_FALSE(tokenizer.is_special(id("<user>")));
  const Tokenizer plain = Tokenizer::from_gguf(llama_gguf(false));
  EXPECT_EQ(plain.encode("abc", false), (Ids{id("abc")}));
  EXPECT_EQ(plain.decode(plain.encode(" abc", false)), " abc");
}

TEST(Gguf, EveryNamedSplitCompiles) {
  for (const char* pre : {"default", "gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "stablelm2",
                          "tekken", "gpt-4o", "falcon"}) {
    Damage damage;
    damage.pre = pre;
    const Tokenizer tokenizer = Tokenizer::from_gguf(byte_level_gguf(damage));
    const std::string text = "I'm 12345 years, \u4F60\u597D!\n\n  x";
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, false)), text) << pre;
  }
}

TEST(Gguf, DamagedOnesAreRefused) {
  const auto complaint = [](const Damage& damage) -> std::string {
    try {
      (void)Tokenizer::from_gguf(byte_level_gguf(damage));
    } catch (const FormatError& error) {
      return error.what();
    }
    return "no error";
  };
  const auto has = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
    EXPECT_NE(text.find("made.gguf"), std::string::npos) << text;
  };
  has(complaint({.model = "bert"}), "`bert`");
  has(complaint({.pre = "martian"}), "`martian`");
  has(complaint({.duplicate = true}), "tokenizer.ggml.tokens[101]");
  has(complaint({.broken_utf8 = true}), "tokenizer.ggml.tokens[100]");
  has(complaint({.short_types = true}), "tokenizer.ggml.token_type");
  has(complaint({.bad_bos = true}), "999999");
  has(complaint({.no_merges = true}), "tokenizer.ggml.merges");
  has(complaint({.model = "llama"}), "tokenizer.ggml.scores");
}

/// SmolLM2's GGUF file: $LOWBIT_SMOLLM2_GGUF, or a file of the model cache whose name says so.
std::filesystem::path smollm2() {
  if (const char* path = std::getenv("LOWBIT_SMOLLM2_GGUF")) return path;
  const char* home = std::getenv("HOME");
  const auto cache = std::filesystem::path(home ? home : "") / ".cache" / "lowbit" / "models";
  std::error_code error;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(cache, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("SmolLM2") && name.ends_with(".gguf")) return entry.path();
  }
  return {};
}

TEST(Gguf, SmolLM2GivesTheReferencesIds) {
  const auto path = smollm2();
  const auto strings = golden_json("strings.json");
  size_t compared = 0;
  if (!path.empty()) {
    const Tokenizer tokenizer = Tokenizer::from_gguf(io::GgufFile::open(path.string()));
    const auto expected = golden_json("smollm2.expected.json");
    ASSERT_EQ(expected.size(), strings.size());
    for (; compared < strings.size(); ++compared) {
      const auto text = strings[compared].get<std::string>();
      const Ids ids = tokenizer.encode(text);
      EXPECT_EQ(ids, expected[compared].get<Ids>()) << text;
      EXPECT_EQ(tokenizer.decode(ids), text);
    }
  }
  std::cout << "SmolLM2: " << compared << " of " << strings.size() << " strings compared"
            << (path.empty() ? " (set LOWBIT_SMOLLM2_GGUF to its GGUF file)" : "") << "\n";
}

}  // namespace
}  // namespace lowbit::text::test
