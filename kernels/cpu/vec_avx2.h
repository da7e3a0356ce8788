// Eight float32 lanes: the words that the shared kernel sources (*_simd.h) are written in, for
// AVX2.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "scalar.h"

namespace lowbit::kernels::cpu::avx2 {

using F = __m256;
using Mask = __m256;  ///< all bits or none, per lane
using I = __m256i;    ///< int32 lanes
using U16 = __m256i;  ///< uint16 lanes

inline constexpr int kLanes = 8;
inline constexpr int kLanes16 = 16;

static inline F set(float x) { return _mm256_set1_ps(x); }
static inline F multiply(F a, F b) { return _mm256_mul_ps(a, b); }
static inline F divide(F a, F b) { return _mm256_div_ps(a, b); }
static inline F add(F a, F b) { return _mm256_add_ps(a, b); }
static inline F square_root(F a) { return _mm256_sqrt_ps(a); }
static inline F multiply_add(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
static inline F magnitude(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
/// a > b ? a : b, so b when either is NaN.
static inline F larger(F a, F b) { return _mm256_max_ps(a, b); }
static inline F smaller(F a, F b) { return _mm256_min_ps(a, b); }
static inline Mask at_least(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
static inline Mask is_nan(F a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
static inline F zero_where(Mask m, F a) { return _mm256_andnot_ps(m, a); }
static inline F select(Mask m, F yes, F no) { return _mm256_blendv_ps(no, yes, m); }
static inline uint32_t lane_bits(Mask m) { return static_cast<uint32_t>(_mm256_movemask_ps(m)); }

static inline float largest_lane(F a) {
  __m128 h = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  h = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}

static inline F load(const float* p) { return _mm256_loadu_ps(p); }
static inline F load(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline F load(const BFloat* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
static inline F load(const int8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}
static inline F load(const int32_t* p) {
  return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

static inline void store(float* p, F a) { _mm256_storeu_ps(p, a); }
/// Eight elements of 16 bits, rounded to nearest even.
template <typename T>
static inline __m128i round_to(F a) {
  if constexpr (std::is_same_v<T, Half>) {
    return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  } else {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_add_epi32(bits, bias);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i high =
        _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(is_nan(a))), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  }
}
static inline void store(Half* p, F a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), round_to<Half>(a));
}
static inline void store(BFloat* p, F a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), round_to<BFloat>(a));
}
/// Nearest integers, ties to even; lanes must lie in [-128, 127].
static inline void store(int8_t* p, F a) {
  const __m256i q = _mm256_cvtps_epi32(a);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

/// The first n elements, 0 < n < kLanes; zeros above, and nothing beyond them is read or written.
template <typename T>
static inline F load_first(const T* p, int n) {
  T lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(T));
  return load(lanes);
}
template <typename T>
static inline void store_first(T* p, F a, int n) {
  T lanes[kLanes];
  store(lanes, a);
  std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof(T));
}

// Magnitudes of 16-bit floats are ordered like their bits.
static inline U16 load_magnitudes(const void* p) {
  return _mm256_and_si256(_mm256_loadu_si256(static_cast<const __m256i*>(p)),
                          _mm256_set1_epi16(0x7fff));
}
static inline U16 zero16() { return _mm256_setzero_si256(); }
static inline U16 larger16(U16 a, U16 b) { return _mm256_max_epu16(a, b); }
static inline uint32_t largest_lane16(U16 a) {
  const __m128i h = _mm_max_epu16(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  const __m128i least = _mm_minpos_epu16(_mm_xor_si128(h, _mm_set1_epi16(-1)));
  return 0xffffu ^ static_cast<uint32_t>(_mm_extract_epi16(least, 0));
}

}  // namespace lowbit::kernels::cpu::avx2
