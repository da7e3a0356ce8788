// JSON of unknown origin into a tree: bounded depth, no duplicate keys, errors that say where.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace lowbit::io {

/// Throws FormatError naming the file `name` and the byte of `what` (syntax) or the JSON path
/// (depth, duplicate key).
nlohmann::json parse_json(std::string_view text, const std::string& name,
                          const std::string& what = "JSON");

/// "an object", "a string", ... for messages.
const char* json_kind(const nlohmann::json& value) noexcept;

}  // namespace lowbit::io
