// The filters, tests, methods and functions that chat templates call, as Jinja and Python define
// them.
#include <algorithm>
#include <ctime>

#include "io/json.h"
#include "io/quote.h"
#include "text/jinja_tree.h"
#include "text/utf8.h"

namespace lowbit::text::jinja {
namespace {

constexpr int64_t kMaxRange = 100000;

const std::string& text_of(const Value& value, const Place& place) {
  if (!value.is_string())
    place.fail("a string", is_undefined(value) ? "an undefined value" : io::json_kind(value));
  return value.get_ref<const std::string&>();
}

const Value& argument(const Arguments& arguments, size_t index, const Place& place) {
  if (index >= arguments.positional.size()) place.fail("another argument", "none");
  return arguments.positional[index];
}

/// What Python's str.strip takes away: white space, or any of the characters given.
std::string strip(const std::string& text, const Arguments& arguments, bool left, bool right,
                  const Place& place) {
  const bool given = !arguments.positional.empty();
  const std::string set = given ? text_of(arguments.positional[0], place) : "";
  const auto goes = [&](std::string_view character) {
    if (given) return set.find(character) != std::string::npos;
    const char32_t c = utf8_step(character).codepoint;
    return is_white_space(c) || (c >= 0x1C && c <= 0x1F);
  };
  std::string_view rest = text;
  while (left && !rest.empty() && goes(rest.substr(0, utf8_length(rest[0]))))
    rest.remove_prefix(utf8_length(rest[0]));
  while (right && !rest.empty()) {
    size_t last = rest.size() - 1;
    while (last > 0 && (rest[last] & 0xC0) == 0x80) --last;
    if (!goes(rest.substr(last))) break;
    rest.remove_suffix(rest.size() - last);
  }
  return std::string(rest);
}

std::string ascii_case(const std::string& text, bool upper, const Place& place) {
  std::string out = text;
  for (char& c : out) {
    if (c & 0x80) place.fail("ASCII letters for a change of case", io::quote(text));
    if (upper ? c >= 'a' && c <= 'z' : c >= 'A' && c <= 'Z') c ^= 0x20;
  }
  return out;
}

std::string replace(const std::string& text, const std::string& from, const std::string& to,
                    const Place& place) {
  if (from.empty()) place.fail("something to replace", "an empty string");
  std::string out;
  size_t begin = 0;
  for (size_t at; (at = text.find(from, begin)) != std::string::npos; begin = at + from.size()) {
    out.append(text, begin, at - begin).append(to);
  }
  return out.append(text, begin);
}

Value split(const std::string& text, const std::string& separator, const Place& place) {
  if (separator.empty()) place.fail("a separator", "an empty string");
  Value parts = Value::array();
  size_t begin = 0;
  for (size_t at; (at = text.find(separator, begin)) != std::string::npos;
       begin = at + separator.size()) {
    parts.push_back(text.substr(begin, at - begin));
  }
  parts.push_back(text.substr(begin));
  return parts;
}

int64_t length(const Value& value, const Place& place) {
  if (value.is_structured()) return static_cast<int64_t>(value.size());
  const std::string& text = text_of(value, place);
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

}  // namespace

bool truth(const Value& value) {
  if (value.is_string() || value.is_structured()) {
    return value.is_string() ? !value.get_ref<const std::string&>().empty() : !value.empty();
  }
  if (value.is_boolean()) return value.get<bool>();
  return value.is_number() && value.get<double>() != 0;
}

std::string to_string(const Value& value, const Place& place) {
  if (is_undefined(value)) return "";
  if (value.is_null()) return "None";
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_integer()) return value.dump();
  place.fail("a string or an integer to write", io::json_kind(value));
}

Value filter(const Value& subject, const std::string& name, const Arguments& arguments,
             const Place& place) {
  if (name == "trim") return strip(to_string(subject, place), arguments, true, true, place);
  if (name == "length" || name == "count") return length(subject, place);
  if (name == "upper" || name == "lower")
    return ascii_case(to_string(subject, place), name == "upper", place);
  if (name == "string") return to_string(subject, place);
  if (name == "safe") return subject;
  if (name == "int" && subject.is_number_integer()) return subject;
  if (name == "list" && subject.is_array()) return subject;
  if (name == "replace") {
    return replace(to_string(subject, place), text_of(argument(arguments, 0, place), place),
                   text_of(argument(arguments, 1, place), place), place);
  }
  if (name == "default" || name == "d") {
    const bool also_false = arguments.positional.size() > 1 && truth(arguments.positional[1]);
    if (!is_undefined(subject) && !(also_false && !truth(subject))) return subject;
    return arguments.positional.empty() ? Value("") : arguments.positional[0];
  }
  if ((name == "first" || name == "last") && subject.is_array()) {
    if (subject.empty()) return undefined();
    return name == "first" ? subject.front() : subject.back();
  }
  if (name == "join" && subject.is_array()) {
    const std::string glue =
        arguments.positional.empty() ? "" : text_of(arguments.positional[0], place);
    std::string out;
    for (size_t i = 0; i < subject.size(); ++i)
      out += (i ? glue : "") + to_string(subject[i], place);
    return out;
  }
  place.fail("a supported filter for this value", io::quote(name));
}

bool test(const Value& subject, const std::string& name, const Arguments& arguments,
          const Place& place) {
  if (name == "defined") return !is_undefined(subject);
  if (name == "undefined") return is_undefined(subject);
  if (name == "none") return subject.is_null();
  if (name == "string") return subject.is_string();
  if (name == "mapping") return subject.is_object();
  if (name == "sequence" || name == "iterable") {
    return subject.is_string() || subject.is_structured() || is_undefined(subject);
  }
  if (name == "boolean") return subject.is_boolean();
  if (name == "true") return subject.is_boolean() && subject.get<bool>();
  if (name == "false") return subject.is_boolean() && !subject.get<bool>();
  if (name == "integer") return subject.is_number_integer();
  if (name == "number") return subject.is_number() || subject.is_boolean();
  if ((name == "odd" || name == "even") && subject.is_number_integer()) {
    return (subject.get<int64_t>() % 2 != 0) == (name == "odd");
  }
  if (name == "equalto" || name == "eq") return subject == argument(arguments, 0, place);
  place.fail("a supported test for this value", io::quote(name));
}

Value method(const Value& subject, const std::string& name, const Arguments& arguments,
             const Place& place) {
  const auto text = [&]() -> const std::string& { return text_of(subject, place); };
  const auto word = [&](size_t i) -> const std::string& {
    return text_of(argument(arguments, i, place), place);
  };
  if (subject.is_string()) {
    if (name == "strip") return strip(text(), arguments, true, true, place);
    if (name == "lstrip") return strip(text(), arguments, true, false, place);
    if (name == "rstrip") return strip(text(), arguments, false, true, place);
    if (name == "startswith") return text().starts_with(word(0));
    if (name == "endswith") return text().ends_with(word(0));
    if (name == "upper" || name == "lower") return ascii_case(text(), name == "upper", place);
    if (name == "replace" && arguments.positional.size() == 2)
      return replace(text(), word(0), word(1), place);
    if (name == "split" && arguments.positional.size() == 1) return split(text(), word(0), place);
  }
  if (subject.is_object()) {
    if (name == "items") {
      Value items = Value::array();
      for (const auto& [key, value] : subject.items()) items.push_back(Value::array({key, value}));
      return items;
    }
    if (name == "keys") {
      Value keys = Value::array();
      for (const auto& [key, value] : subject.items()) keys.push_back(key);
      return keys;
    }
    if (name == "get") {
      const auto it = subject.find(word(0));
      if (it != subject.end()) return *it;
      return arguments.positional.size() > 1 ? arguments.positional[1] : Value(nullptr);
    }
  }
  place.fail("a supported method of this value", io::quote(name));
}

bool is_function(const std::string& name) {
  return name == "namespace" || name == "raise_exception" || name == "range" || name == "dict" ||
         name == "strftime_now";
}

Value function(const std::string& name, const Arguments& arguments, const Place& place) {
  if (name == "namespace" || name == "dict") return arguments.named;
  if (name == "raise_exception") {
    place.fail("a conversation that the template accepts",
               text_of(argument(arguments, 0, place), place));
  }
  if (name == "strftime_now") {
    const std::time_t now = std::time(nullptr);
    std::tm local{};
    localtime_r(&now, &local);
    char buffer[256];
    const size_t size = std::strftime(
        buffer, sizeof(buffer), text_of(argument(arguments, 0, place), place).c_str(), &local);
    return std::string(buffer, size);
  }
  if (name == "range") {
    int64_t bounds[3] = {0, 0, 1};
    const size_t count = arguments.positional.size();
    if (count < 1 || count > 3)
      place.fail("one to three arguments of range", std::to_string(count));
    for (size_t i = 0; i < count; ++i) {
      if (!arguments.positional[i].is_number_integer())
        place.fail("integers", io::json_kind(arguments.positional[i]));
      bounds[count == 1 ? 1 : i] = arguments.positional[i].get<int64_t>();
    }
    Value list = Value::array();
    if (bounds[2] == 0) place.fail("a step", "0");
    for (int64_t i = bounds[0]; bounds[2] > 0 ? i < bounds[1] : i > bounds[1];) {
      if (list.size() >= kMaxRange) place.fail("at most 100000 numbers of range", "more");
      list.push_back(i);
      if (__builtin_add_overflow(i, bounds[2], &i)) break;
    }
    return list;
  }
  place.fail("a supported function (namespace, raise_exception, range, dict, strftime_now)",
             io::quote(name));
}

}  // namespace lowbit::text::jinja
