// NF4 and FP4 for AVX2: codes by a binary search whose tables sit in registers, values by byte
// shuffles.
#include <cfloat>
#include <cstring>

#include "codebook.h"
#include "cpu/vec_avx2.h"
#include "lowbit/kernels/fourbit.h"

#define LOWBIT_ISA avx2

namespace lowbit::kernels::cpu::avx2 {

static constexpr int kGroup = 32;

static inline I above(F y, F threshold) {
  return _mm256_castps_si256(_mm256_cmp_ps(y, threshold, _CMP_GT_OQ));
}
/// 2 * node + (0 or -1). Nodes count downwards from 0, because a comparison gives -1; vpermps reads
/// their low 3 bits.
static inline I child(I node, I is_above) {
  return _mm256_add_epi32(_mm256_add_epi32(node, node), is_above);
}

/// Minus the codes.
template <QuantType kType>
static inline I codes(F y) {
  if constexpr (kType == QuantType::kNF4) {
    constexpr const float* t = codebook::kNf4Thresholds;
    const F second = _mm256_setr_ps(t[3], 0, 0, 0, 0, 0, 0, t[11]);
    const F third = _mm256_setr_ps(t[1], 0, 0, 0, 0, t[13], t[9], t[5]);
    const F fourth = _mm256_setr_ps(t[0], t[14], t[12], t[10], t[8], t[6], t[4], t[2]);
    I node = above(y, set(t[7]));
    node = child(node, above(y, _mm256_permutevar8x32_ps(second, node)));
    node = child(node, above(y, _mm256_permutevar8x32_ps(third, node)));
    return child(node, above(y, _mm256_permutevar8x32_ps(fourth, node)));
  } else {
    constexpr const float* t = codebook::kFp4Thresholds;
    constexpr const uint8_t* c = codebook::kFp4Ascending;
    const F second = _mm256_setr_ps(t[1], 0, 0, 0, 0, 0, 0, t[5]);
    const F third = _mm256_setr_ps(t[0], 0, 0, 0, 0, t[6], t[4], t[2]);
    const I code = _mm256_setr_epi32(-c[0], -c[7], -c[6], -c[5], -c[4], -c[3], -c[2], -c[1]);
    const F a = magnitude(y);
    I node = above(a, set(t[3]));
    node = child(node, above(a, _mm256_permutevar8x32_ps(second, node)));
    node = child(node, above(a, _mm256_permutevar8x32_ps(third, node)));
    const I sign = _mm256_slli_epi32(above(_mm256_setzero_ps(), y), 3);
    return _mm256_add_epi32(_mm256_permutevar8x32_epi32(code, node), sign);
  }
}

template <QuantType kType, typename T>
static inline void encode_group(const T* input, F scale, uint8_t* packed) {
  const I c0 = codes<kType>(multiply(load(input), scale));
  const I c1 = codes<kType>(multiply(load(input + 8), scale));
  const I c2 = codes<kType>(multiply(load(input + 16), scale));
  const I c3 = codes<kType>(multiply(load(input + 24), scale));
  // Packing works in 128-bit lanes: quadruples come out as 0 2 4 6 | 1 3 5 7.
  const __m256i bytes =
      _mm256_abs_epi8(_mm256_packs_epi16(_mm256_packs_epi32(c0, c1), _mm256_packs_epi32(c2, c3)));
  const __m256i ordered =
      _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  const __m256i pairs = _mm256_maddubs_epi16(ordered, _mm256_set1_epi16(0x0110));
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(packed),
      _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
}

namespace {

/// A block has 16 possible values: they are scaled and rounded once, then looked up.
template <typename T>
class Decoder {  // 16-bit outputs: one byte shuffle for the low halves, one for the high halves
 public:
  explicit Decoder(const float* table)
      : low_values_(_mm256_loadu_ps(table)), high_values_(_mm256_loadu_ps(table + 8)) {}

  void set_scale(float scale) {
    const __m256i words = _mm256_set_m128i(round_to<T>(multiply(high_values_, set(scale))),
                                           round_to<T>(multiply(low_values_, set(scale))));
    const __m256i split = _mm256_permute4x64_epi64(
        _mm256_packus_epi16(_mm256_and_si256(words, _mm256_set1_epi16(0xff)),
                            _mm256_srli_epi16(words, 8)),
        0xd8);
    low_bytes_ = _mm256_permute2x128_si256(split, split, 0x00);
    high_bytes_ = _mm256_permute2x128_si256(split, split, 0x11);
  }

  void decode_group(const uint8_t* packed, T* output) const {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed));
    const __m128i nibble = _mm_set1_epi8(15);
    const __m128i even = _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble);
    const __m128i odd = _mm_and_si128(bytes, nibble);
    const __m256i code =
        _mm256_set_m128i(_mm_unpackhi_epi8(even, odd), _mm_unpacklo_epi8(even, odd));
    const __m256i low = _mm256_shuffle_epi8(low_bytes_, code);
    const __m256i high = _mm256_shuffle_epi8(high_bytes_, code);
    const __m256i a = _mm256_unpacklo_epi8(low, high);  // 0..7 | 16..23
    const __m256i b = _mm256_unpackhi_epi8(low, high);  // 8..15 | 24..31
    __m256i* out = reinterpret_cast<__m256i*>(output);
    _mm256_storeu_si256(out, _mm256_permute2x128_si256(a, b, 0x20));
    _mm256_storeu_si256(out + 1, _mm256_permute2x128_si256(a, b, 0x31));
  }

 private:
  F low_values_, high_values_;
  __m256i low_bytes_, high_bytes_;
};

template <>
class Decoder<float> {
 public:
  explicit Decoder(const float* table)
      : low_values_(_mm256_loadu_ps(table)), high_values_(_mm256_loadu_ps(table + 8)) {}

  void set_scale(float scale) {
    low_ = multiply(low_values_, set(scale));
    high_ = multiply(high_values_, set(scale));
  }

  void decode_group(const uint8_t* packed, float* output) const {
    const __m256i shifts = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
    for (int i = 0; i < 4; ++i) {
      int32_t bytes;
      std::memcpy(&bytes, packed + 4 * i, 4);
      const __m256i code = _mm256_srlv_epi32(_mm256_set1_epi32(bytes), shifts);
      const F is_high = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));  // bit 3 as the sign
      store(output + 8 * i, select(is_high, _mm256_permutevar8x32_ps(high_, code),
                                   _mm256_permutevar8x32_ps(low_, code)));
    }
  }

 private:
  F low_values_, high_values_, low_, high_;
};

}  // namespace

}  // namespace lowbit::kernels::cpu::avx2

#include "cpu/fourbit_simd.h"
