#include <algorithm>
#include <charconv>

#include "io/quote.h"
#include "text/jinja_lexer.h"
#include "text/jinja_tree.h"

namespace lowbit::text::jinja {
namespace {

using Kind = Expression::Kind;
constexpr int kMaxDepth = 64;

/// One expression tag's tokens, read by recursive descent in Jinja's order of precedence.
class TagParser {
 public:
  TagParser(const Chunk& chunk, const std::string& file)
      : chunk_(chunk), place_{file, chunk.line} {}

  Expression expression() {
    const Depth depth(*this);
    Expression value = binary(0);
    while (take_name("if")) {
      Expression choice = node(Kind::kConditional);
      choice.parts.push_back(binary(0));
      choice.parts.push_back(std::move(value));
      choice.parts.push_back(take_name("else") ? expression() : literal(undefined()));
      value = std::move(choice);
    }
    return value;
  }
  /// An iterable: "if" behind it belongs to the loop.
  Expression iterable() { return binary(0); }

  std::string name() {
    if (peek().kind != Token::Kind::kName) fail("a name");
    return next().text;
  }
  bool take_name(const char* text) { return take(Token::Kind::kName, text); }
  bool take_operator(const char* text) { return take(Token::Kind::kOperator, text); }
  void expect(const char* text) {
    if (!take_operator(text) && !take_name(text)) fail(text);
  }
  void end() {
    if (peek().kind != Token::Kind::kEnd) fail("the end of the tag");
  }
  [[noreturn]] void fail(const std::string& expected) const {
    place_.fail(expected,
                peek().kind == Token::Kind::kEnd ? "the end of the tag" : io::quote(peek().text));
  }

 private:
  struct Depth {
    explicit Depth(TagParser& parser) : parser_(parser) {
      if (++parser.depth_ > kMaxDepth)
        parser.place_.fail("expressions nested at most 64 deep", "deeper nesting");
    }
    ~Depth() { --parser_.depth_; }
    TagParser& parser_;
  };

  const Token& peek(size_t ahead = 0) const {
    return chunk_.tokens[std::min(at_ + ahead, chunk_.tokens.size() - 1)];
  }
  const Token& next() { return chunk_.tokens[at_++]; }
  bool take(Token::Kind kind, const char* text) {
    if (peek().kind != kind || peek().text != text) return false;
    ++at_;
    return true;
  }
  Expression node(Kind kind, std::string name = "") const {
    Expression result;
    result.kind = kind;
    result.line = chunk_.line;
    result.name = std::move(name);
    return result;
  }
  Expression literal(Value value) const {
    Expression result = node(Kind::kLiteral);
    result.value = std::move(value);
    return result;
  }

  /// The operator of a level here, taken; "" for none.
  std::string take_binary(int level) {
    static const std::vector<std::vector<const char*>> kLevels = {
        {"or"},     {"and"}, {"==", "!=", "<=", ">=", "<", ">", "in"},
        {"+", "-"}, {"~"},   {"*", "//", "/", "%"}};
    if (level == 2 && peek().text == "not" && peek(1).kind == Token::Kind::kName &&
        peek(1).text == "in") {
      at_ += 2;
      return "not in";
    }
    for (const char* op : kLevels[level]) {
      if (peek().kind != Token::Kind::kString && (take_operator(op) || take_name(op))) return op;
    }
    return "";
  }

  Expression binary(int level) {
    const Depth depth(*this);
    if (level == 2 && peek().kind == Token::Kind::kName && peek().text == "not") {
      ++at_;
      Expression negation = node(Kind::kUnary, "not");
      negation.parts.push_back(binary(2));
      return negation;
    }
    if (level == 6) return unary();
    Expression left = binary(level + 1);
    int chain = 0;
    for (std::string op; !(op = take_binary(level)).empty();) {
      if (level == 2 && chain++ > 0) fail("one comparison (chains are not supported)");
      Expression pair = node(Kind::kBinary, op);
      pair.parts.push_back(std::move(left));
      pair.parts.push_back(binary(level + 1));
      left = std::move(pair);
    }
    return left;
  }

