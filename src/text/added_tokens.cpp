#include "text/added_tokens.h"

#include <algorithm>
#include <charconv>

#include "text/utf8.h"

namespace lowbit::text {
namespace {

AddedToken read(const Json& json) {
  AddedToken token;
  token.content = json.at("content").string();
  token.single_word = json.boolean("single_word", false);
  token.lstrip = json.boolean("lstrip", false);
  token.rstrip = json.boolean("rstrip", false);
  token.special = json.boolean("special", false);
  token.normalized = json.boolean("normalized", !token.special);
  return token;
}

/// Whether `text` starts with a word character of Unicode's regular expressions (UTS 18, annex C).
bool starts_with_word(std::string_view text) {
  static const Regex word = Regex::compile(
      "\\A[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200C}\\x{200D}]", "lowbit", "word character");
  Span span;
  return !text.empty() && RegexMatches(word, text.substr(0, utf8_length(text.front()))).next(span);
}

size_t last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (text[at] & 0xC0) == 0x80) --at;
  return at;
}

/// Where the white space at the end of text[0, end) begins.
size_t strip_left(std::string_view text, size_t end) {
  while (end > 0) {
    const size_t at = last_character(text.substr(0, end));
    if (!is_white_space(utf8_step(text.substr(at)).codepoint)) break;
    end = at;
  }
  return end;
}

size_t strip_right(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    const Utf8Step step = utf8_step(text.substr(begin));
    if (!is_white_space(step.codepoint)) break;
    begin += step.length;
  }
  return begin;
}

}  // namespace

void AddedTokens::Trie::insert(std::string_view key, int64_t id) {
  if (key.empty()) return;
  starts_[static_cast<unsigned char>(key.front())] = true;
  uint32_t node = 0;
  for (char c : key) {
    const auto [edge, fresh] =
        edges_.try_emplace(uint64_t{node} << 8 | static_cast<unsigned char>(c), nodes_);
    nodes_ += fresh;
    node = edge->second;
  }
  ends_.try_emplace(node, id);
}

size_t AddedTokens::Trie::match(std::string_view text, int64_t& id) const noexcept {
  if (text.empty() || !starts_[static_cast<unsigned char>(text.front())]) return 0;
  size_t longest = 0;
  uint32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto edge = edges_.find(uint64_t{node} << 8 | static_cast<unsigned char>(text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (const auto end = ends_.find(node); end != ends_.end()) longest = i + 1, id = end->second;
  }
  return longest;
}

void AddedTokens::add(AddedToken token, const Bpe& model, const Json& where) {
  const auto conflict = [&](const std::string& expected, const std::string& found) {
    throw FormatError(where.file(), where.path(), expected, found);
  };
  if (const int32_t id = model.find(token.content); id >= 0 && id != token.id) {
    conflict("id " + std::to_string(id) + " for " + quote(token.content) + ", as in the vocabulary",
             std::to_string(token.id));
  }
  const auto& tokens = model.tokens();
  if (token.id < static_cast<int64_t>(tokens.size()) && tokens[token.id] &&
      *tokens[token.id] != token.content) {
    conflict("an id of its own for " + quote(token.content),
             std::to_string(token.id) + ", which " + quote(*tokens[token.id]) + " has");
  }
  const auto [entry, fresh] = by_id_.emplace(token.id, token);
  if (!fresh) conflict("an id of its own", std::to_string(token.id) + " twice");
  if (!index_.emplace(token.content, static_cast<int32_t>(token.id)).second) {
    conflict("a token listed once", quote(token.content) + " twice");
  }
}

AddedTokens AddedTokens::from_json(const Json& tokenizer, const Json* config, const Bpe& model,
                                   const Normalizer& normalizer) {
  AddedTokens result;
  // Holes are allowed here too, a table that is mostly holes is not.
  if (const auto list = tokenizer.find("added_tokens")) {
    const auto limit = static_cast<int64_t>(std::max(model.tokens().size(), 2 * model.count()) +
                                            2 * list->size() + 1024);
    for (size_t i = 0; i < list->size(); ++i) {
      AddedToken token = read((*list)[i]);
      token.id = (*list)[i].at("id").integer(0, std::min(limit, kMaxTokenId));
      if (!token.content.empty()) result.add(std::move(token), model, (*list)[i]);
    }
  }
  if (const auto map = config ? config->find("added_tokens_decoder") : std::nullopt) {
    if (!map->value().is_object()) map->fail("an object of ids and tokens");
    for (const auto& [key, value] : map->value().items()) {
      const Json entry(value, map->file(), map->path() + "[" + quote(key) + "]");
      AddedToken token = read(entry);
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token.id);
      const auto limit =
          static_cast<int64_t>(model.tokens().size() + 2 * map->value().size() + 1024);
      if (error != std::errc() || end != key.data() + key.size() || token.id < 0 ||
          token.id > limit) {
        entry.fail("an id from 0 to " + std::to_string(limit) + " as key");
      }
      if (!token.content.empty() && !result.find(token.content)) {
        result.add(std::move(token), model, entry);
      }
    }
  }
  for (const auto& [id, token] : result.by_id_) {
    if (!token.normalized) {
      result.plain_.insert(token.content, id);
    } else if (normalizer.is_identity()) {
      result.normalized_.insert(token.content, id);
    } else {
      result.normalized_.insert(normalizer.apply(token.content), id);
    }
  }
  return result;
}

const AddedToken* AddedTokens::find(std::string_view content) const noexcept {
  const auto it = index_.find(content);
  return it == index_.end() ? nullptr : &by_id_.at(it->second);
}

std::vector<Piece> AddedTokens::split(std::string_view text, bool normalized) const {
  const Trie& trie = normalized ? normalized_ : plain_;
  std::vector<Piece> pieces;
  size_t from = 0;
  for (size_t at = 0; !trie.empty() && at < text.size();) {
    int64_t id = -1;
    const size_t length = trie.match(text.substr(at), id);
    if (length == 0) {
      ++at;
      continue;
    }
    const AddedToken& token = by_id_.at(id);
    size_t begin = at, end = at + length;
    at = end;
    if (token.single_word &&
        ((begin > 0 && starts_with_word(text.substr(last_character(text.substr(0, begin))))) ||
         starts_with_word(text.substr(end)))) {
      continue;
    }
    if (token.lstrip) begin = std::max(strip_left(text, begin), from);
    if (token.rstrip) end = strip_right(text, end);
    if (from < begin) pieces.push_back({{from, begin}, -1});
    pieces.push_back({{begin, end}, id});
    from = end;
    at = std::max(at, from);
  }
  if (from < text.size()) pieces.push_back({{from, text.size()}, -1});
  return pieces;
}

}  // namespace lowbit::text
