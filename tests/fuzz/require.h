// What must hold whatever the input: a broken promise is a crash for the fuzzer and a failure for a
// replay.
#pragma once

#include <stdexcept>

namespace lowbit::fuzz {

inline void require(bool condition, const char* what) {
  if (!condition) throw std::logic_error(what);
}

}  // namespace lowbit::fuzz
