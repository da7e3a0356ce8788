// Eight neighbouring weights at any place of a packed 4-bit weight: any K, any blocksize, any
// alignment.
#pragma once

#include <cstring>

#include "codebook.h"
#include "cuda/common/scales.cuh"
#include "lowbit/kernels/fourbit.h"

namespace lowbit::kernels::cuda {

struct PackedWeight {
  const uint8_t* packed;
  const uint8_t* end;  ///< behind the last byte
  BlockScales scales;
  int blocksize;
  int shift;  ///< log2 of a blocksize that is a power of two, else -1
};

inline PackedWeight packed_weight(const Matmul4bitParams& p) {
  PackedWeight w{p.packed, p.packed + ceil_div(p.n * p.k, 2), p.scales,
                 static_cast<int>(p.blocksize), -1};
  if ((p.blocksize & (p.blocksize - 1)) == 0) {
    for (w.shift = 0; int64_t{1} << w.shift < p.blocksize;) ++w.shift;
  }
  return w;
}

inline Table16 table_of(const Matmul4bitParams& p) {
  Table16 table;
  std::memcpy(table.values, p.quant_type == QuantType::kNF4 ? codebook::kNf4 : codebook::kFp4,
              sizeof table.values);
  return table;
}

/// Codes of the elements i..i+7, the first in the highest nibble. What lies behind the weight reads
/// as zeros. Two aligned words, shifted.
__device__ __forceinline__ uint32_t eight_codes(const PackedWeight& w, int64_t i) {
  const uint8_t* p = w.packed + (i >> 1);
  const int inside = static_cast<int>(reinterpret_cast<uintptr_t>(p) & 3);
  const int bits = inside * 8 + static_cast<int>(i & 1) * 4;
  const uint8_t* word = p - inside;
  const auto load = [&](const uint8_t* q) -> uint32_t {
    if (q + 4 <= w.end) {
      return __byte_perm(__ldg(reinterpret_cast<const uint32_t*>(q)), 0, 0x0123);
    }
    uint32_t v = 0;
    for (int b = 0; b < 4; ++b) v |= (q + b < w.end ? uint32_t{__ldg(q + b)} : 0u) << (24 - 8 * b);
    return v;
  };
  const uint32_t first = load(word);
  return bits == 0 ? first : __funnelshift_l(load(word + 4), first, bits);
}

/// The codes of eight elements and the scales of their blocks: what is read ahead.
struct EightCodes {
  uint32_t codes;
  float scale, next_scale;
  int left;  ///< elements that belong to the first scale
};

/// Elements first + k .. first + k + 7 of a row that starts `into` elements behind the start of
/// block `block`; `count` of them exist.
__device__ __forceinline__ EightCodes load_eight(const PackedWeight& w, int64_t first,
                                                 int64_t block, int into, int k, int count) {
  EightCodes e;
  e.codes = eight_codes(w, first + k);
  const unsigned at = static_cast<unsigned>(into) + static_cast<unsigned>(k);
  const unsigned blocks = w.shift >= 0 ? at >> w.shift : at / static_cast<unsigned>(w.blocksize);
  e.left = w.blocksize - static_cast<int>(at - blocks * static_cast<unsigned>(w.blocksize));
  e.scale = block_scale(w.scales, block + blocks);
  e.next_scale = e.left < count ? block_scale(w.scales, block + blocks + 1) : 0.0f;
  return e;
}

/// The weights as dequantize_4bit gives them in float32.
__device__ __forceinline__ void decode_eight(const PackedWeight& w, const float* table,
                                             const EightCodes& e, int64_t block, int into, int k,
                                             int count, float (&values)[8]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    values[j] = table[e.codes >> (28 - 4 * j) & 15] * (j < e.left ? e.scale : e.next_scale);
  }
  if (w.blocksize < 8) {  // more than two blocks
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (j < count) {
        const int64_t b = block + static_cast<int64_t>(into + k + j) / w.blocksize;
        values[j] = table[e.codes >> (28 - 4 * j) & 15] * block_scale(w.scales, b);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    if (j >= count) values[j] = 0.0f;
  }
}

/// The sixteen values in shared memory; ends with a barrier. `custom`: device memory, or null.
__device__ __forceinline__ void fill_table(float* shared, const Table16& table,
                                           const float* custom) {
  if (threadIdx.x < 16) {
    shared[threadIdx.x] = custom != nullptr ? custom[threadIdx.x] : table.values[threadIdx.x];
  }
  __syncthreads();
}

}  // namespace lowbit::kernels::cuda