  Expression unary() {
    const Depth depth(*this);
    if (take_operator("-")) {
      Expression negation = node(Kind::kUnary, "-");
      negation.parts.push_back(unary());
      return negation;
    }
    return postfix(primary());
  }

  Expression primary() {
    const Token& token = peek();
    switch (token.kind) {
      case Token::Kind::kString: {
        std::string text = next().text;
        while (peek().kind == Token::Kind::kString) text += next().text;
        return literal(std::move(text));
      }
      case Token::Kind::kInteger: {
        int64_t number = 0;
        const auto [end, error] =
            std::from_chars(token.text.data(), token.text.data() + token.text.size(), number);
        if (error != std::errc()) fail("an integer of 64 bits");
        ++at_;
        return literal(number);
      }
      case Token::Kind::kFloat:
        return literal(std::stod(next().text));
      case Token::Kind::kName: {
        const std::string name = next().text;
        if (name == "true" || name == "True") return literal(true);
        if (name == "false" || name == "False") return literal(false);
        if (name == "none" || name == "None") return literal(nullptr);
        return node(Kind::kName, name);
      }
      case Token::Kind::kOperator:
        if (take_operator("(")) {
          Expression inner = expression();
          expect(")");
          return inner;
        }
        if (take_operator("[")) return sequence(Kind::kList, "]");
        if (take_operator("{")) return sequence(Kind::kDict, "}");
        [[fallthrough]];
      case Token::Kind::kEnd:
        break;
    }
    fail("an expression");
  }

  Expression sequence(Kind kind, const char* close) {
    Expression result = node(kind);
    while (!take_operator(close)) {
      if (!result.parts.empty()) {
        expect(",");
        if (take_operator(close)) break;
      }
      result.parts.push_back(expression());
      if (kind == Kind::kDict) {
        expect(":");
        result.parts.push_back(expression());
      }
    }
    return result;
  }

  void arguments(Expression& call) {
    for (bool first = true; !take_operator(")"); first = false) {
      if (!first) expect(",");
      std::string keyword;
      if (peek().kind == Token::Kind::kName && peek(1).kind == Token::Kind::kOperator &&
          peek(1).text == "=") {
        keyword = next().text;
        ++at_;
      }
      call.keywords.push_back(keyword);
      call.parts.push_back(expression());
    }
  }

  Expression subscript(Expression subject) {
    Expression result = node(Kind::kIndex);
    result.parts.push_back(std::move(subject));
    const auto part = [&] {
      const bool absent =
          peek().kind == Token::Kind::kOperator && (peek().text == ":" || peek().text == "]");
      result.parts.push_back(absent ? literal(nullptr) : expression());
    };
    part();
    while (take_operator(":")) {
      result.kind = Kind::kSlice;
      part();
    }
    expect("]");
    if (result.parts.size() > 4) fail("a slice of at most three numbers");
    if (result.kind == Kind::kSlice) result.parts.resize(4, literal(nullptr));
    return result;
  }

  Expression postfix(Expression value) {
    for (int length = 0;; ++length) {
      if (length > kMaxDepth) fail("a chain of at most 64 accesses");
      Expression outer;
      if (take_operator(".")) {
        outer = node(Kind::kAttribute, name());
        outer.parts.push_back(std::move(value));
      } else if (take_operator("[")) {
        outer = subscript(std::move(value));
      } else if (take_operator("(")) {
        outer = node(Kind::kCall);
        outer.parts.push_back(std::move(value));
        arguments(outer);
      } else if (take_operator("|")) {
        outer = node(Kind::kFilter, name());
        outer.parts.push_back(std::move(value));
        if (take_operator("(")) arguments(outer);
      } else if (take_name("is")) {
        const bool negated = take_name("not");
        outer = node(Kind::kTest, name());
        outer.parts.push_back(std::move(value));
        if (take_operator("(")) arguments(outer);
        if (negated) {
          Expression negation = node(Kind::kUnary, "not");
          negation.parts.push_back(std::move(outer));
          outer = std::move(negation);
        }
      } else {
        return value;
      }
      value = std::move(outer);
    }
  }

