// Runs a parsed template.
#include "text/jinja.h"

#include <algorithm>
#include <map>

#include "io/json.h"
#include "io/quote.h"
#include "text/jinja_tree.h"
#include "text/utf8.h"

namespace lowbit::text {
namespace jinja {
namespace {

using Kind = Expression::Kind;
// More than any conversation needs; a hostile template is stopped.
constexpr size_t kMaxSteps = 2'000'000;
constexpr size_t kMaxOutput = size_t{256} << 20;

class Runner {
 public:
  Runner(const Value& context, const std::string& file) : file_(file), scopes_(1) {
    for (const auto& [name, value] : context.items()) scopes_[0][name] = value;
  }

  std::string run(const std::vector<Statement>& statements) {
    execute(statements);
    return std::move(out_);
  }

 private:
  using Scope = std::map<std::string, Value>;

  Place place(const Expression& expression) const { return {file_, expression.line}; }

  void step(const Place& place) {
    if (++steps_ > kMaxSteps || out_.size() > kMaxOutput)
      place.fail("a template that ends", "no end in sight");
  }

  Value* find(const std::string& name) {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      if (const auto it = scope->find(name); it != scope->end()) return &it->second;
    }
    return nullptr;
  }

  void execute(const std::vector<Statement>& statements) {
    for (const Statement& statement : statements) {
      switch (statement.kind) {
        case Statement::Kind::kText:
          out_ += statement.text;
          break;
        case Statement::Kind::kOutput:
          out_ += to_string(evaluate(statement.expressions[0]), place(statement.expressions[0]));
          break;
        case Statement::Kind::kIf:
          choose(statement);
          break;
        case Statement::Kind::kFor:
          loop(statement);
          break;
        case Statement::Kind::kSet:
          assign(statement);
          break;
      }
    }
  }

  void choose(const Statement& statement) {
    for (size_t i = 0; i < statement.expressions.size(); ++i) {
      if (truth(evaluate(statement.expressions[i]))) return execute(statement.bodies[i]);
    }
    if (statement.bodies.size() > statement.expressions.size()) execute(statement.bodies.back());
  }

  void assign(const Statement& statement) {
    Value value = evaluate(statement.expressions[0]);
    if (statement.targets.size() == 1) {
      scopes_.back()[statement.targets[0]] = std::move(value);
      return;
    }
    Value* object = find(statement.targets[0]);
    if (!object || !object->is_object()) {
      place(statement.expressions[0]).fail("a namespace", io::quote(statement.targets[0]));
    }
    (*object)[statement.targets[1]] = std::move(value);
  }

  void bind(const Statement& statement, const Value& item) {
    if (statement.targets.size() == 1) {
      scopes_.back()[statement.targets[0]] = item;
      return;
    }
    if (!item.is_array() || item.size() != statement.targets.size()) {
      place(statement.expressions[0])
          .fail(std::to_string(statement.targets.size()) + " values to unpack", "another item");
    }
    for (size_t i = 0; i < item.size(); ++i) scopes_.back()[statement.targets[i]] = item[i];
  }

  void loop(const Statement& statement) {
    const Place where = place(statement.expressions[0]);
    Value items = evaluate(statement.expressions[0]);
    if (is_undefined(items)) items = Value::array();
    if (items.is_object()) items = method(items, "keys", {}, where);
    if (!items.is_array()) where.fail("a list to loop over", io::json_kind(items));
    scopes_.emplace_back();
    if (statement.expressions.size() > 1) {
      Value kept = Value::array();
      for (const Value& item : items) {
        bind(statement, item);
        if (truth(evaluate(statement.expressions[1]))) kept.push_back(item);
      }
      items = std::move(kept);
    }
    const auto count = static_cast<int64_t>(items.size());
    for (int64_t i = 0; i < count; ++i) {
      step(where);
      scopes_.back().clear();
      Value state = {{"index", i + 1},        {"index0", i},
                     {"first", i == 0},       {"last", i + 1 == count},
                     {"revindex", count - i}, {"revindex0", count - i - 1},
                     {"length", count}};
      if (i > 0) state["previtem"] = items[i - 1];
      if (i + 1 < count) state["nextitem"] = items[i + 1];
      scopes_.back()["loop"] = std::move(state);
      bind(statement, items[i]);
      execute(statement.bodies[0]);
    }
    scopes_.pop_back();
    if (count == 0 && statement.bodies.size() > 1) execute(statement.bodies[1]);
  }

