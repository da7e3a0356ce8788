// Any bytes are a valid safetensors file or a FormatError; a valid file is read completely and
// survives a rewrite.
#include <cstdint>
#include <cstring>
#include <optional>

#include "fuzz/require.h"
#include "io/safetensors_header.h"
#include "lowbit/error.h"
#include "lowbit/io/safetensors.h"

using lowbit::fuzz::require;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lowbit::io;
  std::optional<SafetensorsFile> file;
  try {
    file = SafetensorsFile::parse(nullptr, reinterpret_cast<const std::byte*>(data), size, "fuzz");
  } catch (const lowbit::FormatError&) {
    return 0;
  }
  unsigned sum = 0;
  size_t total = 0;
  std::vector<SafetensorsEntry> entries;
  for (const std::string& name : file->names()) {
    const TensorView view = file->tensor(name);
    require(static_cast<size_t>(view.numel() * itemsize(view.dtype)) == view.nbytes,
            "bytes of the shape");
    for (size_t i = 0; i < view.nbytes; ++i) sum += static_cast<unsigned>(view.data[i]);
    total += view.nbytes;
    entries.push_back(safetensors_entry(name, view, "fuzz"));
  }
  require(total < size && sum <= 255 * total, "data inside the file");
  sort_safetensors_entries(entries);
  std::optional<SafetensorsMetadata> metadata;
  if (file->has_metadata()) metadata = file->metadata();
  const std::string header = build_safetensors_header(entries, metadata, "fuzz");
  const SafetensorsHeader again =
      parse_safetensors_header(std::string_view(header).substr(8), total, "fuzz");
  require(again.metadata == metadata, "metadata after a rewrite");
  require(again.entries.size() == entries.size(), "tensors after a rewrite");
  for (const SafetensorsEntry& entry : again.entries) {
    require(file->tensor(entry.name).shape == entry.shape, "shape after a rewrite");
  }
  return 0;
}
