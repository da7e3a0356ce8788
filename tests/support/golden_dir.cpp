#include "support/golden_dir.h"

#include <cstdlib>

std::string lowbit::test::golden_dir() {
  const char* given = std::getenv("LOWBIT_GOLDEN_DIR");
  return given != nullptr && *given != '\0' ? given : LOWBIT_GOLDEN_DIR;
}
