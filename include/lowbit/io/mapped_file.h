// A read-only memory mapping of a whole file.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace lowbit::io {

/// Shared ownership keeps the mapping alive for every tensor that points into it. A file that is
/// replaced or removed meanwhile keeps its bytes; one that somebody shortens in place raises
/// SIGBUS.
class MappedFile {
 public:
  /// Throws IoError when the file cannot be opened or mapped. An empty file maps to size 0.
  static std::shared_ptr<const MappedFile> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const noexcept { return data_; }
  size_t size() const noexcept { return size_; }
  const std::string& path() const noexcept { return path_; }
  /// Tells the system that [offset, offset + length) is not needed soon (its pages may be dropped).
  void release(size_t offset, size_t length) const noexcept;

 private:
  MappedFile() = default;
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace lowbit::io
