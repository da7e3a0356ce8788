// GGUF, versions 2 and 3: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "lowbit/io/mapped_file.h"

namespace lowbit::io {

/// Tensor encodings that can be dequantized here (numbers are GGUF's own).
enum class GgufType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30
};
const char* gguf_type_name(GgufType type) noexcept;

/// Elements and bytes of one block: a row of a tensor is a whole number of blocks.
int64_t gguf_block_size(GgufType type) noexcept;
int64_t gguf_block_bytes(GgufType type) noexcept;

/// A metadata value: integers widen to int64/uint64, floats to double; arrays hold one kind (no
/// arrays of arrays).
using GgufValue = std::variant<bool, int64_t, uint64_t, double, std::string, std::vector<bool>,
                               std::vector<int64_t>, std::vector<uint64_t>, std::vector<double>,
                               std::vector<std::string>>;

/// Note for readers of weights: converters to GGUF permute the rows of attn_q and attn_k of the
/// architecture "llama" so that the two halves of each rotary pair are neighbours: row
/// h*d + 2*i + j holds row h*d + j*d/2 + i of the original (head h of d dimensions, i < d/2, j 0
/// or 1). GgufFile hands out the rows as the file has them.
struct GgufTensor {
  std::string name;
  GgufType type;
  std::vector<int64_t> shape;  ///< outermost first (torch's order; the file stores the reverse)
  const std::byte* data = nullptr;
  size_t nbytes = 0;
  int64_t numel = 0;
};

class GgufFile {
 public:
  /// Throws IoError or FormatError. Every count, length and offset is checked against the file.
  static GgufFile open(const std::string& path);
  static GgufFile parse(std::shared_ptr<const void> owner, const std::byte* data, size_t size,
                        const std::string& name);

  const std::string& path() const noexcept { return path_; }
  const std::map<std::string, GgufValue>& metadata() const noexcept { return metadata_; }
  const std::vector<GgufTensor>& tensors() const noexcept { return tensors_; }
  const GgufTensor* find(const std::string& name) const noexcept;

  bool contains(const std::string& key) const { return metadata_.count(key) != 0; }
  /// Typed access; throw FormatError when the key is missing or of another kind. The second form
  /// has a default, for a key that is missing.
  std::string get_string(const std::string& key) const;
  int64_t get_int(const std::string& key) const;
  double get_float(const std::string& key) const;
  std::string get_string(const std::string& key, const std::string& fallback) const;
  int64_t get_int(const std::string& key, int64_t fallback) const;
  double get_float(const std::string& key, double fallback) const;
  bool get_bool(const std::string& key, bool fallback) const;

  /// Dequantizes elements [begin, end) of one of tensors() to float32; begin and end are multiples
  /// of gguf_block_size. Bit-equal to ggml's scalar code. Throws FormatError for another range.
  /// Threads may share the file.
  void dequantize(const GgufTensor& tensor, int64_t begin, int64_t end, float* output) const;
  /// Lets the system drop the tensor's pages.
  void release(const GgufTensor& tensor) const noexcept;
  std::shared_ptr<const void> owner() const noexcept { return owner_; }

 private:
  std::string path_;
  std::shared_ptr<const void> owner_;
  std::shared_ptr<const MappedFile> mapping_;
  std::map<std::string, GgufValue> metadata_;
  std::vector<GgufTensor> tensors_;
  std::map<std::string, size_t> index_;
};

}  // namespace lowbit::io
