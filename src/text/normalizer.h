// What happens to the text before it is split.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/json_cursor.h"
#include "text/regex.h"

namespace lowbit::text {

/// A "String" or "Regex" pattern of a tokenizer file.
class Pattern {
 public:
  /// {"String": ...} or {"Regex": ...}; FormatError otherwise, or when it is empty.
  static Pattern from_json(const Json& pattern);

  /// Matches from left to right, not overlapping.
  std::vector<Span> matches(std::string_view text) const;
  std::string replace(std::string_view text, std::string_view content) const;
  /// The text of a "String" pattern; empty for a "Regex".
  const std::string& literal() const noexcept { return literal_; }
  bool is_regex() const noexcept { return regex_.has_value(); }

 private:
  std::string literal_;
  std::optional<Regex> regex_;
};

/// Pattern and content of a Replace. FormatError for a content that refers to groups of a regex
/// ("$1").
struct Replacement {
  static Replacement from_json(const Json& json);
  Pattern pattern;
  std::string content;
};

class Normalizer {
 public:
  /// null, NFC, NFD, NFKC, NFKD, Lowercase, Replace, Prepend, Sequence; FormatError names any other
  /// kind.
  static Normalizer from_json(const std::optional<Json>& json);
  bool is_identity() const noexcept { return steps_.empty(); }
  /// `text` is valid UTF-8. Throws FormatError when replacements blow it up beyond reason.
  std::string apply(std::string_view text) const;

 private:
  enum class Kind { kNfc, kNfd, kNfkc, kNfkd, kLowercase, kReplace, kPrepend };
  struct Step {
    Kind kind;
    Replacement replacement;  // kPrepend: content only
  };
  void add(const Json& json, int depth);
  std::vector<Step> steps_;
  std::string file_;
};

}  // namespace lowbit::text
