// Oniguruma (Ruby syntax) to PCRE2. The two agree on most of what tokenizer files use; where they
// do not, the construct is rewritten or refused, never passed on with another meaning.
#include <cctype>

#include "lowbit/error.h"
#include "text/json_cursor.h"
#include "text/regex.h"

namespace lowbit::text {
namespace {

// PCRE2's \s has U+180E besides White_Space; its \w lacks marks and connectors.
constexpr std::string_view kSpace = "\\t-\\r\\x20\\x85\\p{Z}";
constexpr std::string_view kWord = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";

class Translator {
 public:
  Translator(const std::string& pattern, const std::string& file, const std::string& where)
      : pattern_(pattern), file_(file), where_(where) {}

  std::string run() {
    while (i_ < pattern_.size()) {
      switch (peek()) {
        case '\\':
          escape(false);
          break;
        case '[':
          bracket();
          break;
        case '(':
          group();
          break;
        case '{':
          repeat();
          break;
        default:
          take();
      }
    }
    return std::move(out_);
  }

 private:
  char peek(size_t ahead = 0) const {
    return i_ + ahead < pattern_.size() ? pattern_[i_ + ahead] : '\0';
  }
  void take(size_t count = 1) {
    out_.append(pattern_, i_, count);
    i_ += count;
  }
  [[noreturn]] void refuse(const std::string& construct) const {
    throw FormatError(file_, where_, "a regular expression of supported constructs",
                      construct + " at byte " + std::to_string(i_) + " of " + quote(pattern_));
  }

  void set(std::string_view members, bool inside, bool negated) {
    if (inside && negated) refuse("a negated class inside brackets");
    if (!inside) out_ += negated ? "[^" : "[";
    out_ += members;
    if (!inside) out_ += ']';
    i_ += 2;
  }

  void escape(bool inside) {
    const char c = peek(1);
    switch (c) {
      case 's':
        return set(kSpace, inside, false);
      case 'S':
        return set(kSpace, inside, true);
      case 'w':
        return set(kWord, inside, false);
      case 'W':
        return set(kWord, inside, true);
      case 'v':  // one character here, a class in PCRE2
        out_ += "\\x0b";
        i_ += 2;
        return;
      case 'u': {
        for (size_t k = 2; k < 6; ++k) {
          if (!std::isxdigit(static_cast<unsigned char>(peek(k))))
            refuse("\\u without four hex digits");
        }
        out_ += "\\x{" + pattern_.substr(i_ + 2, 4) + "}";
        i_ += 6;
        return;
      }
      case 'p':
      case 'P': {
        const size_t end = peek(2) == '{' ? pattern_.find('}', i_) : std::string::npos;
        if (end == std::string::npos) refuse("\\p without {name}");
        return take(end + 1 - i_);
      }
      case 'x': {
        const size_t end = peek(2) == '{' ? pattern_.find('}', i_) : i_ + 3;
        if (end == std::string::npos || end >= pattern_.size()) refuse("an unfinished \\x");
        return take(end + 1 - i_);
      }
      case 'd':
      case 'D':
      case 'r':
      case 'n':
      case 't':
      case 'f':
      case 'a':
      case 'e':
        return take(2);
      case 'A':
      case 'z':
      case 'Z':
        if (!inside) return take(2);
        [[fallthrough]];
      default:
        if (c == '\0' || static_cast<unsigned char>(c) >= 0x80 ||
            std::isalnum(static_cast<unsigned char>(c))) {
          refuse(std::string("\\") +
                 (static_cast<unsigned char>(c) < 0x80 && c ? std::string(1, c) : ""));
        }
        take(2);
    }
  }

  void bracket() {
    take();
    if (peek() == '^') take();
    // Here the first ] closes an empty class; PCRE2 takes it as a member.
    if (peek() == ']') refuse("an empty bracket");
    while (peek() != ']') {
      if (i_ >= pattern_.size()) refuse("an unfinished bracket");
      if (peek() == '[') refuse("a bracket inside brackets");
      if (peek() == '&' && peek(1) == '&') refuse("&& inside brackets");
      if (peek() == '\\') {
        escape(true);
      } else {
        take();
      }
    }
    take();
  }

  void group() {
    if (peek(1) == '*') refuse("(*");
    if (peek(1) != '?') return take();
    if (peek(2) == '<') {
      if (peek(3) != '=' && peek(3) != '!') refuse("a named group");
      return take(4);
    }
    if (std::string_view(":=!>").find(peek(2)) != std::string_view::npos && peek(2)) return take(3);
    size_t k = 2;
    while (peek(k) == 'i' || peek(k) == 'x' || peek(k) == '-') ++k;
    // (?i) alone reaches to the end of the group in both; a colon opens a group of its own.
    if (k == 2 || (peek(k) != ':' && peek(k) != ')')) refuse("a group of this kind");
    take(k + 1);
  }

  void repeat() {
    size_t k = 1;
    bool comma = false;
    while (std::isdigit(static_cast<unsigned char>(peek(k))) || (peek(k) == ',' && !comma)) {
      comma = comma || peek(k) == ',';
      ++k;
    }
    if (peek(k) != '}' || k == 1) return take();  // a plain brace in both
    if (peek(1) == ',') refuse("{,n}");
    // Ruby reads {n,m}+ as a repeated repeat, PCRE2 as a possessive one; {n}? differs likewise.
    if (peek(k + 1) == '+' || (!comma && peek(k + 1) == '?')) refuse("a repeat behind {n}");
    take(k + 1);
  }

  const std::string& pattern_;
  const std::string& file_;
  const std::string& where_;
  size_t i_ = 0;
  std::string out_;
};

}  // namespace

std::string translate_regex(const std::string& pattern, const std::string& file,
                            const std::string& where) {
  return Translator(pattern, file, where).run();
}

}  // namespace lowbit::text