  const Chunk& chunk_;
  Place place_;
  size_t at_ = 0;
  int depth_ = 0;
};

class TemplateParser {
 public:
  TemplateParser(const std::string& source, const std::string& file)
      : file_(file), chunks_(lex(source, file)) {}

  std::vector<Statement> run() {
    auto body = statements(0);
    if (!stopped_at_.empty())
      Place{file_, chunks_[at_ - 1].line}.fail("a matching start", io::quote(stopped_at_));
    return body;
  }

 private:
  /// Statements up to a block that ends or divides its parent; its name goes to stopped_at_.
  std::vector<Statement> statements(int depth) {
    std::vector<Statement> body;
    stopped_at_.clear();
    while (at_ < chunks_.size()) {
      const Chunk& chunk = chunks_[at_++];
      Statement statement;
      if (chunk.kind == Chunk::Kind::kText) {
        statement.text = chunk.text;
      } else {
        TagParser tag(chunk, file_);
        if (depth > kMaxDepth) tag.fail("blocks nested at most 64 deep");
        if (chunk.kind == Chunk::Kind::kOutput) {
          statement.kind = Statement::Kind::kOutput;
          statement.expressions.push_back(tag.expression());
          tag.end();
        } else {
          const std::string name = tag.name();
          if (name == "for") {
            statement = loop(tag, depth);
          } else if (name == "if") {
            statement = choice(tag, depth);
          } else if (name == "set") {
            statement = assignment(tag);
          } else if (name == "generation" || name == "endgeneration") {
            tag.end();  // marks what the assistant says; the text is the same
            continue;
          } else if (name == "elif" || name == "else" || name == "endif" || name == "endfor") {
            stopped_at_ = name;
            return body;
          } else {
            Place{file_, chunk.line}.fail("a supported block (for, if, set, generation)",
                                          io::quote(name));
          }
        }
      }
      body.push_back(std::move(statement));
    }
    return body;
  }

  void require_stop(const TagParser& tag, const char* name) const {
    if (stopped_at_ != name) tag.fail(std::string("a block that ends with ") + name);
  }

  Statement loop(TagParser& tag, int depth) {
    Statement result;
    result.kind = Statement::Kind::kFor;
    do {
      result.targets.push_back(tag.name());
    } while (tag.take_operator(","));
    tag.expect("in");
    result.expressions.push_back(tag.iterable());
    if (tag.take_name("if")) result.expressions.push_back(tag.expression());
    tag.end();
    result.bodies.push_back(statements(depth + 1));
    if (stopped_at_ == "else") result.bodies.push_back(statements(depth + 1));
    require_stop(tag, "endfor");
    stopped_at_.clear();
    return result;
  }

  Statement choice(TagParser& first, int depth) {
    Statement result;
    result.kind = Statement::Kind::kIf;
    result.expressions.push_back(first.expression());
    first.end();
    result.bodies.push_back(statements(depth + 1));
    while (stopped_at_ == "elif") {
      TagParser tag(chunks_[at_ - 1], file_);
      tag.expect("elif");
      result.expressions.push_back(tag.expression());
      tag.end();
      result.bodies.push_back(statements(depth + 1));
    }
    if (stopped_at_ == "else") result.bodies.push_back(statements(depth + 1));
    require_stop(first, "endif");
    stopped_at_.clear();
    return result;
  }

  Statement assignment(TagParser& tag) const {
    Statement result;
    result.kind = Statement::Kind::kSet;
    result.targets.push_back(tag.name());
    if (tag.take_operator(".")) result.targets.push_back(tag.name());
    tag.expect("=");
    result.expressions.push_back(tag.expression());
    tag.end();
    return result;
  }

  const std::string& file_;
  std::vector<Chunk> chunks_;
  size_t at_ = 0;
  std::string stopped_at_;
};

}  // namespace

std::vector<Statement> parse(const std::string& source, const std::string& file) {
  return TemplateParser(source, file).run();
}

}  // namespace lowbit::text::jinja
