#include "lowbit/io/safetensors.h"

#include <cstdint>

#include "io/atomic_file.h"
#include "io/quote.h"
#include "io/safetensors_header.h"
#include "lowbit/error.h"

namespace lowbit::io {

SafetensorsFile SafetensorsFile::open(const std::string& path) {
  auto mapping = MappedFile::open(path);
  SafetensorsFile file = parse(mapping, mapping->data(), mapping->size(), path);
  file.mapping_ = std::move(mapping);
  return file;
}

SafetensorsFile SafetensorsFile::parse(std::shared_ptr<const void> owner, const std::byte* data,
                                       size_t size, const std::string& name) {
  constexpr size_t kPrefix = 8;
  if (size < kPrefix) {
    throw FormatError(name, "byte 0", "8 bytes of header length",
                      std::to_string(size) + " bytes in all");
  }
  uint64_t length = 0;
  for (size_t i = 0; i < kPrefix; ++i) length |= static_cast<uint64_t>(data[i]) << (8 * i);
  if (length > kMaxSafetensorsHeader || length > size - kPrefix) {
    throw FormatError(
        name, "byte 0",
        "a header length up to " + std::to_string(std::min(kMaxSafetensorsHeader, size - kPrefix)),
        std::to_string(length) + " (cut short, or not a safetensors file)");
  }
  const std::string_view json(reinterpret_cast<const char*>(data) + kPrefix, length);
  if (json.empty() || json.front() != '{') {
    throw FormatError(name, "byte 8", "a header that begins with {", quote(json.substr(0, 1)));
  }
  const std::byte* begin = data + kPrefix + length;
  SafetensorsHeader header = parse_safetensors_header(json, size - kPrefix - length, name);

  SafetensorsFile file;
  file.path_ = name;
  file.has_metadata_ = header.metadata.has_value();
  if (header.metadata) file.metadata_ = std::move(*header.metadata);
  file.names_.reserve(header.entries.size());
  for (SafetensorsEntry& entry : header.entries) {
    file.names_.push_back(entry.name);
    file.tensors_.emplace(std::move(entry.name), TensorView{.dtype = entry.dtype,
                                                            .shape = std::move(entry.shape),
                                                            .data = begin + entry.offset,
                                                            .nbytes = entry.nbytes,
                                                            .owner = owner});
  }
  return file;
}

TensorView SafetensorsFile::tensor(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) {
    throw FormatError(path_, "tensors", quote(name),
                      "none of that name among " + std::to_string(tensors_.size()));
  }
  return it->second;
}

void SafetensorsFile::release(const std::string& name) const noexcept {
  const auto it = tensors_.find(name);
  if (mapping_ == nullptr || it == tensors_.end()) return;
  mapping_->release(static_cast<size_t>(it->second.data - mapping_->data()), it->second.nbytes);
}

void write_safetensors(const std::string& path, const std::map<std::string, TensorView>& tensors,
                       const std::optional<SafetensorsMetadata>& metadata) {
  std::vector<SafetensorsEntry> entries;
  entries.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors)
    entries.push_back(safetensors_entry(name, tensor, path));
  sort_safetensors_entries(entries);
  AtomicFile file(path);
  file.write(build_safetensors_header(entries, metadata, path));
  for (const SafetensorsEntry& entry : entries) {
    file.write(tensors.at(entry.name).data, entry.nbytes);
  }
  file.commit(path);
}

}  // namespace lowbit::io
