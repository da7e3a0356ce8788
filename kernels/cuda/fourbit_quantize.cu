// NF4/FP4 quantization. Memory-bound: the aim is the copy bandwidth, so the code of an element must
// cost about ten instructions. Fifteen compares would take twice the time of the traffic; instead
// the range [-1, 1] is cut in 32 buckets, round(y * scale) + 16, with a scale at which no bucket
// holds two thresholds: code = base + (y > threshold). One fused multiply-add leaves the bucket in
// the low mantissa bits; the closest threshold lies 0.07 of a bucket from an edge, so the rounding
// of that step cannot matter (make_buckets checks it).
#include <type_traits>

#include "codebook.h"
#include "cuda/common/cast.cuh"
#include "cuda/common/launch.h"
#include "validate.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBuckets = 32;
constexpr int kCopies = 16;  // one per lane of a half-warp: 8-byte reads without bank conflicts

template <QuantType kType>
constexpr float kBucketScale = kType == QuantType::kNF4 ? 14.6f : 14.12f;

/// A bucket: the threshold inside it (+inf when there is none) and the number of thresholds below
/// it.
struct Bucket {
  float threshold;
  int base;
};
struct BucketTable {
  Bucket buckets[kBuckets];
  bool exact = true;
};

template <QuantType kType>
constexpr BucketTable make_buckets() {
  constexpr bool kNf4 = kType == QuantType::kNF4;
  BucketTable table{};
  for (int b = 0; b < kBuckets; ++b) {
    Bucket bucket{codebook::from_bits(0x7f800000), 0};
    int inside = 0;
    for (int k = 0; k < (kNf4 ? 15 : 7); ++k) {
      const float threshold = kNf4 ? codebook::kNf4Thresholds[k] : codebook::kFp4Thresholds[k];
      const double place = static_cast<double>(threshold) * kBucketScale<kType> + 16.0 - b;
      if (place > 0.45 && place < 0.55) table.exact = false;  // on a bucket's edge
      if (place < -0.5) {
        ++bucket.base;
      } else if (place < 0.5) {
        if (++inside > 1) table.exact = false;
        bucket.threshold = threshold;
      }
    }
    table.buckets[b] = bucket;
  }
  return table;
}

/// The table in shared memory, replicated so that every lane reads its own banks.
struct SharedBuckets {
  Bucket rows[kBuckets][kCopies];
  __device__ void fill(const BucketTable& table) {
    for (int i = threadIdx.x; i < kBuckets * kCopies; i += blockDim.x) {
      rows[i / kCopies][i % kCopies] = table.buckets[i / kCopies];
    }
    __syncthreads();
  }
};

/// The bucket of y in [-1, 1]: adding 1.5 * 2^23 leaves the rounded integer in the low bits of the
/// mantissa.
template <QuantType kType>
__device__ __forceinline__ Bucket bucket_of(float y, const SharedBuckets& table) {
  constexpr float kMagic = 12582912.0f;
  constexpr uint32_t kMagicBits = 0x4b400000u;
  const uint32_t index = __float_as_uint(fmaf(y, kBucketScale<kType>, kMagic + 16.0f)) - kMagicBits;
  return table.rows[index][threadIdx.x % kCopies];
}

template <QuantType kType>
__device__ __forceinline__ uint32_t code_of(float y, const SharedBuckets& table) {
  if constexpr (kType == QuantType::kNF4) {
    // NaN has code 0: the maximum takes its bucket to 0, and the compare with the NaN itself fails.
    const Bucket bucket = bucket_of<kType>(fmaxf(y, -1.0f), table);
    return bucket.base + (y > bucket.threshold);
  } else {
    const float magnitude = fmaxf(fabsf(y), 0.0f);  // 0 for NaN
    const Bucket bucket = bucket_of<kType>(magnitude, table);
    // Rank to code through the nibbles of a constant: {0, 1, 6, 7, 4, 5, 2, 3}.
    const uint32_t rank = bucket.base + (magnitude > bucket.threshold);
    return (0x32547610u >> (4 * rank) & 7u) | (y < 0.0f ? 8u : 0u);
  }
}

