// NF4/FP4 quantization. Memory-bound: the aim is the copy bandwidth, so the code of an element must
// cost about ten instructions. Fifteen compares would take twice the time of the traffic; instead
// the range is cut in buckets so fine that none holds two thresholds: one compare is left.
//
// The bucket comes from one fused multiply-add, 128 * (y * scale + origin) + 1.5 * 2^23, whose low
// mantissa bits are the rounded integer: bits 7 to 11 of it are the bucket, and at the same time
// the byte offset of its row in shared memory. A row holds sixteen copies, one for each lane of a
// half-warp, so that 8-byte reads never conflict; masking in the lane costs nothing (one LOP3).
// The closest threshold lies a tenth of a bucket from an edge at least, so the rounding of that
// step cannot matter (make_buckets checks it). NaN has all bits set: bucket 31, which is kept for
// it.
//
// A bucket holds the codes on both sides of its threshold in the top bits of a word; a compare
// chooses by shifting, and a funnel shift appends the code to those before it.
//
// Tiles come through a ring in shared memory (lane_ring.cuh): with loads into registers neither
// instructions (61 % of the issue slots) nor memory (65 %) were the limit but the latency, and more
// CTAs of fewer registers changed little. H200, percent of the copy, NF4 64 / FP4 64 / NF4 4096:
// loads 79 / 78 / 81; six CTAs, loads 80 / 78 / 86; six CTAs, ring of four packs 92 / 81 / 94;
// eight CTAs, ring of two packs 90 / 91 / 91.
#include <type_traits>

#include "codebook.h"
#include "cuda/common/absmax.cuh"
#include "cuda/common/cast.cuh"
#include "cuda/common/lane_ring.cuh"
#include "cuda/common/launch.h"
#include "validate.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBuckets = 32;
constexpr int kCopies = 16;
/// The table is filled once a CTA: as many, long-lived CTAs as fit, of 32 registers.
constexpr int kCtasPerMultiprocessor = 8;
/// Of the architectures that hold fewer threads, as many as they hold.
#if __CUDA_ARCH__ == 750
constexpr int kResidentCtas = 4;
#elif __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 870 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
constexpr int kResidentCtas = 6;
#else
constexpr int kResidentCtas = kCtasPerMultiprocessor;
#endif

template <QuantType kType>
constexpr bool kSigned = kType == QuantType::kNF4;
/// Buckets a unit of y, and the bucket of y = 0: NF4's buckets cover [-1, 1], FP4's the magnitudes.
template <QuantType kType>
constexpr float kScale = kSigned<kType> ? 11.208f : 23.926f;
template <QuantType kType>
constexpr float kOrigin = kSigned<kType> ? 16.0f : 0.5f;

/// The threshold inside (+inf when there is none), and the codes of what lies not above it (bits 28
/// to 31) and above it (bits 24 to 27).
struct Bucket {
  float threshold;
  uint32_t codes;
};
struct BucketTable {
  Bucket buckets[kBuckets];
  bool exact = true;
};

template <QuantType kType>
constexpr BucketTable make_buckets() {
  constexpr bool kNf4 = kType == QuantType::kNF4;
  constexpr int kThresholds = kNf4 ? 15 : 7;
  const auto code = [](int rank) {
    return static_cast<uint32_t>(kNf4 ? rank : codebook::kFp4Ascending[rank]);
  };
  BucketTable table{};
  for (int b = 0; b < kBuckets; ++b) {
    int rank = 0, inside = 0;
    float threshold = codebook::from_bits(0x7f800000);
    for (int k = 0; k < kThresholds; ++k) {
      const float t = kNf4 ? codebook::kNf4Thresholds[k] : codebook::kFp4Thresholds[k];
      const double place = static_cast<double>(t) * kScale<kType> + kOrigin<kType> - b;
      // The edges lie half a 128th below the integers: what is rounded is 128 times the place.
      if (place > -0.1 && place < 0.1) table.exact = false;
      if (place < 0.0) {
        ++rank;
      } else if (place < 1.0) {
        if (++inside > 1) table.exact = false;
        threshold = t;
      }
    }
    const uint32_t above = code(rank + inside);
    table.buckets[b] = {threshold, code(rank) << 28 | above << 24};
  }
  // y reaches a few units in the last place beyond 1; the last bucket is NaN's.
  if (1.01 * kScale<kType> + kOrigin<kType> >= kBuckets - 1) table.exact = false;
  table.buckets[kBuckets - 1] = {codebook::from_bits(0x7f800000), 0};
  return table;
}

