// Where the golden data are.
#pragma once

#include <string>

namespace lowbit::test {

/// LOWBIT_GOLDEN_DIR of the environment, for programs that run on another machine; else the folder
/// of the source tree that they were built from.
std::string golden_dir();

}  // namespace lowbit::test
