#include "io/safetensors_header.h"

#include <algorithm>
#include <array>
#include <limits>
#include <tuple>

#include "io/json.h"
#include "io/quote.h"
#include "lowbit/error.h"

namespace lowbit::io {

namespace {

using Json = nlohmann::json;

/// The order of data in the reference writer's files (observed): descending alignment, and this
/// within one alignment.
constexpr std::array kWriteOrder = {DType::kU64, DType::kI64, DType::kF64,    DType::kF32,
                                    DType::kU32, DType::kI32, DType::kBF16,   DType::kF16,
                                    DType::kU16, DType::kI16, DType::kF8E4M3, DType::kF8E5M2,
                                    DType::kI8,  DType::kU8,  DType::kBool};

int write_rank(DType dtype) {
  return static_cast<int>(std::find(kWriteOrder.begin(), kWriteOrder.end(), dtype) -
                          kWriteOrder.begin());
}

/// Product of shape and itemsize, or nothing when it does not fit int64 (so that numel() and nbytes
/// are safe everywhere).
std::optional<size_t> checked_nbytes(const std::vector<int64_t>& shape, DType dtype) {
  int64_t bytes = itemsize(dtype);
  int64_t rest = 1;  // extents after a zero must fit as well: numel() multiplies in any order
  bool empty = false;
  for (const int64_t extent : shape) {
    if (extent < 0) return std::nullopt;
    if (extent == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(rest, extent, &rest)) {
      return std::nullopt;
    }
  }
  if (__builtin_mul_overflow(bytes, rest, &bytes)) return std::nullopt;
  return empty ? 0 : static_cast<size_t>(bytes);
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

std::string found_text(const Json& value) {
  std::string text = value.dump(-1, ' ', true);
  if (text.size() > 60) text = text.substr(0, 60) + "...";
  return text;
}

class EntryParser {
 public:
  EntryParser(const std::string& file, const std::string& tensor, size_t data_size)
      : file_(file), where_("tensor " + quote(tensor)), data_size_(data_size) {}

  SafetensorsEntry parse(const std::string& name, const Json& json) const {
    if (!json.is_object()) fail("an object", json_kind(json));
    SafetensorsEntry entry;
    entry.name = name;
    entry.dtype = dtype(field(json, "dtype"));
    entry.shape = shape(field(json, "shape"));
    const Json& offsets = field(json, "data_offsets");
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned()) {
      fail("data_offsets [begin, end]", found_text(offsets));
    }
    const auto begin = offsets[0].get<uint64_t>();
    const auto end = offsets[1].get<uint64_t>();
    if (begin > end || end > data_size_) {
      fail("data_offsets within the file's " + std::to_string(data_size_) + " bytes of data",
           found_text(offsets));
    }
    const std::optional<size_t> nbytes = checked_nbytes(entry.shape, entry.dtype);
    if (!nbytes) fail("a shape whose size fits 63 bits", shape_text(entry.shape));
    if (*nbytes != end - begin) {
      fail(std::to_string(*nbytes) + " bytes for " + dtype_name(entry.dtype) + " " +
               shape_text(entry.shape),
           std::to_string(end - begin));
    }
    entry.offset = begin;
    entry.nbytes = *nbytes;
    return entry;
  }

 private:
  [[noreturn]] void fail(const std::string& expected, const std::string& found) const {
    throw FormatError(file_, where_, expected, found);
  }

  const Json& field(const Json& json, const char* key) const {
    const auto it = json.find(key);
    if (it == json.end()) fail("a field \"" + std::string(key) + "\"", "none");
    return *it;
  }

  DType dtype(const Json& json) const {
    if (!json.is_string()) fail("a dtype name", json_kind(json));
    const auto& name = json.get_ref<const std::string&>();
    for (const DType dtype : kWriteOrder) {
      if (name == dtype_name(dtype)) return dtype;
    }
    fail("a known dtype", quote(name));
  }

  std::vector<int64_t> shape(const Json& json) const {
    if (!json.is_array()) fail("a shape array", json_kind(json));
    std::vector<int64_t> shape;
    shape.reserve(json.size());
    for (const Json& extent : json) {
      if (!extent.is_number_unsigned() ||
          extent.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        fail("extents from 0 to 2^63 - 1", found_text(extent));
      }
      shape.push_back(extent.get<int64_t>());
    }
    return shape;
  }

  const std::string& file_;
  const std::string where_;
  const size_t data_size_;
};

SafetensorsMetadata parse_metadata(const Json& json, const std::string& file) {
  if (!json.is_object()) throw FormatError(file, "`__metadata__`", "an object", json_kind(json));
  SafetensorsMetadata metadata;
  for (const auto& [key, value] : json.items()) {
    if (!value.is_string())
      throw FormatError(file, "`__metadata__`, key " + quote(key), "a string", json_kind(value));
    metadata.emplace(key, value.get<std::string>());
  }
  return metadata;
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view text, size_t data_size,
                                           const std::string& name) {
  const Json json = parse_json(text, name, "header");
  if (!json.is_object()) throw FormatError(name, "header", "an object", json_kind(json));
  SafetensorsHeader header;
  for (const auto& [key, value] : json.items()) {
    if (key != "__metadata__") {
      header.entries.push_back(EntryParser(name, key, data_size).parse(key, value));
    } else if (!value.is_null()) {
      header.metadata = parse_metadata(value, name);
    }
  }
  std::stable_sort(header.entries.begin(), header.entries.end(), [](const auto& a, const auto& b) {
    return std::tuple(a.offset, a.nbytes) < std::tuple(b.offset, b.nbytes);
  });
  // The data must be covered once and completely: anything else is a damaged file or one that hides
  // bytes.
  size_t end = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    if (entry.offset != end) {
      throw FormatError(
          name, "tensor " + quote(entry.name), "data that begin at " + std::to_string(end),
          std::to_string(entry.offset) + (entry.offset < end ? " (an overlap)" : " (a gap)"));
    }
    end += entry.nbytes;
  }
  if (end != data_size) {
    throw FormatError(name, "end of the data", std::to_string(end) + " bytes of data",
                      std::to_string(data_size));
  }
  return header;
}

void sort_safetensors_entries(std::vector<SafetensorsEntry>& entries) {
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::tuple(write_rank(a.dtype), std::string_view(a.name)) <
           std::tuple(write_rank(b.dtype), std::string_view(b.name));
  });
}

