// A file that appears under its name complete, or not at all.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace lowbit::io {

/// Created under a temporary name next to `path`; commit() gives it its final name, the destructor
/// removes it otherwise.
class AtomicFile {
 public:
  /// Throws IoError (also every other member that writes).
  explicit AtomicFile(const std::string& path);
  ~AtomicFile();
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;

  void write(const void* data, size_t size);
  void write(std::string_view text) { write(text.data(), text.size()); }
  /// Appends [offset, offset + size) of another such file.
  void append(const AtomicFile& source, size_t offset, size_t size);
  size_t size() const noexcept { return size_; }

  /// Makes the bytes durable and closes the file: all that can still fail is the rename.
  void seal();
  /// Seals, renames to `final_path` (in the same folder) and makes the new name durable.
  void commit(const std::string& final_path);

 private:
  [[noreturn]] void fail(const char* operation) const;

  std::string path_;       // as errors name it
  std::string temporary_;  // empty once committed
  int fd_ = -1;
  size_t size_ = 0;
};

}  // namespace lowbit::io
