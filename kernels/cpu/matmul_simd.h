// Vector words of the matmul kernels, at the width of the instruction set that the including file
// is compiled for. Everything is local to the including file: the linker must never merge code of
// two instruction sets.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "lowbit/kernels/types.h"

#define LOWBIT_INLINE inline __attribute__((always_inline))
#define LOWBIT_NOINLINE __attribute__((noinline))
// g++ keeps arrays of accumulators in memory unless every loop over them is unrolled by request.
#define LOWBIT_UNROLL _Pragma("GCC unroll 16")

namespace lowbit::kernels::cpu {
namespace {

/// Four bytes of any type at any address.
using AliasedWord = int32_t __attribute__((may_alias, aligned(1)));

/// The registers of a panel tile: kRows rows of the input against two vectors of columns.
/// add_pairs and add_floats are one row's part of one step, c += broadcast(x) * w. They are written
/// in assembly because a tile uses every register: left to the compiler, all rows' broadcasts are
/// hoisted above the products and the accumulators spill (measured: 2.5 times slower).
struct Simd {
#if defined(__AVX512F__)
  using Float = __m512;
  using Int = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int kRows = 12;  // 24 accumulators, 2 vectors of weights, 1 broadcast: 27 of 32
  static LOWBIT_INLINE Float load(const float* p) { return _mm512_loadu_ps(p); }
  static LOWBIT_INLINE Int load(const void* p) { return _mm512_loadu_si512(p); }
  static LOWBIT_INLINE void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
  static LOWBIT_INLINE void store(int32_t* p, Int v) { _mm512_storeu_si512(p, v); }
  static LOWBIT_INLINE Float broadcast(float x) { return _mm512_set1_ps(x); }
  static LOWBIT_INLINE Float to_float(Int v) { return _mm512_cvtepi32_ps(v); }
  static LOWBIT_INLINE Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static LOWBIT_INLINE Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static LOWBIT_INLINE Int zero() { return _mm512_setzero_si512(); }
  static LOWBIT_INLINE void add_pairs(const char* x, Int w0, Int w1, Int& c0, Int& c1) {
    Int v;
    asm volatile(
        "vpbroadcastd %[x], %[v]\n\t"
        "vpdpwssd %[w0], %[v], %[c0]\n\t"
        "vpdpwssd %[w1], %[v], %[c1]"
        : [c0] "+v"(c0), [c1] "+v"(c1), [v] "=&v"(v)
        : [w0] "v"(w0), [w1] "v"(w1), [x] "m"(*reinterpret_cast<const AliasedWord*>(x)));
  }
  static LOWBIT_INLINE void add_floats(const char* x, Float w0, Float w1, Float& c0, Float& c1) {
    Float v;
    asm volatile(
        "vbroadcastss %[x], %[v]\n\t"
        "vfmadd231ps %[w0], %[v], %[c0]\n\t"
        "vfmadd231ps %[w1], %[v], %[c1]"
        : [c0] "+v"(c0), [c1] "+v"(c1), [v] "=&v"(v)
        : [w0] "v"(w0), [w1] "v"(w1), [x] "m"(*reinterpret_cast<const AliasedWord*>(x)));
  }
#else
  using Float = __m256;
  using Int = __m256i;
  static constexpr int kLanes = 8;
  static constexpr int kRows = 6;  // 12 accumulators, 2 vectors of weights, 1 broadcast, 1 product
  static LOWBIT_INLINE Float load(const float* p) { return _mm256_loadu_ps(p); }
  static LOWBIT_INLINE Int load(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static LOWBIT_INLINE void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static LOWBIT_INLINE void store(int32_t* p, Int v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
  }
  static LOWBIT_INLINE Float broadcast(float x) { return _mm256_set1_ps(x); }
  static LOWBIT_INLINE Float to_float(Int v) { return _mm256_cvtepi32_ps(v); }
  static LOWBIT_INLINE Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static LOWBIT_INLINE Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static LOWBIT_INLINE Int zero() { return _mm256_setzero_si256(); }
  static LOWBIT_INLINE void add_pairs(const char* x, Int w0, Int w1, Int& c0, Int& c1) {
    Int v, t;
    asm volatile(
        "vpbroadcastd %[x], %[v]\n\t"
        "vpmaddwd %[w0], %[v], %[t]\n\t"
        "vpmaddwd %[w1], %[v], %[v]\n\t"
        "vpaddd %[t], %[c0], %[c0]\n\t"
        "vpaddd %[v], %[c1], %[c1]"
        : [c0] "+x"(c0), [c1] "+x"(c1), [v] "=&x"(v), [t] "=&x"(t)
        : [w0] "x"(w0), [w1] "x"(w1), [x] "m"(*reinterpret_cast<const AliasedWord*>(x)));
  }
  static LOWBIT_INLINE void add_floats(const char* x, Float w0, Float w1, Float& c0, Float& c1) {
    Float v;
    asm volatile(
        "vbroadcastss %[x], %[v]\n\t"
        "vfmadd231ps %[w0], %[v], %[c0]\n\t"
        "vfmadd231ps %[w1], %[v], %[c1]"
        : [c0] "+x"(c0), [c1] "+x"(c1), [v] "=&x"(v)
        : [w0] "x"(w0), [w1] "x"(w1), [x] "m"(*reinterpret_cast<const AliasedWord*>(x)));
  }
#endif
  static constexpr int kTileColumns = 2 * kLanes;
};

/// c + sums of neighbouring products of int16 pairs, on 8 lanes.
LOWBIT_INLINE __m256i dot_pairs8(__m256i c, __m256i a, __m256i b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return _mm256_dpwssd_epi32(c, a, b);
#else
  return _mm256_add_epi32(c, _mm256_madd_epi16(a, b));
#endif
}

LOWBIT_INLINE float sum(__m256 v) {
  const __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 b = _mm_add_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
LOWBIT_INLINE int32_t sum(__m256i v) {
  const __m128i a = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i b = _mm_add_epi32(a, _mm_unpackhi_epi64(a, a));
  return _mm_cvtsi128_si32(_mm_add_epi32(b, _mm_shuffle_epi32(b, 0x55)));
}

/// Lane i: the sum of v[i].
LOWBIT_INLINE __m256 sum_each(const __m256 (&v)[8]) {
  __m256 pairs[4], fours[2];
  LOWBIT_UNROLL for (int i = 0; i < 4; ++i) {
    pairs[i] = _mm256_add_ps(_mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]),
                             _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]));
  }
  LOWBIT_UNROLL for (int i = 0; i < 2; ++i) {
    const __m256d a = _mm256_castps_pd(pairs[2 * i]), b = _mm256_castps_pd(pairs[2 * i + 1]);
    fours[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)),
                             _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
  }
  return _mm256_add_ps(_mm256_permute2f128_ps(fours[0], fours[1], 0x20),
                       _mm256_permute2f128_ps(fours[0], fours[1], 0x31));
}

