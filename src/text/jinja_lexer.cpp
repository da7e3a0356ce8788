#include "text/jinja_lexer.h"

#include <algorithm>
#include <cctype>

#include "text/jinja_tree.h"

namespace lowbit::text::jinja {
namespace {

bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }
bool is_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

class Lexer {
 public:
  Lexer(const std::string& source, const std::string& file) : source_(source), file_(file) {
    // keep_trailing_newline is off: one newline at the end does not count.
    if (source_.ends_with('\n')) source_.pop_back();
    if (source_.ends_with('\r')) source_.pop_back();
  }

  std::vector<Chunk> run() {
    while (at_ < source_.size()) {
      const size_t open = find_tag();
      text(open);
      if (open == std::string::npos) break;
      at_ = open;
      tag();
    }
    return std::move(chunks_);
  }

 private:
  char peek(size_t ahead = 0) const {
    return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0';
  }
  Place place() const {
    return {file_, 1 + static_cast<int>(std::count(source_.begin(), source_.begin() + at_, '\n'))};
  }

  size_t find_tag() const {
    for (size_t i = at_; i + 1 < source_.size(); ++i) {
      if (source_[i] == '{' &&
          (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#')) {
        return i;
      }
    }
    return std::string::npos;
  }

  /// The text up to a tag, with the white space that the tags on both sides take away.
  void text(size_t open) {
    std::string text = source_.substr(at_, open == std::string::npos ? open : open - at_);
    const bool at_line_start = at_ == 0 || source_[at_ - 1] == '\n' || after_newline_;
    if (strip_next_) text.erase(0, std::min(text.size(), text.find_first_not_of(" \t\n\r\f\v")));
    strip_next_ = after_newline_ = false;
    if (open != std::string::npos) {
      const char sign = open + 2 < source_.size() ? source_[open + 2] : '\0';
      if (sign == '-') {
        while (!text.empty() && is_space(text.back())) text.pop_back();
      } else if (sign != '+' && source_[open + 1] != '{') {
        // lstrip_blocks: blanks between the start of the line and a block go.
        const size_t blanks = text.find_last_not_of(" \t") + 1;
        if (blanks == 0 ? at_line_start : text[blanks - 1] == '\n') text.resize(blanks);
      }
    }
    if (text.empty()) return;
    Chunk chunk;
    chunk.text = std::move(text);
    chunks_.push_back(std::move(chunk));
  }

  void tag() {
    const char kind = source_[at_ + 1];
    Chunk chunk;
    chunk.kind = kind == '{' ? Chunk::Kind::kOutput : Chunk::Kind::kBlock;
    chunk.line = place().line;
    if (kind == '#') {
      const size_t close = source_.find("#}", at_ + 2);
      if (close == std::string::npos)
        place().fail("the end of a comment", "the end of the template");
      strip_next_ = close > at_ + 2 && source_[close - 1] == '-';
      at_ = close + 2;
    } else {
      at_ += 2;
      if (peek() == '-' || peek() == '+') ++at_;
      tokens(kind == '{' ? '}' : '%', chunk.tokens);
      chunks_.push_back(std::move(chunk));
    }
    // trim_blocks: the newline right behind a block goes.
    if (kind != '{' && !strip_next_ && !keep_newline_ &&
        (peek() == '\n' || (peek() == '\r' && peek(1) == '\n'))) {
      at_ += peek() == '\r' ? 2 : 1;
      after_newline_ = true;
    }
    keep_newline_ = false;
  }

  void tokens(char close, std::vector<Token>& out) {
    int braces = 0;
    for (;;) {
      while (is_space(peek())) ++at_;
      if (at_ >= source_.size()) place().fail("the end of a tag", "the end of the template");
      const bool sign = (peek() == '-' || peek() == '+') && peek(1) == close && peek(2) == '}';
      if (sign || (braces == 0 && peek() == close && peek(1) == '}')) {
        strip_next_ = sign && peek() == '-';
        keep_newline_ = sign && peek() == '+';
        at_ += sign ? 3 : 2;
        out.emplace_back();
        return;
      }
      out.push_back(token());
      if (out.back().kind == Token::Kind::kOperator) {
        braces += (out.back().text == "{") - (out.back().text == "}");
      }
    }
  }

  Token token() {
    const char c = peek();
    if (c == '\'' || c == '"') return string();
    const size_t begin = at_;
    if (std::isdigit(static_cast<unsigned char>(c))) {
      while (std::isdigit(static_cast<unsigned char>(peek()))) ++at_;
      Token::Kind kind = Token::Kind::kInteger;
      if (peek() == '.' && std::isdigit(static_cast<unsigned char>(peek(1)))) {
        kind = Token::Kind::kFloat;
        ++at_;
        while (std::isdigit(static_cast<unsigned char>(peek()))) ++at_;
      }
      return {kind, source_.substr(begin, at_ - begin)};
    }
    if (is_name(c)) {
      while (is_name(peek())) ++at_;
      return {Token::Kind::kName, source_.substr(begin, at_ - begin)};
    }
    for (const char* op : {"==", "!=", "<=", ">=", "//", "**"}) {
      if (c == op[0] && peek(1) == op[1]) {
        at_ += 2;
        return {Token::Kind::kOperator, op};
      }
    }
    if (std::string_view("+-*/%~<>=()[]{}.,:|").find(c) == std::string_view::npos) {
      place().fail("a Jinja expression",
                   std::string("character ") + std::to_string(static_cast<unsigned char>(c)));
    }
    ++at_;
    return {Token::Kind::kOperator, std::string(1, c)};
  }

  Token string() {
    const char quote = peek();
    Token token{Token::Kind::kString, ""};
    for (++at_; peek() != quote; ++at_) {
      if (at_ >= source_.size()) place().fail("the end of a string", "the end of the template");
      if (peek() != '\\') {
        token.text += peek();
        continue;
      }
      ++at_;
      switch (peek()) {
        case 'n':
          token.text += '\n';
          break;
        case 't':
          token.text += '\t';
          break;
        case 'r':
          token.text += '\r';
          break;
        case '\\':
        case '\'':
        case '"':
          token.text += peek();
          break;
        default:
          place().fail("an escape of \\n, \\t, \\r, \\\\, \\' or \\\"", std::string("\\") + peek());
      }
    }
    ++at_;
    return token;
  }

  std::string source_;
  const std::string& file_;
  size_t at_ = 0;
  bool strip_next_ = false, keep_newline_ = false, after_newline_ = false;
  std::vector<Chunk> chunks_;
};

}  // namespace

std::vector<Chunk> lex(const std::string& source, const std::string& file) {
  return Lexer(source, file).run();
}

}  // namespace lowbit::text::jinja
