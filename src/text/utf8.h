// UTF-8, strictly: what every other part of the text room stands on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lowbit::text {

enum class Utf8State { kValid, kInvalid, kIncomplete };

/// What stands at the front of some bytes. kInvalid: `length` bytes make one U+FFFD (the maximal
/// subpart of the Unicode standard, section 3.9); kIncomplete: the bytes end inside a character
/// that may still become valid.
struct Utf8Step {
  Utf8State state;
  uint32_t length;
  char32_t codepoint;
};

/// `bytes` must not be empty.
Utf8Step utf8_step(std::string_view bytes) noexcept;

void append_utf8(std::string& out, char32_t codepoint);
bool is_valid_utf8(std::string_view bytes) noexcept;

/// Moves the finished part of `bytes` to `out`, each broken sequence as U+FFFD, and leaves an
/// unfinished last character in `bytes`; with `last`, an unfinished one is broken too and nothing
/// is left.
void drain_utf8(std::string& bytes, std::string& out, bool last);

/// `bytes` with each broken sequence replaced by U+FFFD.
std::string to_valid_utf8(std::string_view bytes);

/// Bytes of the character that starts with `lead` in valid UTF-8.
inline uint32_t utf8_length(char lead) noexcept {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

/// The Unicode property White_Space.
bool is_white_space(char32_t codepoint) noexcept;
/// General category Nd, Nl or No.
bool is_numeric(char32_t codepoint) noexcept;

}  // namespace lowbit::text
