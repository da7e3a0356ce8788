// The tokens that a model expects around a text.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "text/json_cursor.h"

namespace lowbit::text {

struct PostProcessor {
  /// null, ByteLevel (which changes offsets only), TemplateProcessing for single texts, Sequence;
  /// FormatError names any other kind, and a template whose special tokens are not listed.
  static PostProcessor from_json(const std::optional<Json>& json);

  std::vector<int64_t> before, after;
};

}  // namespace lowbit::text