  Arguments arguments(const Expression& call) {
    Arguments result;
    for (size_t i = 0; i < call.keywords.size(); ++i) {
      Value value = evaluate(call.parts[i + 1]);
      if (call.keywords[i].empty()) {
        result.positional.push_back(std::move(value));
      } else {
        result.named[call.keywords[i]] = std::move(value);
      }
    }
    return result;
  }

  Value evaluate(const Expression& e) {
    const Place where = place(e);
    step(where);
    switch (e.kind) {
      case Kind::kLiteral:
        return e.value;
      case Kind::kName:
        if (const Value* value = find(e.name)) return *value;
        // A function by its name alone: only whether it is there can be asked.
        return is_function(e.name) ? Value(true) : undefined();
      case Kind::kList: {
        Value list = Value::array();
        for (const Expression& part : e.parts) list.push_back(evaluate(part));
        return list;
      }
      case Kind::kDict: {
        Value dict = Value::object();
        for (size_t i = 0; i < e.parts.size(); i += 2) {
          const Value key = evaluate(e.parts[i]);
          if (!key.is_string()) where.fail("a string as key", "another kind");
          dict[key.get<std::string>()] = evaluate(e.parts[i + 1]);
        }
        return dict;
      }
      case Kind::kAttribute:
        return item(evaluate(e.parts[0]), Value(e.name), where);
      case Kind::kIndex:
        return item(evaluate(e.parts[0]), evaluate(e.parts[1]), where);
      case Kind::kSlice:
        return slice(e);
      case Kind::kCall:
        return call(e);
      case Kind::kFilter:
        return filter(evaluate(e.parts[0]), e.name, arguments(e), where);
      case Kind::kTest:
        return test(evaluate(e.parts[0]), e.name, arguments(e), where);
      case Kind::kUnary: {
        const Value operand = evaluate(e.parts[0]);
        if (e.name == "not") return !truth(operand);
        if (!operand.is_number_integer() || operand.get<int64_t>() == INT64_MIN)
          where.fail("an integer", "another kind");
        return -operand.get<int64_t>();
      }
      case Kind::kBinary:
        return binary(e);
      case Kind::kConditional:
        return evaluate(e.parts[truth(evaluate(e.parts[0])) ? 1 : 2]);
    }
    return undefined();
  }

  Value call(const Expression& e) {
    const Expression& callee = e.parts[0];
    if (callee.kind == Kind::kName && !find(callee.name))
      return function(callee.name, arguments(e), place(e));
    if (callee.kind != Kind::kAttribute) place(e).fail("a function or a method", "another value");
    return method(evaluate(callee.parts[0]), callee.name, arguments(e), place(e));
  }

  static Value item(const Value& object, const Value& key, const Place& where) {
    if (is_undefined(object)) where.fail("a defined value", "an undefined one");
    if (object.is_object() && key.is_string()) {
      const auto it = object.find(key.get_ref<const std::string&>());
      return it == object.end() ? undefined() : *it;
    }
    if (!key.is_number_integer() || object.is_object()) return undefined();
    if (object.is_string()) where.fail("a list or a mapping", "a string to index");
    const auto size = static_cast<int64_t>(object.is_array() ? object.size() : 0);
    const auto number = key.get<int64_t>();
    const int64_t index = number < 0 ? number + size : number;
    return index < 0 || index >= size ? undefined() : object[index];
  }

  Value slice(const Expression& e) {
    const Place where = place(e);
    const Value object = evaluate(e.parts[0]);
    if (!object.is_array() && !object.is_string()) where.fail("a list or a string", "another kind");
    // A string is cut by characters.
    std::vector<std::string> characters;
    if (object.is_string()) {
      for (std::string_view rest = object.get_ref<const std::string&>(); !rest.empty();) {
        characters.emplace_back(rest.substr(0, utf8_length(rest[0])));
        rest.remove_prefix(characters.back().size());
      }
    }
    const auto size = static_cast<int64_t>(object.is_array() ? object.size() : characters.size());
    const auto bound = [&](const Expression& part, int64_t absent, int64_t low, int64_t high) {
      const Value value = evaluate(part);
      if (value.is_null()) return absent;
      if (!value.is_number_integer()) where.fail("an integer", "another kind");
      const auto number = value.get<int64_t>();
      return std::clamp(number < 0 ? number + size : number, low, high);
    };
    const Value by = evaluate(e.parts[3]);
    const int64_t stride = by.is_null() ? 1 : by.is_number_integer() ? by.get<int64_t>() : 0;
    if (stride == 0 || stride == INT64_MIN) where.fail("a step that is not 0", "another one");
    const bool forward = stride > 0;
    const int64_t begin =
        forward ? bound(e.parts[1], 0, 0, size) : bound(e.parts[1], size - 1, -1, size - 1);
    const int64_t end =
        forward ? bound(e.parts[2], size, 0, size) : bound(e.parts[2], -1, -1, size - 1);
    Value list = Value::array();
    std::string text;
    // Past the size in one step, whatever its length.
    const int64_t pace = std::clamp(stride, -size - 1, size + 1);
    for (int64_t i = begin; forward ? i < end : i > end; i += pace) {
      if (object.is_array()) {
        list.push_back(object[i]);
      } else {
        text += characters[i];
      }
    }
    return object.is_array() ? list : Value(text);
  }

