// The tokenizer of a GGUF file, written as tokenizer.json: one reader serves both, and saving needs
// no other path.
#include <algorithm>
#include <unordered_set>

#include "lowbit/io/gguf.h"
#include "text/gguf_splits.h"
#include "text/tokenizer_impl.h"
#include "text/utf8.h"

namespace lowbit::text {
namespace {

using nlohmann::json;

// Kinds of tokens in tokenizer.ggml.token_type.
constexpr int64_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4;

const io::GgufValue* find(const io::GgufFile& file, const std::string& key) {
  const auto it = file.metadata().find(key);
  return it == file.metadata().end() ? nullptr : &it->second;
}

/// The numbers of an array of any width and sign; empty when the key is missing.
template <class T>
std::vector<T> numbers(const io::GgufFile& file, const std::string& key, size_t count) {
  std::vector<T> result;
  const io::GgufValue* value = find(file, key);
  if (!value) return result;
  const auto copy = [&](const auto& list) { result.assign(list.begin(), list.end()); };
  if (const auto* list = std::get_if<std::vector<int64_t>>(value)) copy(*list);
  if (const auto* list = std::get_if<std::vector<uint64_t>>(value)) copy(*list);
  if (const auto* list = std::get_if<std::vector<double>>(value)) copy(*list);
  if (result.size() != count) {
    throw FormatError(file.path(), key, std::to_string(count) + " numbers, one a token",
                      std::to_string(result.size()));
  }
  return result;
}

std::vector<std::string> strings(const io::GgufFile& file, const std::string& key) {
  const io::GgufValue* value = find(file, key);
  const auto* list = value ? std::get_if<std::vector<std::string>>(value) : nullptr;
  if (!list)
    throw FormatError(file.path(), key, "an array of strings", value ? "another kind" : "nothing");
  for (size_t i = 0; i < list->size(); ++i) {
    if (!is_valid_utf8((*list)[i])) {
      throw FormatError(file.path(), key + "[" + std::to_string(i) + "]", "UTF-8",
                        quote((*list)[i]));
    }
  }
  return *list;
}

std::vector<std::string> read_tokens(const io::GgufFile& file) {
  const std::string key = "tokenizer.ggml.tokens";
  auto tokens = strings(file, key);
  std::unordered_set<std::string_view> seen;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (!seen.insert(tokens[i]).second) {
      throw FormatError(file.path(), key + "[" + std::to_string(i) + "]", "every token once",
                        quote(tokens[i]) + " again");
    }
  }
  return tokens;
}

/// The text of the token whose id is under `key`; none when the key is missing.
std::optional<std::string> token_of(const io::GgufFile& file,
                                    const std::vector<std::string>& tokens,
                                    const std::string& key) {
  if (!find(file, key)) return std::nullopt;
  const int64_t id = file.get_int(key);
  if (id < 0 || id >= static_cast<int64_t>(tokens.size())) {
    throw FormatError(file.path(), key, "an id below " + std::to_string(tokens.size()),
                      std::to_string(id));
  }
  return tokens[id];
}

bool is_llama(const io::GgufFile& file) {
  const std::string model = file.get_string("tokenizer.ggml.model");
  if (model != "llama" && model != "gpt2") {
    throw FormatError(file.path(), "tokenizer.ggml.model", "a supported tokenizer (gpt2, llama)",
                      quote(model));
  }
  return model == "llama";
}

GgufSplit split_of(const io::GgufFile& file) {
  return is_llama(file) ? GgufSplit{}
                        : gguf_split(file.get_string("tokenizer.ggml.pre", "default"), file.path());
}

/// SentencePiece merges the adjacent pair whose union has the best score: as a list of pairs, best
/// first. Pairs of one token, and of tokens of one score, are ordered as the ecosystem's converters
/// do.
std::vector<std::string> merges_of_scores(const std::vector<std::string>& tokens,
                                          const std::vector<double>& scores,
                                          const std::vector<int64_t>& types) {
  struct Pair {
    double score;
    size_t left_length, right_length;  // in characters
    std::string text;
  };
  std::unordered_map<std::string_view, size_t> ids;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (types[i] == kNormal) ids.emplace(tokens[i], i);
  }
  std::vector<Pair> pairs;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (types[i] != kNormal) continue;
    const std::string_view token = tokens[i];
    size_t length = 0;
    for (size_t at = 0; at < token.size(); at += utf8_length(token[at])) ++length;
    std::vector<std::pair<std::pair<size_t, size_t>, Pair>> local;
    size_t characters = 0;
    for (size_t at = 0; at < token.size(); at += utf8_length(token[at]), ++characters) {
      if (at == 0) continue;
      const auto left = ids.find(token.substr(0, at)), right = ids.find(token.substr(at));
      if (left == ids.end() || right == ids.end()) continue;
      std::string text(token.substr(0, at));
      text.append(" ").append(token.substr(at));
      local.push_back({{left->second, right->second},
                       {scores[i], characters, length - characters, std::move(text)}});
    }
    std::sort(local.begin(), local.end(),
              [](const auto& a, const auto& b) { return a.first < b.first; });
    for (auto& [order, pair] : local) pairs.push_back(std::move(pair));
  }
  std::stable_sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) {
    return std::tie(a.score, a.left_length, a.right_length) >
           std::tie(b.score, b.left_length, b.right_length);
  });
  std::vector<std::string> merges;
  merges.reserve(pairs.size());
  for (Pair& pair : pairs) merges.push_back(std::move(pair.text));
  return merges;
}

