// Tokens that are cut out of the text before anything else happens to it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/bpe.h"
#include "text/normalizer.h"

namespace lowbit::text {

struct AddedToken {
  std::string content;
  int64_t id = 0;
  bool single_word = false, lstrip = false, rstrip = false, normalized = false, special = false;
};

/// A stretch of text: one added token, or (id < 0) text between them.
struct Piece {
  Span span;
  int64_t id = -1;
};

class AddedTokens {
 public:
  /// The "added_tokens" array of tokenizer.json, then what "added_tokens_decoder" of
  /// tokenizer_config.json has besides. FormatError: an id that the vocabulary gives to another
  /// token, or a token with two ids.
  static AddedTokens from_json(const Json& tokenizer, const Json* config, const Bpe& model,
                               const Normalizer& normalizer);

  const std::map<int64_t, AddedToken>& by_id() const noexcept { return by_id_; }
  const AddedToken* find(std::string_view content) const noexcept;

  /// Cuts `text` at the tokens that match as written (`normalized` false) or in normalized text
  /// (true). Leftmost, then longest; the pieces cover the text.
  std::vector<Piece> split(std::string_view text, bool normalized) const;

 private:
  class Trie {
   public:
    void insert(std::string_view key, int64_t id);
    bool empty() const noexcept { return edges_.empty(); }
    /// The longest key at the front of `text`: its length (0 for none) and id.
    size_t match(std::string_view text, int64_t& id) const noexcept;

   private:
    std::unordered_map<uint64_t, uint32_t> edges_;  // node << 8 | byte
    std::unordered_map<uint32_t, int64_t> ends_;
    std::array<bool, 256> starts_{};
    uint32_t nodes_ = 1;
  };
  void add(AddedToken token, const Bpe& model, const Json& where);

  std::map<int64_t, AddedToken> by_id_;
  TokenIndex index_;
  Trie plain_, normalized_;
};

}  // namespace lowbit::text
