// Jinja source as text and tags, and tags as tokens.
#pragma once

#include <string>
#include <vector>

namespace lowbit::text::jinja {

struct Token {
  enum class Kind { kEnd, kName, kString, kInteger, kFloat, kOperator };
  Kind kind = Kind::kEnd;
  std::string text;
};

/// A stretch of the source: plain text, {{ output }} or {% block %}; comments are gone, white space
/// control is done.
struct Chunk {
  enum class Kind { kText, kOutput, kBlock };
  Kind kind = Kind::kText;
  int line = 1;
  std::string text;           // kText
  std::vector<Token> tokens;  // the others; a kEnd is last
};

std::vector<Chunk> lex(const std::string& source, const std::string& file);

}  // namespace lowbit::text::jinja
