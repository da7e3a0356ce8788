#include "io/atomic_file.h"
#include "lowbit/error.h"
#include "lowbit/io/mapped_file.h"
#include "lowbit/io/safetensors.h"

namespace lowbit::io {

void write_text_file(const std::string& path, const std::string& text) {
  AtomicFile file(path);
  file.write(text);
  file.commit(path);
}

std::string read_text_file(const std::string& path, size_t limit) {
  const auto mapping = MappedFile::open(path);
  if (mapping->size() > limit) {
    throw FormatError(path, "size", "at most " + std::to_string(limit) + " bytes",
                      std::to_string(mapping->size()));
  }
  return {reinterpret_cast<const char*>(mapping->data()), mapping->size()};
}

}  // namespace lowbit::io