/// The table in shared memory.
struct SharedBuckets {
  Bucket rows[kBuckets][kCopies];
  __device__ void fill(const BucketTable& table) {
    for (int i = threadIdx.x; i < kBuckets * kCopies; i += blockDim.x) {
      rows[i / kCopies][i % kCopies] = table.buckets[i / kCopies];
    }
    __syncthreads();
  }
};
static_assert(sizeof(SharedBuckets::rows[0]) == 128);

/// What a lane carries: its place in every row.
__device__ __forceinline__ uint32_t lane_offset() {
  const uint32_t offset = threadIdx.x % kCopies * static_cast<uint32_t>(sizeof(Bucket));
  // From its own lane: a value that the compiler knows nothing of is not computed again at every
  // use.
  return __shfl_sync(0xffffffffu, offset, threadIdx.x % 32);
}

template <QuantType kType>
__device__ __forceinline__ uint2 bucket_of(float y, const SharedBuckets& table, uint32_t lane) {
  constexpr float kMagic = 12582912.0f;
  const float place = fmaf(y, 128.0f * kScale<kType>, kMagic + 128.0f * kOrigin<kType>);
  const uint32_t offset = (__float_as_uint(place) & (kBuckets - 1) * 128u) | lane;
  return *reinterpret_cast<const uint2*>(reinterpret_cast<const char*>(table.rows) + offset);
}

/// codes * 16 + the code of y. NaN has code 0.
template <QuantType kType>
__device__ __forceinline__ uint32_t append_code(uint32_t codes, float y, const SharedBuckets& table,
                                                uint32_t lane) {
  const float place = kSigned<kType> ? y : fabsf(y);
  uint2 bucket = bucket_of<kType>(place, table, lane);
  if (place > __uint_as_float(bucket.x)) bucket.y <<= 4;
  if constexpr (!kSigned<kType>) {
    if (y < 0.0f) bucket.y |= 0x80000000u;
  }
  return __funnelshift_l(bucket.y, codes, 4);
}

/// Eight codes in memory order: element 0 in the high nibble of byte 0.
template <QuantType kType, typename T>
__device__ __forceinline__ uint32_t encode8(const Pack8<T>& x, float reciprocal,
                                            const SharedBuckets& table, uint32_t lane) {
  float values[8];
  to_floats(x, values);
  uint32_t codes = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    codes = append_code<kType>(codes, values[i ^ 6] * reciprocal, table, lane);
  }
  return codes;
}

/// kLanes lanes share a quantization block; each holds kVectors times eight elements. With one
/// vector a lane works on kRepeat blocks at once, to have several loads in flight. A tile is what a
/// CTA does in a turn. kWhole: all tiles are inside the input, and nothing is checked.
template <int kVectors>
constexpr int kRepeat = kVectors >= 2 ? 1 : 2;

