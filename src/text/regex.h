// Regular expressions of tokenizer files: Oniguruma's Ruby syntax, which is what the reference
// reads, run by PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace lowbit::text {

struct Span {
  size_t begin = 0, end = 0;
};

/// The same expression in PCRE2's syntax. FormatError for a construct whose meaning differs between
/// the two and that is not translated (it names the construct).
std::string translate_regex(const std::string& pattern, const std::string& file,
                            const std::string& where);

/// An immutable compiled expression; copies share it, threads may share it.
class Regex {
 public:
  /// FormatError when the expression does not compile.
  static Regex compile(const std::string& pattern, const std::string& file,
                       const std::string& where);

 private:
  friend class RegexMatches;
  struct Code;
  std::shared_ptr<const Code> code_;
};

/// The matches of a text from left to right: not overlapping, an empty one never right behind
/// another match.
class RegexMatches {
 public:
  /// `text` is valid UTF-8 and outlives the object.
  RegexMatches(const Regex& regex, std::string_view text) : regex_(&regex), text_(text) {}
  /// Throws FormatError when the expression backtracks without end on this text (the number of
  /// steps is limited in proportion to the text).
  bool next(Span& match);

 private:
  const Regex* regex_;
  std::string_view text_;
  size_t position_ = 0;
  size_t last_end_ = SIZE_MAX;
};

}  // namespace lowbit::text
