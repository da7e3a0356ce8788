#include "io/gguf_types.h"

#include <bit>
#include <cstring>

#include "io/quote.h"
#include "lowbit/error.h"

namespace lowbit::io {

namespace {

template <typename T>
T load(const std::byte* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

/// IEEE half to float without branches on common values: shift into place, then rescale; infinities
/// and NaNs have their exponent set by hand.
float load_half(const std::byte* data) {
  const uint32_t half = load<uint16_t>(data);
  const uint32_t sign = (half & 0x8000U) << 16;
  const uint32_t magnitude = (half & 0x7fffU) << 13;
  const bool special = (half & 0x7c00U) == 0x7c00U;
  // 2^112 moves half's exponent bias to float's and makes subnormals exact normal numbers.
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112F;
  const uint32_t bits = special ? (magnitude | 0x7f800000U) : std::bit_cast<uint32_t>(scaled);
  return std::bit_cast<float>(bits | sign);
}

uint32_t byte_at(const std::byte* data, int64_t i) { return static_cast<uint32_t>(data[i]); }
float int8_at(const std::byte* data, int64_t i) {
  return static_cast<float>(static_cast<int8_t>(data[i]));
}

void decode_f32(const std::byte* block, float* output) { *output = load<float>(block); }
void decode_f16(const std::byte* block, float* output) { *output = load_half(block); }
void decode_bf16(const std::byte* block, float* output) {
  *output = std::bit_cast<float>(uint32_t{load<uint16_t>(block)} << 16);
}

constexpr int64_t kSmall = 32;   // elements of a block of the simple types
constexpr int64_t kLarge = 256;  // ... and of the K types

/// Q4_0, Q4_1, Q5_0, Q5_1. d [, minimum] [, fifth bits], 16 bytes: element i in the low nibble of
/// byte i, i + 16 in the high.
template <int kBits, bool kHasMinimum>
void decode_nibbles(const std::byte* block, float* output) {
  const float scale = load_half(block);
  block += 2;
  float minimum = 0;
  if constexpr (kHasMinimum) {
    minimum = load_half(block);
    block += 2;
  }
  uint32_t fifth = 0;
  if constexpr (kBits == 5) {
    fifth = load<uint32_t>(block);
    block += 4;
  }
  for (int64_t i = 0; i < kSmall / 2; ++i) {
    const uint32_t low = (byte_at(block, i) & 15) | ((fifth >> i & 1) << 4);
    const uint32_t high = (byte_at(block, i) >> 4) | ((fifth >> (i + 16) & 1) << 4);
    if constexpr (kHasMinimum) {
      output[i] = static_cast<float>(low) * scale + minimum;
      output[i + kSmall / 2] = static_cast<float>(high) * scale + minimum;
    } else {
      constexpr int kZero = 1 << (kBits - 1);
      output[i] = static_cast<float>(static_cast<int>(low) - kZero) * scale;
      output[i + kSmall / 2] = static_cast<float>(static_cast<int>(high) - kZero) * scale;
    }
  }
}

void decode_q8_0(const std::byte* block, float* output) {
  const float scale = load_half(block);
  for (int64_t i = 0; i < kSmall; ++i) output[i] = int8_at(block, 2 + i) * scale;
}

/// Scale and minimum of sub-block j (of 8) out of 12 bytes of 6-bit numbers: the low six bits of
/// bytes 0-3 and 4-7 for the first four, nibbles of bytes 8-11 with the high two bits of bytes 0-7
/// for the others.
struct ScaleMinimum {
  float scale, minimum;
};
ScaleMinimum sub_block(const std::byte* packed, int64_t j) {
  if (j < 4)
    return {static_cast<float>(byte_at(packed, j) & 63),
            static_cast<float>(byte_at(packed, j + 4) & 63)};
  const uint32_t nibbles = byte_at(packed, j + 4);
  return {static_cast<float>((nibbles & 15) | (byte_at(packed, j - 4) >> 6 << 4)),
          static_cast<float>((nibbles >> 4) | (byte_at(packed, j) >> 6 << 4))};
}

/// Q4_K and Q5_K. d, minimum d, 12 bytes of scales, [32 bytes of fifth bits,] 128 bytes: each 32 of
/// them hold sub-block 2j in the low and 2j + 1 in the high nibbles; bit k of a fifth-bits byte
/// belongs to sub-block k.
template <int kBits>
void decode_k_nibbles(const std::byte* block, float* output) {
  const float scale = load_half(block);
  const float minimum = load_half(block + 2);
  const std::byte* packed_scales = block + 4;
  const std::byte* fifth = block + 16;
  const std::byte* nibbles = kBits == 5 ? fifth + 32 : fifth;
  for (int64_t j = 0; j < 8; ++j, output += 32) {
    const ScaleMinimum sub = sub_block(packed_scales, j);
    const float d = scale * sub.scale;
    const float m = minimum * sub.minimum;
    const std::byte* bytes = nibbles + j / 2 * 32;
    for (int64_t i = 0; i < 32; ++i) {
      uint32_t q = byte_at(bytes, i) >> (j % 2 * 4) & 15;
      if constexpr (kBits == 5) q |= (byte_at(fifth, i) >> j & 1) << 4;
      output[i] = d * static_cast<float>(q) - m;
    }
  }
}

/// Q6_K. 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 int8 scales (one for 16
/// elements), d. Each half of the block is four groups of 32: nibbles low, low, high, high of 64
/// bytes, bit pairs 0 to 3 of 32 bytes.
void decode_q6_k(const std::byte* block, float* output) {
  const std::byte* scales = block + 192;
  const float d = load_half(block + 208);
  for (int64_t group = 0; group < 8; ++group) {
    const int64_t half = group / 4, part = group % 4;
    const std::byte* low = block + half * 64 + part % 2 * 32;
    const std::byte* high = block + 128 + half * 32;
    for (int64_t i = 0; i < 32; ++i) {
      const uint32_t q =
          (byte_at(low, i) >> (part / 2 * 4) & 15) | ((byte_at(high, i) >> (part * 2) & 3) << 4);
      const float scale = d * int8_at(scales, group * 2 + i / 16);
      output[group * 32 + i] = scale * static_cast<float>(static_cast<int>(q) - 32);
    }
  }
}

constexpr GgufTypeInfo kTypes[] = {
    {GgufType::kF32, "F32", 1, 4, decode_f32},
    {GgufType::kF16, "F16", 1, 2, decode_f16},
    {GgufType::kBF16, "BF16", 1, 2, decode_bf16},
    {GgufType::kQ4_0, "Q4_0", kSmall, 18, decode_nibbles<4, false>},
    {GgufType::kQ4_1, "Q4_1", kSmall, 20, decode_nibbles<4, true>},
    {GgufType::kQ5_0, "Q5_0", kSmall, 22, decode_nibbles<5, false>},
    {GgufType::kQ5_1, "Q5_1", kSmall, 24, decode_nibbles<5, true>},
    {GgufType::kQ8_0, "Q8_0", kSmall, 34, decode_q8_0},
    {GgufType::kQ4_K, "Q4_K", kLarge, 144, decode_k_nibbles<4>},
    {GgufType::kQ5_K, "Q5_K", kLarge, 176, decode_k_nibbles<5>},
    {GgufType::kQ6_K, "Q6_K", kLarge, 210, decode_q6_k},
};

}  // namespace

const GgufTypeInfo* find_gguf_type(uint32_t number) noexcept {
  for (const GgufTypeInfo& info : kTypes) {
    if (static_cast<uint32_t>(info.type) == number) return &info;
  }
  return nullptr;
}

const char* gguf_type_name(GgufType type) noexcept {
  const GgufTypeInfo* info = find_gguf_type(static_cast<uint32_t>(type));
  return info == nullptr ? "unknown" : info->name;
}

int64_t gguf_block_size(GgufType type) noexcept {
  const GgufTypeInfo* info = find_gguf_type(static_cast<uint32_t>(type));
  return info == nullptr ? 0 : info->block_size;
}

int64_t gguf_block_bytes(GgufType type) noexcept {
  const GgufTypeInfo* info = find_gguf_type(static_cast<uint32_t>(type));
  return info == nullptr ? 0 : info->block_bytes;
}

void GgufFile::dequantize(const GgufTensor& tensor, int64_t begin, int64_t end,
                          float* output) const {
  const GgufTypeInfo* info = find_gguf_type(static_cast<uint32_t>(tensor.type));
  const int64_t block = info == nullptr ? 1 : info->block_size;
  if (info == nullptr || begin < 0 || end > tensor.numel || begin > end || begin % block != 0 ||
      end % block != 0) {
    throw FormatError(path_, "tensor " + quote(tensor.name),
                      "a range of whole blocks of " + std::to_string(block) + " within " +
                          std::to_string(tensor.numel) + " elements",
                      "[" + std::to_string(begin) + ", " + std::to_string(end) + ")");
  }
  const std::byte* source = tensor.data + begin / block * info->block_bytes;
  for (int64_t i = begin; i < end; i += block, source += info->block_bytes, output += block) {
    info->decode(source, output);
  }
}

}  // namespace lowbit::io
