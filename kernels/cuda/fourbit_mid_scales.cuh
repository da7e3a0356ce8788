// The scales of the mid-M kernel (fourbit_matmul_mid.cu): how they are read, decoded and brought to
// shared memory.
#pragma once

#include "cuda/common/tma_sm90.cuh"
#include "cuda/fourbit_matmul.h"
#include "cuda/fourbit_mid.h"
#include "cuda/fourbit_pairs.cuh"

namespace lowbit::kernels::cuda {

struct MidArgs {
  BlockScales scales;
  const void* bias;
  void* output;
  int m, n, k;
  int tile;   // tokens of a block: the copy engine is slow on what lies behind the last one
  int shift;  // log2 of the columns of a scale, over 64
  int log_splits;
  int stages, rest;    // of every block of a cluster, and one more for the first `rest`
  bool vector_output;  // four outputs of a token may be stored at once
  enum Scales : int8_t { kBytes, kWords, kVectors } read;  // at a time
  DType bias_dtype;
  float inverse_factor;  // of the table, where codes are scaled
  PairTable table;
};

enum MidBarrier { kMidTable = 1, kMidConsumers = 2, kMidScaleWarps = 3 };

/// Bytes of a scale slot before the four scales of stage `stage` of a row: chunks of 16 bytes
/// permuted so that eight rows lie in different banks.
__device__ __forceinline__ uint32_t scale_place(int row, int stage) {
  return row * 64 + ((stage ^ (row >> 1 & 3)) << 4);
}

/// Scales of four blocks of 64 columns of a row, before they are decoded. Rows behind N get those
/// of the last row, which are not stored, blocks behind K those of the last block, which meet
/// zeros.
struct RawScales {
  uint32_t codes = 0;  // nested
  float4 high;         // or what they are in float32

  __device__ __forceinline__ static RawScales load(const MidArgs& a, int row, int block) {
    RawScales raw;
    const int blocks = a.k / 64, first = min(row, a.n - 1) * (blocks >> a.shift);
    const bool nested = a.scales.absmax_8bit != nullptr;
    if (a.read != MidArgs::kBytes) {
      const int at = first + min(block, blocks - 4);
      if (nested) {
        raw.codes = __ldg(reinterpret_cast<const uint32_t*>(a.scales.absmax_8bit + at));
        const float high = __ldg(a.scales.absmax2 + at / kNestedBlocksize);
        raw.high = make_float4(high, high, high, high);
      } else {
        raw.high = __ldg(reinterpret_cast<const float4*>(a.scales.absmax + at));
      }
      return raw;
    }
    const auto one = [&](int j) {
      const int at = first + (min(block + j, blocks - 1) >> a.shift);
      if (!nested) return __ldg(a.scales.absmax + at);
      raw.codes |= uint32_t{__ldg(a.scales.absmax_8bit + at)} << (8 * j);
      return __ldg(a.scales.absmax2 + at / kNestedBlocksize);
    };
    raw.high = make_float4(one(0), one(1), one(2), one(3));
    return raw;
  }

  __device__ __forceinline__ float4 decode(const float* map, float offset) const {
    const auto one = [&](int j, float v) {
      return __fadd_rn(__fmul_rn(map[codes >> (8 * j) & 255], v), offset);
    };
    return make_float4(one(0, high.x), one(1, high.y), one(2, high.z), one(3, high.w));
  }
};

/// Scales as the products are multiplied by them,
struct PlainScales {
  __device__ __forceinline__ float4 operator()(float4 v) const { return v; }
};
/// or as the codes are: divided by the table's factor, in two elements.
template <typename T>
struct SplitScales {
  float inverse_factor;
  __device__ __forceinline__ float4 operator()(float4 v) const {
    const auto one = [&](float s) { return __uint_as_float(split<T>(s * inverse_factor)); };
    return make_float4(one(v.x), one(v.y), one(v.z), one(v.w));
  }
};

/// Two warps: the scales of this block's rows, 16 blocks of 64 columns at a time, but for the
/// first.
template <typename Form, int kRowGroups>
struct MidScaleProducer {
  const MidArgs& a;
  uint8_t* shared;
  uint32_t barriers;
  int slot_bytes, scales_at, map_at;
  int first_row, first_block, chunks;
  int id;  // 0..63
  Form form;

  struct Raw {
    uint32_t codes[4];
    float high, next_high;  // of scales 0 and 15: a row of statistics may end between them
  };

