#include "lowbit/error.h"

#include <cstring>

namespace lowbit {

IoError::IoError(std::string path, std::string operation, int error_number)
    : std::runtime_error(path + ": " + operation + ": " + std::strerror(error_number)),
      error_number_(error_number) {}

}  // namespace lowbit
