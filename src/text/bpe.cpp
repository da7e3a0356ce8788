#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <queue>

#include "text/pre_tokenizer.h"
#include "text/utf8.h"

namespace lowbit::text {
namespace {

// Up to here a scan for the best pair beats a heap.
constexpr size_t kShortWord = 32;
constexpr int32_t kNoRank = INT32_MAX;

}  // namespace

int32_t Bpe::find(std::string_view token) const noexcept {
  const auto it = index_.find(token);
  return it == index_.end() ? -1 : it->second;
}

void Bpe::insert(const Merge& merge) {
  const size_t mask = table_.size() - 1;
  size_t slot = merge.pair * 0x9E3779B97F4A7C15u >> shift_;
  // A pair given twice keeps its last rank, as in the reference.
  while (table_[slot].pair != kNoPair && table_[slot].pair != merge.pair) slot = (slot + 1) & mask;
  table_[slot] = merge;
}

const Bpe::Merge* Bpe::merge_of(int32_t left, int32_t right) const noexcept {
  const uint64_t pair = pair_of(left, right);
  const size_t mask = table_.size() - 1;
  for (size_t slot = pair * 0x9E3779B97F4A7C15u >> shift_;; slot = (slot + 1) & mask) {
    if (table_[slot].pair == pair) return &table_[slot];
    if (table_[slot].pair == kNoPair) return nullptr;
  }
}

Bpe Bpe::from_json(const Json& model) {
  // The oldest files have no type; what they hold decides.
  if (model.find("type") && model.at("type").string() != "BPE") {
    model.at("type").fail("a supported model (BPE)");
  }
  if (!model.find("merges")) model.fail("a BPE model with merges");
  if (const auto dropout = model.find("dropout")) {
    if (!dropout->value().is_number() || dropout->value().get<double>() != 0) {
      dropout->fail("no dropout");
    }
  }
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.string(affix, "").empty()) model.at(affix).fail("no subword prefix or suffix");
  }
  Bpe bpe;
  bpe.file_ = model.file();
  if (const auto unk = model.find("unk_token")) {
    bpe.unk_token_ = unk->string();
    bpe.has_unk_ = true;
  }
  bpe.fuse_unk_ = model.boolean("fuse_unk", false);
  bpe.byte_fallback_ = model.boolean("byte_fallback", false);
  bpe.ignore_merges_ = model.boolean("ignore_merges", false);
  bpe.read_vocabulary(model.at("vocab"));
  bpe.read_merges(model.at("merges"));
  return bpe;
}

void Bpe::read_vocabulary(const Json& vocabulary) {
  const auto& items = vocabulary.value();
  if (!items.is_object()) vocabulary.fail("an object of tokens and ids");
  // Holes are allowed (the reference allows them), a table that is mostly holes is not.
  const int64_t limit = std::min(kMaxTokenId, static_cast<int64_t>(2 * items.size() + 1024));
  const auto place = [&](const std::string& token) {
    return vocabulary.path() + "[" + quote(token) + "]";
  };
  index_.reserve(items.size());
  for (const auto& [token, value] : items.items()) {
    const int64_t id = value.is_number_integer()
                           ? Json(value, file_, vocabulary.path()).integer(INT64_MIN, INT64_MAX)
                           : -1;
    if (id < 0 || id > limit) {
      throw FormatError(file_, place(token), "an id from 0 to " + std::to_string(limit),
                        value.dump());
    }
    if (static_cast<size_t>(id) >= tokens_.size()) tokens_.resize(id + 1);
    if (tokens_[id]) {
      throw FormatError(file_, place(token), "an id of its own",
                        std::to_string(id) + ", which " + quote(*tokens_[id]) + " has");
    }
    tokens_[id] = token;
    index_.emplace(token, static_cast<int32_t>(id));
    if (token.empty()) continue;
    const Utf8Step step = utf8_step(token);
    if (step.length != token.size()) continue;
    if (step.codepoint >= char_ids_.size()) char_ids_.resize(step.codepoint + 1, -1);
    char_ids_[step.codepoint] = static_cast<int32_t>(id);
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char32_t c = byte_to_char(static_cast<unsigned char>(byte));
    byte_ids_[byte] = c < char_ids_.size() ? char_ids_[c] : -1;
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", static_cast<unsigned>(byte));
    fallback_ids_[byte] = find(name);
  }
}

void Bpe::read_merges(const Json& merges) {
  const size_t count = merges.size();
  if (count > size_t{1} << 26) merges.fail("at most 67108864 merges");
  table_.resize(std::bit_ceil(2 * count + 2));
  shift_ = 64 - std::countr_zero(table_.size());
  std::string merged;
  for (size_t i = 0; i < count; ++i) {
    const nlohmann::json& item = merges.value()[i];
    std::string_view left, right;
    if (item.is_string()) {
      const std::string& text = item.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
        merges[i].fail("two tokens with a space between them");
      }
      left = std::string_view(text).substr(0, space);
      right = std::string_view(text).substr(space + 1);
    } else if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
      left = item[0].get_ref<const std::string&>();
      right = item[1].get_ref<const std::string&>();
    } else {
      merges[i].fail("a pair of tokens");
    }
    merged.assign(left).append(right);
    const auto id_of = [&](std::string_view token) {
      const int32_t id = find(token);
      if (id < 0) {
        throw FormatError(file_, merges[i].path(), "tokens of the vocabulary", quote(token));
      }
      return id;
    };
    insert({pair_of(id_of(left), id_of(right)), static_cast<int32_t>(i), id_of(merged)});
  }
}

