// The text of what a call throws.
#pragma once

#include <c10/util/Exception.h>

#include <string>

namespace lowbit::test {

/// The first line of the c10::Error that `call` throws; "(nothing was thrown)" when it returns.
template <class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    return text.substr(0, text.find('\n'));
  }
  return "(nothing was thrown)";
}

}  // namespace lowbit::test
