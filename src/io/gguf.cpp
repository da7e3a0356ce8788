#include "lowbit/io/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <string_view>
#include <utility>

#include "io/gguf_types.h"
#include "io/quote.h"
#include "lowbit/error.h"

namespace lowbit::io {

namespace {

/// Kinds of metadata values, by their numbers in the file.
enum class Kind : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};

/// Reads forwards through the file and past no end.
class Cursor {
 public:
  Cursor(const std::byte* data, size_t size, const std::string& file)
      : data_(data), size_(size), file_(file) {}

  size_t offset() const { return offset_; }
  size_t rest() const { return size_ - offset_; }

  [[noreturn]] void fail(const std::string& expected, const std::string& found) const {
    throw FormatError(file_, "byte " + std::to_string(offset_), expected, found);
  }

  template <typename T>
  T read() {
    if (rest() < sizeof(T))
      fail(std::to_string(sizeof(T)) + " more bytes",
           std::to_string(rest()) + " (the file is cut short)");
    T value;
    std::memcpy(&value, data_ + offset_, sizeof(T));
    offset_ += sizeof(T);
    return value;
  }

  /// A number of items of at least `item_bytes` each, which therefore must still fit into the file.
  size_t read_count(size_t item_bytes, const char* what) {
    const auto count = read<uint64_t>();
    if (count > rest() / item_bytes) {
      offset_ -= sizeof(uint64_t);
      fail(std::string("a number of ") + what + " that fits into the file", std::to_string(count));
    }
    return count;
  }

  std::string read_string() {
    const size_t length = read_count(1, "characters");
    std::string text(reinterpret_cast<const char*>(data_ + offset_), length);
    offset_ += length;
    return text;
  }

  bool read_bool() {
    const auto value = read<uint8_t>();
    if (value > 1) fail("a boolean, 0 or 1", std::to_string(value));
    return value == 1;
  }