std::string build_safetensors_header(const std::vector<SafetensorsEntry>& entries,
                                     const std::optional<SafetensorsMetadata>& metadata,
                                     const std::string& path) {
  // Written by hand: the order of the keys carries the order of the data, which a JSON object would
  // not keep.
  std::string json = "{";
  const auto add_string = [&json](const std::string& text) { json += Json(text).dump(); };
  const auto add_comma = [&json] {
    if (json.back() != '{' && json.back() != '[') json += ',';
  };
  if (metadata) {
    json += "\"__metadata__\":{";
    for (const auto& [key, value] : *metadata) {
      add_comma();
      add_string(key);
      json += ':';
      add_string(value);
    }
    json += '}';
  }
  size_t offset = 0;
  for (const SafetensorsEntry& entry : entries) {
    add_comma();
    add_string(entry.name);
    json += ":{\"dtype\":\"";
    json += dtype_name(entry.dtype);
    json += "\",\"shape\":[";
    for (const int64_t extent : entry.shape) {
      add_comma();
      json += std::to_string(extent);
    }
    json += "],\"data_offsets\":[" + std::to_string(offset) + ',';
    offset += entry.nbytes;
    json += std::to_string(offset) + "]}";
  }
  json += "}";
  json.append((8 - json.size() % 8) % 8, ' ');
  if (json.size() > kMaxSafetensorsHeader) {
    throw FormatError(path, "header", "at most " + std::to_string(kMaxSafetensorsHeader) + " bytes",
                      std::to_string(json.size()));
  }
  std::string header(8, '\0');
  for (size_t i = 0; i < 8; ++i)
    header[i] = static_cast<char>(static_cast<uint64_t>(json.size()) >> (8 * i));
  return header + json;
}

SafetensorsEntry safetensors_entry(const std::string& name, const TensorView& tensor,
                                   const std::string& path) {
  const std::string where = "tensor " + quote(name);
  const std::optional<size_t> nbytes = checked_nbytes(tensor.shape, tensor.dtype);
  if (!nbytes || *nbytes != tensor.nbytes) {
    throw FormatError(path, where,
                      nbytes ? std::to_string(*nbytes) + " bytes for " + dtype_name(tensor.dtype) +
                                   " " + shape_text(tensor.shape)
                             : "a shape whose size fits 63 bits",
                      nbytes ? std::to_string(tensor.nbytes) : shape_text(tensor.shape));
  }
  if (name == "__metadata__")
    throw FormatError(path, where, "a name that is not reserved", "`__metadata__`");
  try {
    static_cast<void>(Json(name).dump());
  } catch (const Json::exception&) {
    throw FormatError(path, where, "a name in UTF-8", "invalid bytes");
  }
  return {.name = name,
          .dtype = tensor.dtype,
          .shape = tensor.shape,
          .nbytes = tensor.nbytes,
          .offset = 0};
}

}  // namespace lowbit::io
