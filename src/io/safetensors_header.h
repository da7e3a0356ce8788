// The header of a safetensors file, both ways.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lowbit/io/safetensors.h"

namespace lowbit::io {

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  size_t nbytes = 0;
  size_t offset = 0;  ///< in the data section (parsed), or wherever the writer keeps the bytes
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  ///< in the order of their data
  std::optional<SafetensorsMetadata> metadata;
};

/// The largest header that the reference implementation reads.
inline constexpr size_t kMaxSafetensorsHeader = 100'000'000;

/// Parses and validates header JSON for `data_size` bytes of data. Throws FormatError.
SafetensorsHeader parse_safetensors_header(std::string_view json, size_t data_size,
                                           const std::string& name);

/// Sorts entries as the reference writer does: descending alignment of the dtype, then by name.
void sort_safetensors_entries(std::vector<SafetensorsEntry>& entries);

/// Length prefix and padded JSON for sorted entries whose data follow one another. Throws
/// FormatError when it is too long.
std::string build_safetensors_header(const std::vector<SafetensorsEntry>& entries,
                                     const std::optional<SafetensorsMetadata>& metadata,
                                     const std::string& path);

/// Entry of a view. Throws FormatError naming `path` when shape, dtype and bytes disagree or the
/// name is not UTF-8.
SafetensorsEntry safetensors_entry(const std::string& name, const TensorView& tensor,
                                   const std::string& path);

}  // namespace lowbit::io
