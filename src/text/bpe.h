// Byte pair encoding: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword
// Units".
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/json_cursor.h"

namespace lowbit::text {

/// Ids stay below this, so that a damaged file cannot make tables of absurd size.
constexpr int64_t kMaxTokenId = (int64_t{1} << 24) - 1;

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const noexcept {
    return std::hash<std::string_view>()(text);
  }
};
using TokenIndex = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

class Bpe {
 public:
  /// The "model" of tokenizer.json. FormatError: another type, dropout, a prefix or suffix of
  /// subwords, bad ids (negative, twice, far beyond the number of tokens), merges that are no pairs
  /// or name tokens that do not exist.
  static Bpe from_json(const Json& model);

  /// Tokens of one word are appended to `ids`. `bytes`: the word's bytes stand for their
  /// byte_to_char characters. Throws FormatError when the word needs the unknown token and the
  /// vocabulary lacks it.
  void encode(std::string_view word, bool bytes, std::vector<int64_t>& ids) const;

  /// -1 when there is no such token.
  int32_t find(std::string_view token) const noexcept;
  /// By id; an id without a token has none.
  const std::vector<std::optional<std::string>>& tokens() const noexcept { return tokens_; }
  size_t count() const noexcept { return index_.size(); }

 private:
  struct Merge {
    uint64_t pair = kNoPair;
    int32_t rank = 0, id = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};
  static uint64_t pair_of(int32_t left, int32_t right) noexcept {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }

  void read_vocabulary(const Json& vocabulary);
  void read_merges(const Json& merges);
  void insert(const Merge& merge);
  const Merge* merge_of(int32_t left, int32_t right) const noexcept;
  void start_symbols(std::string_view word, bool bytes, std::vector<int32_t>& symbols) const;
  void merge_short(std::vector<int32_t>& symbols) const;
  void merge_long(std::vector<int32_t>& symbols) const;

  std::vector<std::optional<std::string>> tokens_;
  TokenIndex index_;
  std::vector<Merge> table_;  // open addressing, a power of two, at most half full
  int shift_ = 63;
  std::vector<int32_t> char_ids_;            // by code point, -1 for none
  std::array<int32_t, 256> byte_ids_{};      // of byte_to_char
  std::array<int32_t, 256> fallback_ids_{};  // of "<0x..>"
  std::string file_, unk_token_;
  bool has_unk_ = false, fuse_unk_ = false, byte_fallback_ = false, ignore_merges_ = false;
};

}  // namespace lowbit::text
