#include "text/json_cursor.h"

#include "io/json.h"
#include "text/utf8.h"

namespace lowbit::text {
namespace {

std::string describe(const nlohmann::json& value) {
  if (value.is_string()) return quote(value.get_ref<const std::string&>());
  return value.is_structured() ? io::json_kind(value) : value.dump();
}

}  // namespace

std::optional<Json> Json::find(const std::string& key) const {
  if (!value_->is_object()) fail("an object");
  const auto it = value_->find(key);
  if (it == value_->end() || it->is_null()) return std::nullopt;
  return Json(*it, file_, path_ + "." + key);
}

Json Json::at(const std::string& key) const {
  if (auto member = find(key)) return *member;
  throw FormatError(file_, path_ + "." + key, "a value", "nothing");
}

Json Json::operator[](size_t index) const {
  return Json(value_->at(index), file_, path_ + "[" + std::to_string(index) + "]");
}

size_t Json::size() const {
  if (!value_->is_array()) fail("an array");
  return value_->size();
}

std::string Json::string() const {
  if (!value_->is_string()) fail("a string");
  return value_->get<std::string>();
}

bool Json::boolean() const {
  if (!value_->is_boolean()) fail("true or false");
  return value_->get<bool>();
}

int64_t Json::integer(int64_t low, int64_t high) const {
  const auto range = [&] {
    return "an integer from " + std::to_string(low) + " to " + std::to_string(high);
  };
  if (!value_->is_number_integer()) fail(range());
  // Above int64 the value is stored unsigned, and get<int64_t> would wrap.
  if (value_->is_number_unsigned() && value_->get<uint64_t>() > uint64_t{INT64_MAX}) fail(range());
  const auto number = value_->get<int64_t>();
  if (number < low || number > high) fail(range());
  return number;
}

char32_t Json::character() const {
  const std::string text = string();
  if (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    if (step.state == Utf8State::kValid && step.length == text.size()) return step.codepoint;
  }
  fail("one character");
}

bool Json::boolean(const std::string& key, bool fallback) const {
  const auto member = find(key);
  return member ? member->boolean() : fallback;
}

std::string Json::string(const std::string& key, const std::string& fallback) const {
  const auto member = find(key);
  return member ? member->string() : fallback;
}

void Json::fail(const std::string& expected) const {
  throw FormatError(file_, path_, expected, describe(*value_));
}

}  // namespace lowbit::text
