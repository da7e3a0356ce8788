// How names and other text of a file appear in messages.
#pragma once

#include <string>
#include <string_view>

namespace lowbit::io {

/// `text` between backquotes, on one line and short: control bytes are escaped, a long text is cut.
std::string quote(std::string_view text);

}  // namespace lowbit::io
