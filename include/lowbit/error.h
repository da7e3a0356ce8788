// What lowbit throws from the torch-free layers (io, text). The torch layers throw c10::Error.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace lowbit {

/// A file or text that cannot be used: what() names the file, where (byte offset or JSON path),
/// what was expected and what was found. No state changes before it is thrown.
class FormatError : public std::runtime_error {
 public:
  FormatError(std::string file, std::string where, std::string expected, std::string found)
      : std::runtime_error(file + ": " + where + ": expected " + expected + ", found " + found),
        file_(std::move(file)),
        where_(std::move(where)) {}
  const std::string& file() const noexcept { return file_; }
  const std::string& where() const noexcept { return where_; }

 private:
  std::string file_, where_;
};

/// The operating system refused: what() names the path, the operation and the system's reason.
class IoError : public std::runtime_error {
 public:
  IoError(std::string path, std::string operation, int error_number);
  int error_number() const noexcept { return error_number_; }

 private:
  int error_number_;
};

}  // namespace lowbit
