// The encodings of GGUF tensors: https://github.com/ggml-org/ggml (block layouts of ggml-common.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "lowbit/io/gguf.h"

namespace lowbit::io {

struct GgufTypeInfo {
  GgufType type;
  const char* name;
  int64_t block_size;  ///< elements
  int64_t block_bytes;
  /// Decodes one block to float32.
  void (*decode)(const std::byte* block, float* output);
};

/// Null for a number that is unknown or not supported.
const GgufTypeInfo* find_gguf_type(uint32_t number) noexcept;

}  // namespace lowbit::io