  __device__ __forceinline__ int row_of(int r) const {
    return min(first_row + id + 64 * r, a.n - 1);
  }
  __device__ __forceinline__ float4* to(int r, int slot, int q) const {
    return reinterpret_cast<float4*>(shared + scales_at + slot * slot_bytes +
                                     scale_place(id + 64 * r, q));
  }

  /// Nested scales, four or more of them at a time.
  __device__ __forceinline__ Raw load(int r, int block) const {
    Raw raw;
    const int blocks = a.k / 64, first = row_of(r) * blocks + block;
    const uint8_t* codes = a.scales.absmax_8bit;
    raw.high = __ldg(a.scales.absmax2 + first / kNestedBlocksize);
    raw.next_high = raw.high;
    if (a.read == MidArgs::kVectors && block % 16 == 0) {
      const uint4 v = __ldg(reinterpret_cast<const uint4*>(codes + first));
      raw.codes[0] = v.x, raw.codes[1] = v.y, raw.codes[2] = v.z, raw.codes[3] = v.w;
    } else {
      const int last = blocks - 4 - block;
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        raw.codes[q] = __ldg(reinterpret_cast<const uint32_t*>(codes + first + min(4 * q, last)));
      }
      raw.next_high = __ldg(a.scales.absmax2 + (first + min(12, last)) / kNestedBlocksize);
    }
    return raw;
  }
  __device__ __forceinline__ void decode(const Raw& raw, int r, int block, int slot,
                                         float offset) const {
    const int first = (row_of(r) * (a.k / 64) + block) % kNestedBlocksize;
    const uint32_t map = shared_address(shared + map_at);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float high = first + 4 * q < kNestedBlocksize ? raw.high : raw.next_high;
      const auto one = [&](int j) {
        const float v = __uint_as_float(shared_word(__dp4a(raw.codes[q], 4u << (8 * j), map)));
        return __fadd_rn(__fmul_rn(v, high), offset);
      };
      *to(r, slot, q) = form(make_float4(one(0), one(1), one(2), one(3)));
    }
  }

  /// The other kinds. Not cp.async, whose arrival racecheck does not follow.
  __device__ __forceinline__ void copy(int r, int block, int slot, float offset) const {
    if (a.read != MidArgs::kBytes) {
      RawScales raw[4];
#pragma unroll
      for (int q = 0; q < 4; ++q) raw[q] = RawScales::load(a, row_of(r), block + 4 * q);
#pragma unroll
      for (int q = 0; q < 4; ++q) *to(r, slot, q) = form(raw[q].high);
      return;
    }
    const bool nested = a.scales.absmax_8bit != nullptr;
    const float* map = reinterpret_cast<const float*>(shared + map_at);
#pragma unroll 1
    for (int q = 0; q < 4; ++q) {
      const RawScales raw = RawScales::load(a, row_of(r), block + 4 * q);
      *to(r, slot, q) = form(nested ? raw.decode(map, offset) : raw.high);
    }
  }

  __device__ __forceinline__ void run() const {
    const bool nested = a.scales.absmax_8bit != nullptr;
    const bool ahead = nested && a.read != MidArgs::kBytes;
    Raw raw[kRowGroups];
    float offset = 0.0f;
    if (chunks < 2) return;
    if (ahead) {
#pragma unroll
      for (int r = 0; r < kRowGroups; ++r) raw[r] = load(r, first_block + 16);
    }
    if (nested) {
      float* map = reinterpret_cast<float*>(shared + map_at);
      for (int i = id; i < 256; i += 64) map[i] = __ldg(a.scales.absmax_code + i);
      offset = __ldg(a.scales.absmax_offset);
    }
    sync_group<kMidScaleWarps>(64);
#pragma unroll 1
    for (int c = 1; c < chunks; ++c) {
      const int slot = c & 1, block = first_block + c * 16;
      if (c >= 2) wait_barrier(ring_empty(barriers, slot), (c / 2 - 1) & 1);
      if (ahead) {
#pragma unroll
        for (int r = 0; r < kRowGroups; ++r) {
          decode(raw[r], r, block, slot, offset);
          if (c + 1 < chunks) raw[r] = load(r, block + 16);
        }
      } else {
#pragma unroll 1  // registers are few here
        for (int r = 0; r < kRowGroups; ++r) copy(r, block, slot, offset);
      }
      arrive(ring_full(barriers, slot));
    }
  }
};

}  // namespace lowbit::kernels::cuda
