// The words that every part of lowbit shares. Sees neither torch nor CUDA.
#pragma once

#include <cstdint>
#include <string_view>

namespace lowbit {

/// 4-bit data types. NF4: Dettmers et al., "QLoRA", https://arxiv.org/abs/2305.14314, appendix E.
enum class QuantType : int8_t { kNF4, kFP4 };

/// "nf4" or "fp4".
constexpr const char* to_string(QuantType type) noexcept {
  return type == QuantType::kNF4 ? "nf4" : "fp4";
}

/// The inverse of to_string. Throws c10::Error for any other word.
QuantType parse_quant_type(std::string_view name);

/// Blocksizes of 4-bit weights: 32, 64, 128, 256, 512, 1024, 2048, 4096.
constexpr bool is_valid_4bit_blocksize(int64_t blocksize) noexcept {
  return blocksize >= 32 && blocksize <= 4096 && (blocksize & (blocksize - 1)) == 0;
}

}  // namespace lowbit