  Value binary(const Expression& e) {
    const std::string& op = e.name;
    const Place where = place(e);
    Value left = evaluate(e.parts[0]);
    if (op == "and" || op == "or") return truth(left) == (op == "or") ? left : evaluate(e.parts[1]);
    const Value right = evaluate(e.parts[1]);
    if (op == "==" || op == "!=") return equal(left, right) == (op == "==");
    if (op == "in" || op == "not in") return contains(right, left, where) == (op == "in");
    if (op == "~") return to_string(left, where) + to_string(right, where);
    if (left.is_string() && right.is_string()) {
      const auto &a = left.get_ref<const std::string&>(), &b = right.get_ref<const std::string&>();
      if (op == "+") return a + b;
      if (op == "<" || op == ">") return op == "<" ? a < b : a > b;
      if (op == "<=" || op == ">=") return op == "<=" ? a <= b : a >= b;
    }
    if (op == "+" && left.is_array() && right.is_array()) {
      left.insert(left.end(), right.begin(), right.end());
      return left;
    }
    if (left.is_number_integer() && right.is_number_integer()) {
      return arithmetic(left.get<int64_t>(), op, right.get<int64_t>(), where);
    }
    const auto kind = [](const Value& value) {
      return is_undefined(value) ? "an undefined value" : io::json_kind(value);
    };
    where.fail("operands that fit " + op, std::string(kind(left)) + " and " + kind(right));
  }

  static bool equal(const Value& a, const Value& b) {
    return is_undefined(a) || is_undefined(b) ? is_undefined(a) && is_undefined(b) : a == b;
  }

  static bool contains(const Value& container, const Value& value, const Place& where) {
    if (container.is_string() && value.is_string()) {
      return container.get_ref<const std::string&>().find(value.get_ref<const std::string&>()) !=
             std::string::npos;
    }
    if (container.is_object() && value.is_string())
      return container.contains(value.get_ref<const std::string&>());
    if (is_undefined(container)) return false;
    if (!container.is_array()) where.fail("a container that fits \"in\"", "another kind");
    return std::find(container.begin(), container.end(), value) != container.end();
  }

  static Value arithmetic(int64_t a, const std::string& op, int64_t b, const Place& where) {
    if (op == "<") return a < b;
    if (op == ">") return a > b;
    if (op == "<=") return a <= b;
    if (op == ">=") return a >= b;
    int64_t result = 0;
    bool overflow = false;
    if (op == "+") {
      overflow = __builtin_add_overflow(a, b, &result);
    } else if (op == "-") {
      overflow = __builtin_sub_overflow(a, b, &result);
    } else if (op == "*") {
      overflow = __builtin_mul_overflow(a, b, &result);
    } else if (op == "%" || op == "//") {
      if (b == 0 || (b == -1 && a == INT64_MIN))
        where.fail("a divisor that fits", std::to_string(b));
      // Python rounds down.
      const int64_t down = (a % b != 0 && (a < 0) != (b < 0)) ? 1 : 0;
      result = op == "%" ? a % b + down * b : a / b - down;
    } else {
      where.fail("an operator for integers", op);
    }
    if (overflow) where.fail("integers of 64 bits", "larger ones");
    return result;
  }

  const std::string& file_;
  std::vector<Scope> scopes_;
  std::string out_;
  size_t steps_ = 0;
};

}  // namespace
}  // namespace jinja

std::string render_jinja(const std::string& source, const nlohmann::json& context,
                         const std::string& file) {
  return jinja::Runner(context, file).run(jinja::parse(source, file));
}

}  // namespace lowbit::text
