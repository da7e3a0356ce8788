// NF4 and FP4 for AVX-512: codes by one lookup and one comparison, values by permutes of a scaled
// table.
#include <cfloat>
#include <cstring>

#include "codebook.h"
#include "cpu/vec_avx512.h"
#include "lowbit/kernels/fourbit.h"

#define LOWBIT_ISA avx512

namespace lowbit::kernels::cpu::avx512 {

static constexpr int kGroup = 32;

/// The thresholds lie so far apart that a bucket of width 1/15.99 holds one at most: the bucket
/// gives the code below its threshold, the threshold, and the code above. No threshold lies near
/// the edge of a bucket, so that the rounding of the bucket number does not matter; 15.99 keeps 1
/// out of bucket 16.
static constexpr float kBucketsPerUnit = 15.99f;

template <int kBuckets>
struct alignas(64) Buckets {
  float threshold[kBuckets];
  int32_t below[kBuckets];
  int32_t above[kBuckets];
};

/// codes[k]: the code between thresholds k - 1 and k. Bucket 0 starts at -offset / kBucketsPerUnit.
template <int kBuckets, int kThresholds, typename Code>
static constexpr Buckets<kBuckets> make_buckets(const float (&thresholds)[kThresholds], Code code,
                                                int offset) {
  Buckets<kBuckets> buckets{};
  for (int b = 0; b < kBuckets; ++b) {
    int passed = 0;
    while (passed < kThresholds && thresholds[passed] * kBucketsPerUnit + offset < b) ++passed;
    const bool inside =
        passed < kThresholds && thresholds[passed] * kBucketsPerUnit + offset < b + 1;
    buckets.threshold[b] = inside ? thresholds[passed] : FLT_MAX;
    buckets.below[b] = code(passed);
    buckets.above[b] = code(inside ? passed + 1 : passed);
  }
  return buckets;
}

static constexpr Buckets<32> kNf4Buckets = make_buckets<32>(
    codebook::kNf4Thresholds, [](int k) { return k; }, 16);
static constexpr Buckets<16> kFp4Buckets = make_buckets<16>(
    codebook::kFp4Thresholds, [](int k) { return int{codebook::kFp4Ascending[k]}; }, 0);

template <QuantType kType>
static inline I codes(F y) {
  if constexpr (kType == QuantType::kNF4) {
    const F t0 = _mm512_load_ps(kNf4Buckets.threshold);
    const F t1 = _mm512_load_ps(kNf4Buckets.threshold + 16);
    const I below0 = _mm512_load_si512(kNf4Buckets.below);
    const I below1 = _mm512_load_si512(kNf4Buckets.below + 16);
    // NaN converts to 0x80000000: bucket 0, and no comparison holds.
    const I bucket = _mm512_cvttps_epi32(multiply_add(y, set(kBucketsPerUnit), set(16.0f)));
    const Mask is_above = _mm512_cmp_ps_mask(y, _mm512_permutex2var_ps(t0, bucket, t1), _CMP_GT_OQ);
    const I code = _mm512_permutex2var_epi32(below0, bucket, below1);
    return _mm512_mask_add_epi32(code, is_above, code, _mm512_set1_epi32(1));
  } else {
    const F threshold = _mm512_load_ps(kFp4Buckets.threshold);
    const I below = _mm512_load_si512(kFp4Buckets.below);
    const I above = _mm512_load_si512(kFp4Buckets.above);
    const F a = magnitude(y);
    const I bucket = _mm512_cvttps_epi32(multiply(a, set(kBucketsPerUnit)));
    const Mask is_above =
        _mm512_cmp_ps_mask(a, _mm512_permutexvar_ps(bucket, threshold), _CMP_GT_OQ);
    const Mask negative = _mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_LT_OQ);
    const I code = _mm512_mask_permutexvar_epi32(_mm512_permutexvar_epi32(bucket, below), is_above,
                                                 bucket, above);
    return _mm512_mask_or_epi32(code, negative, code, _mm512_set1_epi32(8));
  }
}

template <QuantType kType, typename T>
static inline void encode_group(const T* input, F scale, uint8_t* packed) {
  const __m128i low = _mm512_cvtepi32_epi8(codes<kType>(multiply(load(input), scale)));
  const __m128i high = _mm512_cvtepi32_epi8(codes<kType>(multiply(load(input + 16), scale)));
  const __m256i pairs =
      _mm256_maddubs_epi16(_mm256_set_m128i(high, low), _mm256_set1_epi16(0x0110));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(packed), _mm256_cvtepi16_epi8(pairs));
}

namespace {

/// A block has 16 possible values: they are scaled and rounded once, then looked up. Permutes read
/// only the low bits of an index, so that the neighbouring nibble above it need not be masked out.
template <typename T>
class Decoder {  // 16-bit outputs: the 16 values twice in one register
 public:
  explicit Decoder(const float* table) : values_(_mm512_loadu_ps(table)) {}

  void set_scale(float scale) {
    words_ = _mm512_broadcast_i64x4(round_to<T>(multiply(values_, set(scale))));
  }

  void decode_group(const uint8_t* packed, T* output) const {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed));
    // Two bytes in each 64-bit lane; their four nibbles, high one first, to the low ends of four
    // words.
    const __m512i spread = _mm512_cvtepu16_epi64(bytes);
    const __m512i shifts = _mm512_set1_epi64(0x0008'000c'0000'0004);
    const __m512i code = _mm512_multishift_epi64_epi8(shifts, spread);
    _mm512_storeu_si512(output, _mm512_permutexvar_epi16(code, words_));
  }

 private:
  F values_;
  __m512i words_;
};

template <>
class Decoder<float> {
 public:
  explicit Decoder(const float* table) : values_(_mm512_loadu_ps(table)) {}

  void set_scale(float scale) { scaled_ = multiply(values_, set(scale)); }

  void decode_group(const uint8_t* packed, float* output) const {
    // 64-bit lane j takes the two nibbles of byte j, high one first.
    const __m512i shifts =
        _mm512_add_epi64(_mm512_set1_epi64(0x0000'0000'0000'0004),
                         _mm512_mullo_epi64(_mm512_setr_epi64(0, 8, 16, 24, 32, 40, 48, 56),
                                            _mm512_set1_epi64(0x0000'0001'0000'0001)));
    for (int i = 0; i < 2; ++i) {
      int64_t bytes;
      std::memcpy(&bytes, packed + 8 * i, 8);
      const __m512i code = _mm512_multishift_epi64_epi8(shifts, _mm512_set1_epi64(bytes));
      store(output + 16 * i, _mm512_permutexvar_ps(code, scaled_));
    }
  }

 private:
  F values_, scaled_;
};

}  // namespace

}  // namespace lowbit::kernels::cpu::avx512

#include "cpu/fourbit_simd.h"
