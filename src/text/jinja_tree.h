// A parsed Jinja template.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lowbit/error.h"

namespace lowbit::text::jinja {

using Value = nlohmann::json;
/// What a name stands for that nobody defined.
inline Value undefined() { return Value(Value::value_t::discarded); }
inline bool is_undefined(const Value& value) { return value.is_discarded(); }

struct Expression {
  enum class Kind {
    kLiteral,      // value
    kName,         // name
    kList,         // parts
    kDict,         // parts: key, value, key, value, ...
    kAttribute,    // parts[0].name
    kIndex,        // parts[0][parts[1]]
    kSlice,        // parts[0][parts[1]:parts[2]:parts[3]], absent bounds are null literals
    kCall,         // parts[0](arguments)
    kFilter,       // parts[0] | name(arguments)
    kTest,         // parts[0] is name(arguments)
    kUnary,        // name: "not", "-"
    kBinary,       // name: the operator
    kConditional,  // parts[1] if parts[0] else parts[2]
  };
  Kind kind = Kind::kLiteral;
  int line = 0;
  std::string name;
  Value value;
  std::vector<Expression> parts;  // of calls, filters and tests: the subject, then the arguments
  std::vector<std::string> keywords;  // of those arguments, "" for positional ones
};

struct Statement {
  enum class Kind {
    kText,    // text
    kOutput,  // expressions[0]
    kFor,     // for targets in expressions[0] (if expressions[1]): bodies[0], else bodies[1]
    kIf,      // if expressions[i]: bodies[i]; one more body: else
    kSet,     // targets[0] or targets[0].targets[1] = expressions[0]
  };
  Kind kind = Kind::kText;
  std::string text;
  std::vector<std::string> targets;
  std::vector<Expression> expressions;
  std::vector<std::vector<Statement>> bodies;
};

/// FormatError for what is no template, or has constructs outside the known part.
std::vector<Statement> parse(const std::string& source, const std::string& file);

/// `subject | name(arguments)`, `subject is name(arguments)`, `subject.name(arguments)`,
/// `name(arguments)`. FormatError for what is not known or does not fit.
struct Arguments {
  std::vector<Value> positional;
  Value named = Value::object();
};
/// Where an error is: the template and the line.
struct Place {
  const std::string& file;
  int line;
  [[noreturn]] void fail(const std::string& expected, const std::string& found) const {
    throw FormatError(file, "chat template, line " + std::to_string(line), expected, found);
  }
};
Value filter(const Value& subject, const std::string& name, const Arguments& arguments,
             const Place& place);
bool test(const Value& subject, const std::string& name, const Arguments& arguments,
          const Place& place);
Value method(const Value& subject, const std::string& name, const Arguments& arguments,
             const Place& place);
Value function(const std::string& name, const Arguments& arguments, const Place& place);
/// Whether a function of this name exists ("strftime_now is defined").
bool is_function(const std::string& name);

bool truth(const Value& value);
/// As Python's str() shows it; nothing for undefined.
std::string to_string(const Value& value, const Place& place);

}  // namespace lowbit::text::jinja