template <typename T, QuantType kType, int kLanes, int kVectors, bool kWhole>
__global__ void __launch_bounds__(kThreads, kResidentCtas)
    quantize_kernel(const T* __restrict__ input, int64_t numel, uint8_t* __restrict__ packed,
                    float* __restrict__ absmax, int64_t first_tile, int64_t end_tile,
                    const __grid_constant__ BucketTable buckets) {
  constexpr int kBlocksize = kLanes * kVectors * 8;
  constexpr int kTurns = kRepeat<kVectors>;
  constexpr int kGroups = kThreads / kLanes;
  constexpr bool kRing = kWhole && kHasAsyncCopies;
  __shared__ SharedBuckets table;
  table.fill(buckets);
  __shared__ float partial[2][kTurns][kThreads / 32];

  const int lane = threadIdx.x % kLanes;
  const uint32_t lane_in_row = lane_offset();
  [[maybe_unused]] int turn = 0, slot = 0;
  __shared__ LaneRing<T, kTurns, kVectors, kThreads, kRing> ring;
  int64_t coming = first_tile + blockIdx.x;
  const auto fetch = [&](int to) {
    const int64_t first = coming * (kGroups * kTurns) + threadIdx.x / kLanes;
    ring.fetch(to, coming < end_tile ? input + first * kBlocksize + lane * 8 : nullptr,
               kGroups * kBlocksize, kLanes * 8);
    coming += gridDim.x;
  };
  if constexpr (kRing) {
    fetch(0);
    fetch(1);
  }
  for (int64_t tile = first_tile + blockIdx.x; tile < end_tile; tile += gridDim.x) {
    const int64_t first = tile * (kGroups * kTurns) + threadIdx.x / kLanes;
    const int64_t start = first * kBlocksize + lane * 8;
    Pack8<T> x[kTurns][kVectors];
    if constexpr (kRing) {
      ring.take(x, slot);
    } else {
#pragma unroll
      for (int r = 0; r < kTurns; ++r) {
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          const int64_t i = start + r * kGroups * kBlocksize + v * kLanes * 8;
          x[r][v] = kWhole || i + 8 <= numel ? load8(input + i) : load8_tail(input + i, numel - i);
        }
      }
    }
    float largest[kTurns];
    group_absmax<(kLanes < 32 ? kLanes : 32)>(x, largest);
    if constexpr (kRing) {
      fetch(slot);
      slot ^= 1;
    }
    if constexpr (kLanes > 32) {
      across_warps<kLanes>(largest, partial[turn]);
      turn ^= 1;
    }
#pragma unroll
    for (int r = 0; r < kTurns; ++r) {
      const float reciprocal = fast_reciprocal(largest[r]);
      const int64_t block = first + r * kGroups;
      if (lane == 0 && (kWhole || block * kBlocksize < numel)) absmax[block] = largest[r];
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int64_t i = start + r * kGroups * kBlocksize + v * kLanes * 8;
        const uint32_t codes = encode8<kType>(x[r][v], reciprocal, table, lane_in_row);
        if (kWhole || i + 8 <= numel) {
          __stcs(reinterpret_cast<uint32_t*>(packed + i / 2), codes);
        } else {
          for (int byte = 0; byte < 4 && i + 2 * byte < numel; ++byte) {
            packed[i / 2 + byte] = static_cast<uint8_t>(codes >> (8 * byte));
          }
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
  const uint32_t lane_in_row = lane_offset();
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
    const uint32_t high =
        append_code<kType>(0, to_float(input[i]) * reciprocal, table, lane_in_row);
    packed[i / 2] =
        static_cast<uint8_t>(append_code<kType>(high, low * reciprocal, table, lane_in_row));
  }
}

template <typename T, QuantType kType>
Status quantize(const Quantize4bitParams& p, Stream stream) noexcept {
  constexpr BucketTable kTable = make_buckets<kType>();
  static_assert(kTable.exact);
  const auto* input = static_cast<const T*>(p.input);
  const auto run = [&](auto lanes, auto vectors) {
    constexpr int kLanes = decltype(lanes)::value, kVectors = decltype(vectors)::value;
    constexpr int64_t kTile = int64_t{8} * kThreads * kVectors * kRepeat<kVectors>;  // elements
    const int64_t whole = p.numel / kTile, tiles = ceil_div(p.numel, kTile);
    const int64_t most = multiprocessors() * kCtasPerMultiprocessor;
    const Status status =
        launch(quantize_kernel<T, kType, kLanes, kVectors, true>, whole < most ? whole : most,
               kThreads, stream, input, p.numel, p.packed, p.absmax, int64_t{0}, whole, kTable);
    if (!status.ok()) return status;
    return launch(quantize_kernel<T, kType, kLanes, kVectors, false>, tiles - whole, kThreads,
                  stream, input, p.numel, p.packed, p.absmax, whole, tiles, kTable);
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
