// 4-bit quantize and dequantize for the instruction set LOWBIT_ISA. The including file defines, in
// its namespace,
//   kGroup                                    elements that are encoded and decoded together
//   encode_group<QuantType>(T*, F, uint8_t*)  codes of input * scale, packed
//   Decoder<T>(table)                         set_scale(float), decode_group(uint8_t*, T*)
#include <algorithm>
#include <cstring>

#include "cpu/absmax_simd.h"
#include "cpu/fourbit_isa.h"
#include "scales.h"

namespace lowbit::kernels::cpu::LOWBIT_ISA {

/// Asks for the input two pages ahead. The pass for the largest magnitude reads a block in a burst,
/// and waits for memory without this.
static inline void prefetch_ahead(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(p) + 8192 + i),
                 _MM_HINT_T0);
  }
}

template <QuantType kType, typename T>
static inline void encode_block(const T* in, int64_t count, F scale, uint8_t* out) {
  int64_t i = 0;
  for (; i + kGroup <= count; i += kGroup) {
    prefetch_ahead(in + i, kGroup * sizeof(T));
    encode_group<kType>(in + i, scale, out + i / 2);
  }
  if (i < count) {  // completed with zeros, whose code also completes an odd tail
    T padded[kGroup] = {};
    uint8_t bytes[kGroup / 2];
    std::memcpy(padded, in + i, static_cast<size_t>(count - i) * sizeof(T));
    encode_group<kType>(padded, scale, bytes);
    std::memcpy(out + i / 2, bytes, static_cast<size_t>(count - i + 1) / 2);
  }
}

template <typename T, QuantType kType>
static void quantize_blocks(const Quantize4bitParams& p, int64_t begin, int64_t end) {
  // Small blocks go in batches: finding a scale is a long chain of dependent steps, and the chains
  // of a batch overlap.
  constexpr int64_t kMostBlocks = 16, kBatchElements = 1024;
  const T* input = static_cast<const T*>(p.input);
  float scales[kMostBlocks];
  int64_t batch = kBatchElements / p.blocksize;
  batch = batch < 1 ? 1 : batch > kMostBlocks ? kMostBlocks : batch;
  const auto count_of = [&](int64_t block) {
    const int64_t rest = p.numel - block * p.blocksize;
    return rest < p.blocksize ? rest : p.blocksize;
  };
  for (int64_t first = begin; first < end; first += batch) {
    const int64_t blocks = end - first < batch ? end - first : batch;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t block = first + b, count = count_of(block);
      const float absmax = block_absmax(input + block * p.blocksize, count, count == p.blocksize);
      p.absmax[block] = absmax;
      scales[b] = block_reciprocal(absmax);
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t block = first + b, start = block * p.blocksize;
      encode_block<kType>(input + start, count_of(block), set(scales[b]), p.packed + start / 2);
    }
  }
}

template <typename T>
static void quantize_as(const Quantize4bitParams& p, int64_t begin, int64_t end) {
  if (p.quant_type == QuantType::kNF4) {
    quantize_blocks<T, QuantType::kNF4>(p, begin, end);
  } else {
    quantize_blocks<T, QuantType::kFP4>(p, begin, end);
  }
}

void quantize_4bit(const Quantize4bitParams& p, int64_t begin, int64_t end) noexcept {
  visit_dtype(p.input_dtype,
              [&](auto* tag) { quantize_as<std::remove_pointer_t<decltype(tag)>>(p, begin, end); });
}

/// As block_scale(), under FlushMode.
static inline float scale_of_block(const BlockScales& s, int64_t block) {
  if (!s.nested()) return s.absmax[block];
  const float product = s.absmax_code[s.absmax_8bit[block]] * s.absmax2[block / kNestedBlocksize];
  return product + *s.absmax_offset;
}

/// Elements [first, first + count) that lie in one block.
template <typename T>
static inline void decode_run(const Decoder<T>& decoder, const uint8_t* packed, int64_t first,
                              int64_t count, T* output) {
  const uint8_t* in = packed + first / 2;
  uint8_t bytes[kGroup / 2] = {};
  T decoded[kGroup];
  if (first % 2 != 0) {  // starts with the second element of a byte
    bytes[0] = *in++;
    decoder.decode_group(bytes, decoded);
    *output++ = decoded[1];
    --count;
  }
  int64_t i = 0;
  for (; i + kGroup <= count; i += kGroup) decoder.decode_group(in + i / 2, output + i);
  if (i < count) {
    std::memcpy(bytes, in + i / 2, static_cast<size_t>(count - i + 1) / 2);
    decoder.decode_group(bytes, decoded);
    std::memcpy(output + i, decoded, static_cast<size_t>(count - i) * sizeof(T));
  }
}

template <typename T>
static void dequantize_as(const Dequantize4bitParams& p, int64_t first, int64_t last, T* output) {
  Decoder<T> decoder(code_table(p.quant_type, p.code));
  int64_t block = first / p.blocksize;
  while (first < last) {
    const int64_t block_end = (block + 1) * p.blocksize;
    const int64_t stop = block_end < last ? block_end : last;
    decoder.set_scale(scale_of_block(p.scales, block));
    decode_run(decoder, p.packed, first, stop - first, output);
    output += stop - first;
    first = stop;
    ++block;
  }
}

void dequantize_4bit(const Dequantize4bitParams& p, int64_t first, int64_t last,
                     void* output) noexcept {
  visit_dtype(p.output_dtype, [&](auto* tag) {
    dequantize_as(p, first, last, static_cast<decltype(tag)>(output));
  });
}

}  // namespace lowbit::kernels::cpu::LOWBIT_ISA
