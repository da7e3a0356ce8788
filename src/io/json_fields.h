// Typed, range-checked access to the fields of a JSON object. Null and missing are the same, as in
// Python's configs.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace lowbit::io {

class JsonFields {
 public:
  /// `json` must be an object (FormatError otherwise) and outlive this. `path` is its JSON path,
  /// empty at the root.
  JsonFields(const nlohmann::json& json, std::string file, std::string path = "");

  /// Null when the field is missing or null.
  const nlohmann::json* find(const char* key) const;
  bool contains(const char* key) const { return find(key) != nullptr; }

  std::optional<bool> boolean(const char* key) const;
  std::optional<std::string> string(const char* key) const;
  std::optional<int64_t> integer(const char* key, int64_t low, int64_t high) const;
  std::optional<double> number(const char* key, double low, double high) const;
  std::optional<std::vector<std::string>> strings(const char* key) const;
  /// An integer or a list of them.
  std::vector<int64_t> integers(const char* key, int64_t low, int64_t high) const;
  std::optional<JsonFields> object(const char* key) const;
  int64_t required_integer(const char* key, int64_t low, int64_t high) const;

  [[noreturn]] void fail(const std::string& key, const std::string& expected,
                         const std::string& found) const;

 private:
  int64_t to_integer(const char* key, const nlohmann::json& value, int64_t low, int64_t high) const;

  const nlohmann::json& json_;
  std::string file_;
  std::string path_;
};

/// The value as a message shows it: short, one line.
std::string json_text(const nlohmann::json& value);

}  // namespace lowbit::io