LOWBIT_INLINE __m256i load_bytes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

// ---- element types

template <DType kType>
LOWBIT_INLINE __m256 load8(const void* data, int64_t i) {
  if constexpr (kType == DType::kFloat32) {
    return _mm256_loadu_ps(static_cast<const float*>(data) + i);
  } else {
    const __m128i v =
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(data) + i));
    if constexpr (kType == DType::kFloat16) return _mm256_cvtph_ps(v);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
  }
}

/// Round to nearest even, NaN kept.
LOWBIT_INLINE __m128i to_bfloat8(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_srli_epi32(
      _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i nan = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  r = _mm256_blendv_epi8(r, nan, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
  return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}

/// out[0, count) = data[begin, begin + count) as float32. Reads nothing else.
template <DType kType>
inline void widen_as(const void* data, int64_t begin, int64_t count, float* out) {
  if constexpr (kType == DType::kFloat32) {
    std::memcpy(out, static_cast<const float*>(data) + begin, static_cast<size_t>(count) * 4);
  } else {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(out + i, load8<kType>(data, begin + i));
    if (i < count) {
      uint16_t tail[8] = {};
      const size_t left = static_cast<size_t>(count - i);
      std::memcpy(tail, static_cast<const uint16_t*>(data) + begin + i, left * 2);
      float wide[8];
      _mm256_storeu_ps(wide, load8<kType>(tail, 0));
      std::memcpy(out + i, wide, left * 4);
    }
  }
}
inline void widen(const void* data, DType type, int64_t begin, int64_t count, float* out) {
  switch (type) {
    case DType::kFloat32:
      return widen_as<DType::kFloat32>(data, begin, count, out);
    case DType::kFloat16:
      return widen_as<DType::kFloat16>(data, begin, count, out);
    case DType::kBFloat16:
      return widen_as<DType::kBFloat16>(data, begin, count, out);
  }
}

/// data[begin, begin + count) = values rounded to type, count <= 64. Reads `values` up to the next
/// multiple of 8, writes nothing else.
inline void narrow(void* data, DType type, int64_t begin, int64_t count, const float* values) {
  if (type == DType::kFloat32) {
    std::memcpy(static_cast<float*>(data) + begin, values, static_cast<size_t>(count) * 4);
    return;
  }
  alignas(16) uint16_t rounded[64];
  for (int64_t i = 0; i < count; i += 8) {
    const __m256 v = _mm256_loadu_ps(values + i);
    const __m128i r = type == DType::kFloat16
                          ? _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
                          : to_bfloat8(v);
    _mm_store_si128(reinterpret_cast<__m128i*>(rounded + i), r);
  }
  std::memcpy(static_cast<uint16_t*>(data) + begin, rounded, static_cast<size_t>(count) * 2);
}

}  // namespace
}  // namespace lowbit::kernels::cpu
