#include "text/gguf_splits.h"

#include <algorithm>
#include <string_view>
#include <vector>

#include "io/quote.h"
#include "lowbit/error.h"

namespace lowbit::text {
namespace {

using nlohmann::json;

#define LOWBIT_CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define LOWBIT_UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWBIT_LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWBIT_SPACES "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

constexpr const char* kLlama3 = LOWBIT_CONTRACTIONS
    "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" LOWBIT_SPACES;
constexpr const char* kQwen2 = LOWBIT_CONTRACTIONS
    "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" LOWBIT_SPACES;
constexpr const char* kTekken =
    "[^\\r\\n\\p{L}\\p{N}]?" LOWBIT_UPPER "*" LOWBIT_LOWER "+|[^\\r\\n\\p{L}\\p{N}]?" LOWBIT_UPPER
    "+" LOWBIT_LOWER "*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" LOWBIT_SPACES;
constexpr const char* kGpt4o =
    "[^\\r\\n\\p{L}\\p{N}]?" LOWBIT_UPPER "*" LOWBIT_LOWER "+" LOWBIT_CONTRACTIONS
    "?|[^\\r\\n\\p{L}\\p{N}]?" LOWBIT_UPPER "+" LOWBIT_LOWER "*" LOWBIT_CONTRACTIONS
    "?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" LOWBIT_SPACES;
constexpr const char* kGpt2WithoutLastSpace =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)";

#undef LOWBIT_CONTRACTIONS
#undef LOWBIT_UPPER
#undef LOWBIT_LOWER
#undef LOWBIT_SPACES

json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

json sequence(std::vector<json> steps) {
  return {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
}

json splits(std::initializer_list<const char*> patterns) {
  std::vector<json> steps;
  for (const char* pattern : patterns) {
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", pattern}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  }
  steps.push_back(byte_level(false));
  return sequence(std::move(steps));
}

}  // namespace

GgufSplit gguf_split(const std::string& kind, const std::string& file) {
  const auto is = [&](std::initializer_list<std::string_view> names) {
    return std::find(names.begin(), names.end(), kind) != names.end();
  };
  if (is({"gpt-2", "gpt2", "mpt", "olmo", "jais", "phi-2", "roberta-bpe", "trillion"})) {
    return {nullptr, byte_level(true)};
  }
  if (is({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})) {
    return {nullptr,
            sequence({{{"type", "Digits"}, {"individual_digits", true}}, byte_level(true)})};
  }
  if (is({"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"})) {
    return {nullptr, splits({kLlama3}), true, true};
  }
  if (is({"dbrx", "smaug-bpe", "chatglm-bpe", "glm4"})) return {nullptr, splits({kLlama3})};
  if (is({"qwen2", "deepseek-r1-qwen"})) return {{{"type", "NFC"}}, splits({kQwen2})};
  if (is({"stablelm2"})) return {nullptr, splits({kQwen2})};
  if (is({"tekken"})) return {nullptr, splits({kTekken}), true, true};
  if (is({"gpt-4o", "llama4"})) return {nullptr, splits({kGpt4o})};
  if (is({"falcon"})) {
    return {nullptr,
            splits({"[\\p{P}\\$\\+<=>\\^~\\|`]+", kGpt2WithoutLastSpace, "[0-9][0-9][0-9]"})};
  }
  if (is({"default"})) {
    return {nullptr, splits({"[\\p{P}\\$\\+<=>\\^~\\|]+", kGpt2WithoutLastSpace, "\\p{N}+",
                             "[0-9][0-9][0-9]"})};
  }
  throw FormatError(file, "tokenizer.ggml.pre",
                    "a supported split (default, gpt-2, smollm, starcoder, llama-bpe, qwen2, "
                    "tekken, gpt-4o, falcon, ...)",
                    io::quote(kind));
}

}  // namespace lowbit::text