json replace(const char* from, const char* to) {
  return {{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
}

json template_of(const std::vector<std::string>& tokens, const std::optional<std::string>& bos,
                 const std::optional<std::string>& eos) {
  const auto id_of = [&](const std::string& token) {
    return std::find(tokens.begin(), tokens.end(), token) - tokens.begin();
  };
  json specials = json::object(), single = json::array(), pair = json::array();
  for (const auto& token : {bos, eos}) {
    if (token) specials[*token] = {{"id", *token}, {"ids", {id_of(*token)}}, {"tokens", {*token}}};
  }
  const auto special = [](const std::string& token, int type) {
    return json{{"SpecialToken", {{"id", token}, {"type_id", type}}}};
  };
  for (int type = 0; type < 2; ++type) {
    const json text = {{"Sequence", {{"id", type == 0 ? "A" : "B"}, {"type_id", type}}}};
    json part = json::array();
    if (bos) part.push_back(special(*bos, type));
    part.push_back(text);
    if (eos) part.push_back(special(*eos, type));
    if (type == 0) single = part;
    pair.insert(pair.end(), part.begin(), part.end());
  }
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", pair},
          {"special_tokens", specials}};
}

/// The parts of a SentencePiece tokenizer: spaces are written as U+2581, one may be put in front.
void add_llama(const io::GgufFile& file, json& out) {
  const bool prefix = file.get_bool("tokenizer.ggml.add_space_prefix", true);
  json normalizers = json::array(), decoders = json::array();
  if (prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", "\u2581"}});
  normalizers.push_back(replace(" ", "\u2581"));
  decoders.push_back(replace("\u2581", " "));
  decoders.push_back({{"type", "ByteFallback"}});
  decoders.push_back({{"type", "Fuse"}});
  if (prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  out["normalizer"] = {{"type", "Sequence"}, {"normalizers", normalizers}};
  out["decoder"] = {{"type", "Sequence"}, {"decoders", decoders}};
}

bool adds(const io::GgufFile& file, const char* key, bool fallback) {
  return file.get_bool(key, fallback);
}

nlohmann::json tokenizer_from_gguf(const io::GgufFile& file) {
  const bool llama = is_llama(file);
  const GgufSplit split = split_of(file);
  const auto tokens = read_tokens(file);
  auto types = numbers<int64_t>(file, "tokenizer.ggml.token_type", tokens.size());
  if (types.empty()) types.assign(tokens.size(), kNormal);

  json vocabulary = json::object(), added = json::array();
  for (size_t id = 0; id < tokens.size(); ++id) {
    vocabulary[tokens[id]] = id;
    if (types[id] != kControl && types[id] != kUnknown && types[id] != kUserDefined) continue;
    if (tokens[id].empty()) continue;
    added.push_back({{"id", id},
                     {"content", tokens[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", types[id] != kUserDefined}});
  }
  auto unk = token_of(file, tokens, "tokenizer.ggml.unknown_token_id");
  const auto unknown = std::find(types.begin(), types.end(), kUnknown);
  if (!unk && llama && unknown != types.end()) unk = tokens[unknown - types.begin()];

  json out = {{"version", "1.0"},
              {"truncation", nullptr},
              {"padding", nullptr},
              {"added_tokens", added},
              {"normalizer", split.normalizer},
              {"pre_tokenizer", split.pre_tokenizer}};
  if (llama) {
    add_llama(file, out);
  } else {
    out["decoder"] = {{"type", "ByteLevel"},
                      {"add_prefix_space", true},
                      {"trim_offsets", true},
                      {"use_regex", true}};
  }
  std::vector<std::string> merges;
  if (llama) {
    const auto scores = numbers<double>(file, "tokenizer.ggml.scores", tokens.size());
    if (scores.size() != tokens.size()) {
      throw FormatError(file.path(), "tokenizer.ggml.scores", "a score for every token", "nothing");
    }
    merges = merges_of_scores(tokens, scores, types);
  } else {
    merges = strings(file, "tokenizer.ggml.merges");
  }
  out["model"] = {{"type", "BPE"},
                  {"dropout", nullptr},
                  {"unk_token", unk && llama ? json(*unk) : json(nullptr)},
                  {"continuing_subword_prefix", nullptr},
                  {"end_of_word_suffix", nullptr},
                  {"fuse_unk", llama},
                  {"byte_fallback", llama},
                  {"ignore_merges", split.ignore_merges},
                  {"vocab", std::move(vocabulary)},
                  {"merges", std::move(merges)}};

  const bool add_bos = adds(file, "tokenizer.ggml.add_bos_token", llama || split.add_bos);
  const bool add_eos = adds(file, "tokenizer.ggml.add_eos_token", false);
  const auto bos = token_of(file, tokens, "tokenizer.ggml.bos_token_id");
  const auto eos = token_of(file, tokens, "tokenizer.ggml.eos_token_id");
  if ((add_bos && !bos) || (add_eos && !eos)) {
    throw FormatError(
        file.path(),
        std::string("tokenizer.ggml.") + (add_bos && !bos ? "bos" : "eos") + "_token_id",
        "the id of the token to add", "nothing");
  }
  out["post_processor"] =
      template_of(tokens, add_bos ? bos : std::nullopt, add_eos ? eos : std::nullopt);
  return out;
}

nlohmann::json config_from_gguf(const io::GgufFile& file) {
  const auto tokens = read_tokens(file);
  const bool add_bos =
      adds(file, "tokenizer.ggml.add_bos_token", is_llama(file) || split_of(file).add_bos);
  json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                 {"clean_up_tokenization_spaces", false},
                 {"add_bos_token", add_bos},
                 {"add_eos_token", adds(file, "tokenizer.ggml.add_eos_token", false)}};
  const std::pair<const char*, const char*> kinds[] = {
      {"bos_token", "tokenizer.ggml.bos_token_id"},
      {"eos_token", "tokenizer.ggml.eos_token_id"},
      {"unk_token", "tokenizer.ggml.unknown_token_id"},
      {"pad_token", "tokenizer.ggml.padding_token_id"}};
  for (const auto& [name, key] : kinds) {
    if (const auto token = token_of(file, tokens, key)) config[name] = *token;
  }
  const std::string chat = file.get_string("tokenizer.chat_template", "");
  if (!is_valid_utf8(chat))
    throw FormatError(file.path(), "tokenizer.chat_template", "UTF-8", quote(chat));
  if (!chat.empty()) config["chat_template"] = chat;
  return config;
}

}  // namespace

Tokenizer Tokenizer::from_gguf(const io::GgufFile& file) {
  const nlohmann::json tokenizer = tokenizer_from_gguf(file), config = config_from_gguf(file);
  auto impl = std::make_shared<Impl>(tokenizer, config, file.path());
  impl->json = tokenizer.dump();
  impl->config_json = config.dump(2) + "\n";
  return Tokenizer(std::move(impl));
}

}  // namespace lowbit::text
