#include "io/quote.h"

namespace lowbit::io {

std::string quote(std::string_view text) {
  constexpr size_t kLimit = 120;
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "`";
  for (const char c : text.substr(0, kLimit)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    } else {
      out += c;
    }
  }
  if (text.size() > kLimit) {
    while (!out.empty() && (static_cast<unsigned char>(out.back()) & 0x80)) out.pop_back();
    out += "...";
  }
  return out + "`";
}

}  // namespace lowbit::io
