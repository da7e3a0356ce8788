// GGUF bytes put together by hand, right or wrong.
#pragma once

#include <cstring>
#include <memory>
#include <string>

#include "lowbit/io/gguf.h"

namespace lowbit::io {

class GgufBytes {
 public:
  template <typename T>
  GgufBytes& put(T value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));
    return *this;
  }
  GgufBytes& put_string(const std::string& text) {
    put<uint64_t>(text.size());
    bytes += text;
    return *this;
  }
  GgufBytes& header(uint64_t tensors, uint64_t values, uint32_t version = 3) {
    bytes += "GGUF";
    return put(version).put(tensors).put(values);
  }
  GgufBytes& value_u32(const std::string& key, uint32_t value) {
    return put_string(key).put<uint32_t>(4).put(value);
  }
  GgufBytes& value_f32(const std::string& key, float value) {
    return put_string(key).put<uint32_t>(6).put(value);
  }
  GgufBytes& value_string(const std::string& key, const std::string& value) {
    return put_string(key).put<uint32_t>(8).put_string(value);
  }
  /// `extents` innermost first, as the file has them.
  GgufBytes& tensor(const std::string& name, std::initializer_list<uint64_t> extents, uint32_t type,
                    uint64_t offset) {
    put_string(name).put(static_cast<uint32_t>(extents.size()));
    for (const uint64_t extent : extents) put(extent);
    return put(type).put(offset);
  }
  GgufBytes& data(size_t size, size_t alignment = 32) {
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
    bytes.append(size, '\x11');
    return *this;
  }
  GgufFile parse() const {
    // An exact copy on the heap, so that a sanitizer sees a read past its end.
    const std::shared_ptr<char[]> copy(new char[bytes.size()]);
    std::memcpy(copy.get(), bytes.data(), bytes.size());
    return GgufFile::parse(copy, reinterpret_cast<const std::byte*>(copy.get()), bytes.size(),
                           "test.gguf");
  }

  std::string bytes;
};

}  // namespace lowbit::io
