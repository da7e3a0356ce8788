// JSON values that know where they stand, so that every complaint names file and place.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "io/quote.h"
#include "lowbit/error.h"

namespace lowbit::text {

using io::quote;

/// A borrowed value with its file and path ("model.merges[3]"). Every getter throws FormatError on
/// another kind.
class Json {
 public:
  Json(const nlohmann::json& value, std::string file, std::string path = "$")
      : value_(&value), file_(std::move(file)), path_(std::move(path)) {}

  const nlohmann::json& value() const noexcept { return *value_; }
  const std::string& file() const noexcept { return file_; }
  const std::string& path() const noexcept { return path_; }

  /// The member `key`; none when it is missing or null.
  std::optional<Json> find(const std::string& key) const;
  Json at(const std::string& key) const;
  Json operator[](size_t index) const;
  /// Number of elements of an array.
  size_t size() const;

  std::string string() const;
  bool boolean() const;
  int64_t integer(int64_t low, int64_t high) const;
  /// A string that is one character.
  char32_t character() const;

  bool boolean(const std::string& key, bool fallback) const;
  std::string string(const std::string& key, const std::string& fallback) const;

  [[noreturn]] void fail(const std::string& expected) const;

 private:
  const nlohmann::json* value_;
  std::string file_, path_;
};

}  // namespace lowbit::text