/// Eight codes in memory order: element 0 in the high nibble of byte 0.
template <QuantType kType, typename T>
__device__ __forceinline__ uint32_t encode8(const Pack8<T>& x, float reciprocal,
                                            const SharedBuckets& table) {
  uint32_t packed = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    packed |= code_of<kType>(to_float(x.values[i]) * reciprocal, table) << (4 * (i ^ 1));
  }
  return packed;
}

template <typename T>
__device__ __forceinline__ float absmax8(const Pack8<T>& x, float initial) {
#pragma unroll
  for (int i = 0; i < 8; ++i) initial = fmaxf(initial, fabsf(to_float(x.values[i])));
  return initial;
}

// A block of only NaN has this absmax.
constexpr float kNothing = -3.402823466e38f;

/// kLanes lanes share a quantization block; each holds kVectors times eight elements. With one
/// vector a lane works on kRepeat blocks at once, to have several loads in flight.
template <typename T, QuantType kType, int kLanes, int kVectors>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const T* __restrict__ input, int64_t numel, uint8_t* __restrict__ packed,
                    float* __restrict__ absmax, const __grid_constant__ BucketTable buckets) {
  constexpr int kBlocksize = kLanes * kVectors * 8;
  constexpr int kRepeat = kVectors >= 4 ? 1 : 4 / kVectors;
  constexpr int kGroups = kThreads / kLanes;
  __shared__ SharedBuckets table;
  table.fill(buckets);

  __shared__ float partial[kRepeat][kThreads / 32];

  const int lane = threadIdx.x % kLanes;
  const int64_t nblocks = ceil_div(numel, kBlocksize);
  const int64_t first = int64_t{blockIdx.x} * kGroups * kRepeat + threadIdx.x / kLanes;
  Pack8<T> x[kRepeat][kVectors];
#pragma unroll
  for (int r = 0; r < kRepeat; ++r) {
    const int64_t start = (first + r * kGroups) * kBlocksize + lane * 8;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t i = start + v * kLanes * 8;
      x[r][v] = i + 8 <= numel ? load8(input + i) : load8_tail(input + i, numel - i);
    }
  }
  float largest[kRepeat];
#pragma unroll
  for (int r = 0; r < kRepeat; ++r) {
    largest[r] = kNothing;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) largest[r] = absmax8(x[r][v], largest[r]);
    largest[r] = group_max<(kLanes < 32 ? kLanes : 32)>(largest[r]);
    if constexpr (kLanes > 32) {
      if (threadIdx.x % 32 == 0) partial[r][threadIdx.x / 32] = largest[r];
    }
  }
  if constexpr (kLanes > 32) {
    __syncthreads();
    const int warp = threadIdx.x / kLanes * (kLanes / 32);
#pragma unroll
    for (int r = 0; r < kRepeat; ++r) {
#pragma unroll
      for (int w = 0; w < kLanes / 32; ++w) largest[r] = fmaxf(largest[r], partial[r][warp + w]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRepeat; ++r) {
    const int64_t block = first + r * kGroups;
    const float reciprocal = fast_reciprocal(largest[r]);
    if (block < nblocks && lane == 0) absmax[block] = largest[r];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t i = block * kBlocksize + lane * 8 + v * kLanes * 8;
      const uint32_t codes = encode8<kType>(x[r][v], reciprocal, table);
      if (i + 8 <= numel) {
        __stcs(reinterpret_cast<uint32_t*>(packed + i / 2), codes);
      } else {
        for (int byte = 0; byte < 4 && i + 2 * byte < numel; ++byte) {
          packed[i / 2 + byte] = static_cast<uint8_t>(codes >> (8 * byte));
        }
      }
    }
  }
}