void Bpe::encode(std::string_view word, bool bytes, std::vector<int64_t>& ids) const {
  if (ignore_merges_) {
    thread_local std::string mapped;
    std::string_view text = word;
    if (bytes) {
      mapped.clear();
      for (char byte : word) append_utf8(mapped, byte_to_char(static_cast<unsigned char>(byte)));
      text = mapped;
    }
    if (const int32_t id = find(text); id >= 0) {
      ids.push_back(id);
      return;
    }
  }
  thread_local std::vector<int32_t> symbols;
  symbols.clear();
  start_symbols(word, bytes, symbols);
  if (symbols.size() <= kShortWord) {
    merge_short(symbols);
  } else {
    merge_long(symbols);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

void Bpe::start_symbols(std::string_view word, bool bytes, std::vector<int32_t>& symbols) const {
  // With fuse_unk a run of unknown characters is one token.
  bool unknown = false;
  for (size_t at = 0; at < word.size();) {
    std::string mapped;
    std::string_view text;
    int32_t id;
    if (bytes) {
      const auto byte = static_cast<unsigned char>(word[at++]);
      id = byte_ids_[byte];
      if (id < 0) append_utf8(mapped, byte_to_char(byte)), text = mapped;
    } else {
      const Utf8Step step = utf8_step(word.substr(at));
      id = step.codepoint < char_ids_.size() ? char_ids_[step.codepoint] : -1;
      text = word.substr(at, step.length);
      at += step.length;
    }
    if (id >= 0) {
      symbols.push_back(id);
      unknown = false;
      continue;
    }
    const auto fallback = [&](char c) { return fallback_ids_[static_cast<unsigned char>(c)]; };
    if (byte_fallback_ &&
        std::all_of(text.begin(), text.end(), [&](char c) { return fallback(c) >= 0; })) {
      for (char c : text) symbols.push_back(fallback(c));
      unknown = false;
      continue;
    }
    // Without an unknown token the character is dropped, as the reference does.
    if (!has_unk_ || (unknown && fuse_unk_)) continue;
    const int32_t unk = find(unk_token_);
    if (unk < 0) {
      throw FormatError(file_, "$.model.unk_token", "a token of the vocabulary", quote(unk_token_));
    }
    symbols.push_back(unk);
    unknown = true;
  }
}

void Bpe::merge_short(std::vector<int32_t>& symbols) const {
  const Merge* merges[kShortWord];
  size_t count = symbols.size();
  for (size_t i = 0; i + 1 < count; ++i) merges[i] = merge_of(symbols[i], symbols[i + 1]);
  while (count > 1) {
    size_t best = 0;
    int32_t best_rank = kNoRank;
    for (size_t i = 0; i + 1 < count; ++i) {
      if (merges[i] && merges[i]->rank < best_rank) best = i, best_rank = merges[i]->rank;
    }
    if (best_rank == kNoRank) break;
    symbols[best] = merges[best]->id;
    std::move(symbols.begin() + best + 2, symbols.begin() + count, symbols.begin() + best + 1);
    if (best + 2 < count) std::move(merges + best + 2, merges + count - 1, merges + best + 1);
    --count;
    if (best > 0) merges[best - 1] = merge_of(symbols[best - 1], symbols[best]);
    if (best + 1 < count) merges[best] = merge_of(symbols[best], symbols[best + 1]);
  }
  symbols.resize(count);
}

void Bpe::merge_long(std::vector<int32_t>& symbols) const {
  // A doubly linked list over the symbols, and a heap of pairs by rank, then position. An entry of
  // the heap is stale when the pair at its place has another rank by now.
  const size_t count = symbols.size();
  if (count > size_t{INT32_MAX})
    throw std::length_error("encode: `text` must be shorter than 2 GiB");
  std::vector<int32_t> next(count), previous(count), rank(count, kNoRank);
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> heap;
  const auto look = [&](int32_t i) {
    const Merge* merge = next[i] < 0 ? nullptr : merge_of(symbols[i], symbols[next[i]]);
    rank[i] = merge ? merge->rank : kNoRank;
    if (merge) heap.push(static_cast<uint64_t>(merge->rank) << 32 | static_cast<uint32_t>(i));
  };
  for (size_t i = 0; i < count; ++i) {
    previous[i] = static_cast<int32_t>(i) - 1;
    next[i] = i + 1 < count ? static_cast<int32_t>(i) + 1 : -1;
  }
  for (size_t i = 0; i < count; ++i) look(static_cast<int32_t>(i));
  while (!heap.empty()) {
    const uint64_t top = heap.top();
    heap.pop();
    const auto i = static_cast<int32_t>(top & 0xFFFFFFFF);
    if (rank[i] != static_cast<int32_t>(top >> 32)) continue;
    const int32_t right = next[i];
    symbols[i] = merge_of(symbols[i], symbols[right])->id;
    next[i] = next[right];
    if (next[i] >= 0) previous[next[i]] = i;
    rank[right] = kNoRank;
    symbols[right] = -1;
    look(i);
    if (previous[i] >= 0) look(previous[i]);
  }
  symbols.erase(std::remove(symbols.begin(), symbols.end(), -1), symbols.end());
}

}  // namespace lowbit::text