 private:
  const std::byte* data_;
  size_t size_;
  const std::string& file_;
  size_t offset_ = 0;
};

template <typename Stored, typename T>
std::vector<T> read_array(Cursor& cursor) {
  std::vector<T> values(cursor.read_count(sizeof(Stored), "array elements"));
  for (size_t i = 0; i < values.size(); ++i) values[i] = T{cursor.read<Stored>()};
  return values;
}

GgufValue read_array(Cursor& cursor) {
  const auto kind = cursor.read<Kind>();
  switch (kind) {
    case Kind::kU8:
      return read_array<uint8_t, uint64_t>(cursor);
    case Kind::kI8:
      return read_array<int8_t, int64_t>(cursor);
    case Kind::kU16:
      return read_array<uint16_t, uint64_t>(cursor);
    case Kind::kI16:
      return read_array<int16_t, int64_t>(cursor);
    case Kind::kU32:
      return read_array<uint32_t, uint64_t>(cursor);
    case Kind::kI32:
      return read_array<int32_t, int64_t>(cursor);
    case Kind::kU64:
      return read_array<uint64_t, uint64_t>(cursor);
    case Kind::kI64:
      return read_array<int64_t, int64_t>(cursor);
    case Kind::kF32:
      return read_array<float, double>(cursor);
    case Kind::kF64:
      return read_array<double, double>(cursor);
    case Kind::kBool: {
      std::vector<bool> values(cursor.read_count(1, "array elements"));
      for (size_t i = 0; i < values.size(); ++i) values[i] = cursor.read_bool();
      return values;
    }
    case Kind::kString: {
      std::vector<std::string> values(cursor.read_count(sizeof(uint64_t), "array elements"));
      for (std::string& value : values) value = cursor.read_string();
      return values;
    }
    case Kind::kArray:
      cursor.fail("an array of numbers, booleans or strings", "an array of arrays");
  }
  cursor.fail("a kind of value from 0 to 12", std::to_string(static_cast<uint32_t>(kind)));
}

GgufValue read_value(Cursor& cursor) {
  const auto kind = cursor.read<Kind>();
  switch (kind) {
    case Kind::kU8:
      return uint64_t{cursor.read<uint8_t>()};
    case Kind::kI8:
      return int64_t{cursor.read<int8_t>()};
    case Kind::kU16:
      return uint64_t{cursor.read<uint16_t>()};
    case Kind::kI16:
      return int64_t{cursor.read<int16_t>()};
    case Kind::kU32:
      return uint64_t{cursor.read<uint32_t>()};
    case Kind::kI32:
      return int64_t{cursor.read<int32_t>()};
    case Kind::kU64:
      return cursor.read<uint64_t>();
    case Kind::kI64:
      return cursor.read<int64_t>();
    case Kind::kF32:
      return double{cursor.read<float>()};
    case Kind::kF64:
      return cursor.read<double>();
    case Kind::kBool:
      return cursor.read_bool();
    case Kind::kString:
      return cursor.read_string();
    case Kind::kArray:
      return read_array(cursor);
  }
  cursor.fail("a kind of value from 0 to 12", std::to_string(static_cast<uint32_t>(kind)));
}

/// A tensor's entry; its offset in the data section goes to `offset`.
GgufTensor read_tensor(Cursor& cursor, const std::string& file, uint64_t& offset) {
  constexpr uint32_t kMaxRank = 4;
  GgufTensor tensor;
  tensor.name = cursor.read_string();
  const auto fail = [&](const std::string& expected, const std::string& found) {
    throw FormatError(file, "tensor " + quote(tensor.name), expected, found);
  };
  const auto rank = cursor.read<uint32_t>();
  if (rank > kMaxRank) fail("at most 4 dimensions", std::to_string(rank));
  tensor.shape.resize(rank);
  tensor.numel = 1;
  for (size_t i = rank; i-- > 0;) {  // the file begins with the innermost
    const auto extent = cursor.read<uint64_t>();
    if (extent == 0 || extent > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) ||
        __builtin_mul_overflow(tensor.numel, static_cast<int64_t>(extent), &tensor.numel)) {
      fail("extents of at least 1 and a size that fits 63 bits", std::to_string(extent));
    }
    tensor.shape[i] = static_cast<int64_t>(extent);
  }
  const auto type = cursor.read<uint32_t>();
  const GgufTypeInfo* info = find_gguf_type(type);
  if (info == nullptr) {
    fail(
        "a type that can be read here (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, "
        "Q6_K)",
        "type number " + std::to_string(type));
  }
  tensor.type = info->type;
  const int64_t row = rank == 0 ? 1 : tensor.shape.back();
  if (row % info->block_size != 0) {
    fail(std::string("rows of a multiple of ") + std::to_string(info->block_size) +
             " elements for " + info->name,
         std::to_string(row));
  }
  int64_t bytes = 0;
  if (__builtin_mul_overflow(tensor.numel / info->block_size, info->block_bytes, &bytes)) {
    fail("a size that fits 63 bits", std::to_string(tensor.numel) + " elements");
  }
  tensor.nbytes = static_cast<size_t>(bytes);
  offset = cursor.read<uint64_t>();
  return tensor;
}

/// "general.alignment" or its default.
uint64_t read_alignment(const GgufFile& file) {
  constexpr int64_t kDefault = 32, kLimit = int64_t{1} << 30;
  const int64_t alignment = file.get_int("general.alignment", kDefault);
  if (alignment <= 0 || alignment > kLimit ||
      !std::has_single_bit(static_cast<uint64_t>(alignment))) {
    throw FormatError(file.path(), "metadata `general.alignment`", "a power of two up to 2^30",
                      std::to_string(alignment));
  }
  return static_cast<uint64_t>(alignment);
}

