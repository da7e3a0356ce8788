// Sixteen float32 lanes: the words that the shared kernel sources (*_simd.h) are written in, for
// AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "scalar.h"

namespace lowbit::kernels::cpu::avx512 {

using F = __m512;
using Mask = __mmask16;
using I = __m512i;    ///< int32 lanes
using U16 = __m512i;  ///< uint16 lanes

inline constexpr int kLanes = 16;
inline constexpr int kLanes16 = 32;

static inline F set(float x) { return _mm512_set1_ps(x); }
static inline F multiply(F a, F b) { return _mm512_mul_ps(a, b); }
static inline F divide(F a, F b) { return _mm512_div_ps(a, b); }
static inline F add(F a, F b) { return _mm512_add_ps(a, b); }
static inline F square_root(F a) { return _mm512_sqrt_ps(a); }
static inline F multiply_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
static inline F magnitude(F a) { return _mm512_abs_ps(a); }
/// a > b ? a : b, so b when either is NaN.
static inline F larger(F a, F b) { return _mm512_max_ps(a, b); }
static inline F smaller(F a, F b) { return _mm512_min_ps(a, b); }
static inline Mask at_least(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
static inline Mask is_nan(F a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
static inline F zero_where(Mask m, F a) { return _mm512_maskz_mov_ps(static_cast<Mask>(~m), a); }
static inline F select(Mask m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
static inline uint32_t lane_bits(Mask m) { return m; }

static inline float largest_lane(F a) { return _mm512_reduce_max_ps(a); }

static inline F widen(__m256i bfloats) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloats), 16));
}
/// Sixteen elements of 16 bits, rounded to nearest even. The instruction for bfloat16 would flush
/// subnormals.
template <typename T>
static inline __m256i round_to(F a) {
  if constexpr (std::is_same_v<T, Half>) {
    return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  } else {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i chosen =
        _mm512_mask_or_epi32(rounded, is_nan(a), bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
  }
}
/// Nearest integers, ties to even; lanes must lie in [-128, 127].
static inline __m128i to_bytes(F a) { return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a)); }

static inline F load(const float* p) { return _mm512_loadu_ps(p); }
static inline F load(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static inline F load(const BFloat* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static inline F load(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}
static inline F load(const int32_t* p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }

static inline void store(float* p, F a) { _mm512_storeu_ps(p, a); }
static inline void store(Half* p, F a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round_to<Half>(a));
}
static inline void store(BFloat* p, F a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round_to<BFloat>(a));
}
static inline void store(int8_t* p, F a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bytes(a));
}

// The first n elements, 0 < n < kLanes; zeros above, and nothing beyond them is read or written.
static inline Mask first(int n) { return static_cast<Mask>((1u << n) - 1); }
static inline F load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
static inline F load_first(const Half* p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
}
static inline F load_first(const BFloat* p, int n) {
  return widen(_mm256_maskz_loadu_epi16(first(n), p));
}
static inline F load_first(const int8_t* p, int n) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(n), p)));
}
static inline F load_first(const int32_t* p, int n) {
  return _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(first(n), p));
}
static inline void store_first(float* p, F a, int n) { _mm512_mask_storeu_ps(p, first(n), a); }
static inline void store_first(Half* p, F a, int n) {
  _mm256_mask_storeu_epi16(p, first(n), round_to<Half>(a));
}
static inline void store_first(BFloat* p, F a, int n) {
  _mm256_mask_storeu_epi16(p, first(n), round_to<BFloat>(a));
}
static inline void store_first(int8_t* p, F a, int n) {
  _mm_mask_storeu_epi8(p, first(n), to_bytes(a));
}

// Magnitudes of 16-bit floats are ordered like their bits.
static inline U16 load_magnitudes(const void* p) {
  return _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi16(0x7fff));
}
static inline U16 zero16() { return _mm512_setzero_si512(); }
static inline U16 larger16(U16 a, U16 b) { return _mm512_max_epu16(a, b); }
static inline uint32_t largest_lane16(U16 a) {
  const __m256i q = _mm256_max_epu16(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
  const __m128i h = _mm_max_epu16(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  const __m128i least = _mm_minpos_epu16(_mm_xor_si128(h, _mm_set1_epi16(-1)));
  return 0xffffu ^ static_cast<uint32_t>(_mm_extract_epi16(least, 0));
}

}  // namespace lowbit::kernels::cpu::avx512