/// Any even blocksize, any alignment: a warp walks a block twice.
template <typename T, QuantType kType>
__global__ void __launch_bounds__(kThreads)
    quantize_general_kernel(const T* __restrict__ input, int64_t numel, int64_t blocksize,
                            uint8_t* __restrict__ packed, float* __restrict__ absmax,
                            const __grid_constant__ BucketTable buckets) {
  __shared__ SharedBuckets table;
  table.fill(buckets);
  const int lane = threadIdx.x % 32;
  const int64_t block = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  const int64_t begin = block * blocksize;
  if (begin >= numel) return;
  const int64_t end = min(begin + blocksize, numel);
  float largest = end - begin < blocksize ? 0.0f : kNothing;  // a short block is padded with zeros
  for (int64_t i = begin + lane; i < end; i += 32)
    largest = fmaxf(largest, fabsf(to_float(input[i])));
  largest = group_max<32>(largest);
  if (lane == 0) absmax[block] = largest;
  const float reciprocal = fast_reciprocal(largest);
  for (int64_t i = begin + 2 * lane; i < end; i += 64) {
    const float low = i + 1 < end ? to_float(input[i + 1]) : 0.0f;
    packed[i / 2] =
        static_cast<uint8_t>(code_of<kType>(to_float(input[i]) * reciprocal, table) << 4 |
                             code_of<kType>(low * reciprocal, table));
  }
}

template <typename T, QuantType kType>
Status quantize(const Quantize4bitParams& p, Stream stream) noexcept {
  constexpr BucketTable kTable = make_buckets<kType>();
  static_assert(kTable.exact);
  const auto* input = static_cast<const T*>(p.input);
  const auto run = [&](auto lanes, auto vectors) {
    constexpr int kLanes = decltype(lanes)::value, kVectors = decltype(vectors)::value;
    constexpr int64_t kPerCta = (kThreads / kLanes) * (kVectors >= 4 ? 1 : 4 / kVectors);
    return launch(quantize_kernel<T, kType, kLanes, kVectors>,
                  ceil_div(ceil_div(p.numel, p.blocksize), kPerCta), kThreads, stream, input,
                  p.numel, p.packed, p.absmax, kTable);
  };
  if (aligned(p.input, 16) && aligned(p.packed, 4)) {
    using std::integral_constant;
    switch (p.blocksize) {
      case 32:
        return run(integral_constant<int, 4>{}, integral_constant<int, 1>{});
      case 64:
        return run(integral_constant<int, 8>{}, integral_constant<int, 1>{});
      case 128:
        return run(integral_constant<int, 16>{}, integral_constant<int, 1>{});
      case 256:
        return run(integral_constant<int, 32>{}, integral_constant<int, 1>{});
      case 512:
        return run(integral_constant<int, 64>{}, integral_constant<int, 1>{});
      case 1024:
        return run(integral_constant<int, 128>{}, integral_constant<int, 1>{});
      case 2048:
        return run(integral_constant<int, 256>{}, integral_constant<int, 1>{});
      case 4096:
        return run(integral_constant<int, 256>{}, integral_constant<int, 2>{});
      default:
        break;
    }
  }
  return launch(quantize_general_kernel<T, kType>,
                ceil_div(ceil_div(p.numel, p.blocksize), kThreads / 32), kThreads, stream, input,
                p.numel, p.blocksize, p.packed, p.absmax, kTable);
}

}  // namespace

Status quantize_4bit(const Quantize4bitParams& params, Stream stream) noexcept {
  if (const Status status = check(params); !status.ok()) return status;
  return visit_device_dtype(params.input_dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return params.quant_type == QuantType::kNF4 ? quantize<T, QuantType::kNF4>(params, stream)
                                                : quantize<T, QuantType::kFP4>(params, stream);
  });
}

}  // namespace lowbit::kernels::cuda