/// Places the tensors in the data section, which nothing may leave and where nothing may overlap.
void place_tensors(std::vector<GgufTensor>& tensors, const std::vector<uint64_t>& offsets,
                   uint64_t alignment, const std::byte* section, size_t section_size,
                   const std::string& file) {
  std::vector<size_t> order(tensors.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return offsets[a] < offsets[b]; });
  uint64_t end = 0;
  for (const size_t i : order) {
    GgufTensor& tensor = tensors[i];
    const auto fail = [&](const std::string& expected) {
      throw FormatError(file, "tensor " + quote(tensor.name), expected,
                        std::to_string(tensor.nbytes) + " bytes at " + std::to_string(offsets[i]));
    };
    if (offsets[i] % alignment != 0)
      fail("an offset that is a multiple of " + std::to_string(alignment));
    if (offsets[i] > section_size || tensor.nbytes > section_size - offsets[i]) {
      fail("data within the file's " + std::to_string(section_size) + " bytes of them");
    }
    if (offsets[i] < end)
      fail("data that begin at " + std::to_string(end) + " or later (an overlap)");
    end = offsets[i] + tensor.nbytes;
    tensor.data = section + offsets[i];
  }
}

}  // namespace

GgufFile GgufFile::open(const std::string& path) {
  auto mapping = MappedFile::open(path);
  GgufFile file = parse(mapping, mapping->data(), mapping->size(), path);
  file.mapping_ = std::move(mapping);
  return file;
}

GgufFile GgufFile::parse(std::shared_ptr<const void> owner, const std::byte* data, size_t size,
                         const std::string& name) {
  GgufFile file;
  file.path_ = name;
  file.owner_ = std::move(owner);
  Cursor cursor(data, size, name);
  if (size < 4 || std::memcmp(data, "GGUF", 4) != 0) cursor.fail("the magic GGUF", "other bytes");
  cursor.read<uint32_t>();
  const auto version = cursor.read<uint32_t>();
  if (version != 2 && version != 3) {
    const bool swapped = version != 0 && (version & 0xffffU) == 0;
    throw FormatError(name, "byte 4", "version 2 or 3, little-endian",
                      swapped ? "a big-endian file" : "version " + std::to_string(version));
  }
  // The smallest entries there can be: an empty name, rank, type and offset; an empty key, kind and
  // one byte.
  const size_t tensor_count = cursor.read_count(24, "tensors");
  const size_t value_count = cursor.read_count(13, "metadata values");
  for (size_t i = 0; i < value_count; ++i) {
    const size_t at = cursor.offset();
    std::string key = cursor.read_string();
    const auto [it, inserted] = file.metadata_.try_emplace(std::move(key));
    if (!inserted)
      throw FormatError(name, "byte " + std::to_string(at), "unique metadata keys",
                        quote(it->first) + " twice");
    it->second = read_value(cursor);
  }
  std::vector<uint64_t> offsets(tensor_count);
  file.tensors_.reserve(tensor_count);
  for (size_t i = 0; i < tensor_count; ++i) {
    file.tensors_.push_back(read_tensor(cursor, name, offsets[i]));
    if (!file.index_.emplace(file.tensors_.back().name, i).second) {
      throw FormatError(name, "tensor " + quote(file.tensors_.back().name), "unique names",
                        "it twice");
    }
  }
  const uint64_t alignment = read_alignment(file);
  const uint64_t begin = (cursor.offset() + alignment - 1) / alignment * alignment;
  if (tensor_count > 0 && begin > size)
    cursor.fail("tensor data at byte " + std::to_string(begin), "the end of the file");
  if (tensor_count > 0)
    place_tensors(file.tensors_, offsets, alignment, data + begin, size - begin, name);
  return file;
}

const GgufTensor* GgufFile::find(const std::string& name) const noexcept {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

void GgufFile::release(const GgufTensor& tensor) const noexcept {
  if (mapping_ != nullptr)
    mapping_->release(static_cast<size_t>(tensor.data - mapping_->data()), tensor.nbytes);
}

}  // namespace lowbit::io
