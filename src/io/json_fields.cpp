#include "io/json_fields.h"

#include <cmath>
#include <limits>
#include <utility>

#include "io/json.h"
#include "io/quote.h"
#include "lowbit/error.h"

namespace lowbit::io {

using Json = nlohmann::json;

JsonFields::JsonFields(const Json& json, std::string file, std::string path)
    : json_(json), file_(std::move(file)), path_(std::move(path)) {
  if (!json.is_object()) {
    throw FormatError(file_, path_.empty() ? "JSON" : quote(path_), "an object", json_kind(json));
  }
}

void JsonFields::fail(const std::string& key, const std::string& expected,
                      const std::string& found) const {
  throw FormatError(file_, quote(path_.empty() ? key : path_ + "." + key), expected, found);
}

const Json* JsonFields::find(const char* key) const {
  const auto it = json_.find(key);
  return it == json_.end() || it->is_null() ? nullptr : &*it;
}

std::optional<bool> JsonFields::boolean(const char* key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) fail(key, "true or false", json_text(*value));
  return value->get<bool>();
}

std::optional<std::string> JsonFields::string(const char* key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) fail(key, "a string", json_text(*value));
  return value->get<std::string>();
}

int64_t JsonFields::to_integer(const char* key, const Json& value, int64_t low,
                               int64_t high) const {
  const std::string range =
      "an integer from " + std::to_string(low) + " to " + std::to_string(high);
  if (!value.is_number_integer()) fail(key, range, json_text(value));
  const bool too_large =
      value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (too_large || value.get<int64_t>() < low || value.get<int64_t>() > high)
    fail(key, range, json_text(value));
  return value.get<int64_t>();
}

std::optional<int64_t> JsonFields::integer(const char* key, int64_t low, int64_t high) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  return to_integer(key, *value, low, high);
}

int64_t JsonFields::required_integer(const char* key, int64_t low, int64_t high) const {
  const std::optional<int64_t> value = integer(key, low, high);
  if (!value)
    fail(key, "an integer from " + std::to_string(low) + " to " + std::to_string(high),
         "no such field");
  return *value;
}

std::optional<double> JsonFields::number(const char* key, double low, double high) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  const double number =
      value->is_number() ? value->get<double>() : std::numeric_limits<double>::quiet_NaN();
  if (!(number >= low && number <= high)) {
    fail(key, "a number from " + json_text(low) + " to " + json_text(high), json_text(*value));
  }
  return number;
}

std::optional<std::vector<std::string>> JsonFields::strings(const char* key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array()) fail(key, "a list of strings", json_text(*value));
  std::vector<std::string> strings;
  for (const Json& item : *value) {
    if (!item.is_string()) fail(key, "a list of strings", json_text(*value));
    strings.push_back(item.get<std::string>());
  }
  return strings;
}

std::vector<int64_t> JsonFields::integers(const char* key, int64_t low, int64_t high) const {
  const Json* value = find(key);
  if (value == nullptr) return {};
  if (!value->is_array()) return {to_integer(key, *value, low, high)};
  std::vector<int64_t> integers;
  for (const Json& item : *value) integers.push_back(to_integer(key, item, low, high));
  return integers;
}

std::optional<JsonFields> JsonFields::object(const char* key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  return JsonFields(*value, file_, path_.empty() ? key : path_ + "." + key);
}

std::string json_text(const Json& value) {
  if (value.is_structured()) return json_kind(value);
  if (value.is_string()) return quote(value.get_ref<const std::string&>());
  return value.dump();
}

}  // namespace lowbit::io
