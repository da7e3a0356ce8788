#include <limits>
#include <string>
#include <variant>

#include "io/quote.h"
#include "lowbit/error.h"
#include "lowbit/io/gguf.h"

namespace lowbit::io {

namespace {

[[noreturn]] void fail_value(const GgufFile& file, const std::string& key, const char* expected) {
  throw FormatError(file.path(), "metadata " + quote(key), expected,
                    file.contains(key) ? "another kind of value" : "no such key");
}

const GgufValue* find_value(const GgufFile& file, const std::string& key) {
  const auto it = file.metadata().find(key);
  return it == file.metadata().end() ? nullptr : &it->second;
}

}  // namespace

std::string GgufFile::get_string(const std::string& key) const {
  const GgufValue* value = find_value(*this, key);
  const auto* text = value == nullptr ? nullptr : std::get_if<std::string>(value);
  if (text == nullptr) fail_value(*this, key, "a string");
  return *text;
}

int64_t GgufFile::get_int(const std::string& key) const {
  if (const GgufValue* value = find_value(*this, key)) {
    if (const auto* number = std::get_if<int64_t>(value)) return *number;
    const auto* number = std::get_if<uint64_t>(value);
    if (number != nullptr &&
        *number <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return static_cast<int64_t>(*number);
    }
  }
  fail_value(*this, key, "an integer that fits 63 bits");
}

double GgufFile::get_float(const std::string& key) const {
  if (const GgufValue* value = find_value(*this, key)) {
    if (const auto* number = std::get_if<double>(value)) return *number;
    if (const auto* number = std::get_if<int64_t>(value)) return static_cast<double>(*number);
    if (const auto* number = std::get_if<uint64_t>(value)) return static_cast<double>(*number);
  }
  fail_value(*this, key, "a number");
}

std::string GgufFile::get_string(const std::string& key, const std::string& fallback) const {
  return contains(key) ? get_string(key) : fallback;
}

int64_t GgufFile::get_int(const std::string& key, int64_t fallback) const {
  return contains(key) ? get_int(key) : fallback;
}

double GgufFile::get_float(const std::string& key, double fallback) const {
  return contains(key) ? get_float(key) : fallback;
}

bool GgufFile::get_bool(const std::string& key, bool fallback) const {
  const GgufValue* value = find_value(*this, key);
  if (value == nullptr) return fallback;
  const auto* flag = std::get_if<bool>(value);
  if (flag == nullptr) fail_value(*this, key, "a boolean");
  return *flag;
}

}  // namespace lowbit::io
