#include "text/utf8.h"

#include <utf8proc.h>

namespace lowbit::text {

Utf8Step utf8_step(std::string_view bytes) noexcept {
  const auto at = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned char lead = at(0);
  if (lead < 0x80) return {Utf8State::kValid, 1, lead};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8State::kInvalid, 1, 0xFFFD};
  const uint32_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte is narrower where overlong forms, surrogates and values above U+10FFFF lie.
  unsigned char low = 0x80, high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  char32_t codepoint = lead & (0x7F >> length);
  for (uint32_t i = 1; i < length; ++i) {
    if (i >= bytes.size()) return {Utf8State::kIncomplete, i, 0xFFFD};
    if (at(i) < low || at(i) > high) return {Utf8State::kInvalid, i, 0xFFFD};
    codepoint = codepoint << 6 | (at(i) & 0x3F);
    low = 0x80, high = 0xBF;
  }
  return {Utf8State::kValid, length, codepoint};
}

void append_utf8(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
    return;
  }
  const int length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  out += static_cast<char>((0xF00 >> length) | (c >> (6 * (length - 1))));
  for (int i = length - 2; i >= 0; --i) out += static_cast<char>(0x80 | (c >> (6 * i) & 0x3F));
}

bool is_valid_utf8(std::string_view bytes) noexcept {
  while (!bytes.empty()) {
    const Utf8Step step = utf8_step(bytes);
    if (step.state != Utf8State::kValid) return false;
    bytes.remove_prefix(step.length);
  }
  return true;
}

void drain_utf8(std::string& bytes, std::string& out, bool last) {
  std::string_view rest = bytes;
  while (!rest.empty()) {
    const Utf8Step step = utf8_step(rest);
    if (step.state == Utf8State::kIncomplete && !last) break;
    if (step.state == Utf8State::kValid) {
      out.append(rest.substr(0, step.length));
    } else {
      append_utf8(out, 0xFFFD);
    }
    rest.remove_prefix(step.length);
  }
  bytes.erase(0, bytes.size() - rest.size());
}

std::string to_valid_utf8(std::string_view bytes) {
  std::string rest(bytes), out;
  out.reserve(bytes.size());
  drain_utf8(rest, out, true);
  return out;
}

bool is_white_space(char32_t c) noexcept {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_numeric(char32_t c) noexcept {
  if (c < 0x80) return c >= '0' && c <= '9';
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
         category == UTF8PROC_CATEGORY_NO;
}

}  // namespace lowbit::text
