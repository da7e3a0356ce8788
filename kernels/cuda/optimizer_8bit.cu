// Optimizer steps with 8-bit block-wise states: one launch for any number of tensors.
//
// A warp takes a block of 256 elements, eight to a lane: 16 bytes of 16-bit p and g, 8 of codes.
// One thread block fills a multiprocessor with 24 warps, 80 registers a thread.
//
// What counts, as measured on an H200:
// - Bytes on their way. A warp asks for its next block as soon as the numbers of this one are in
//   registers, into the registers that these came in: the load lasts as long as the work.
// - Instructions between load and store, 50 an element for Adam and 35 for Lion: quotients by one
//   reciprocal a block, values and codes by one look each (state_code.cuh), no questions about
//   ends, alignment or options. A block that raises one goes to step_any_block.
// - Neighbours at the same time. When all warps of the device go through a large tensor side by
//   side, memory delivers 3-5 % more than when each thread block has a region of its own.
// Copies into shared memory (cp.async), two blocks ahead, were not kept: 2-9 % less time for two
// states, 3 % more for one.
#include <type_traits>

#include "cuda/common/cast.cuh"
#include "cuda/common/state_code.cuh"
#include "cuda/optimizer_launch.cuh"
#include "cuda/optimizer_update.cuh"
#include "validate.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kThreads = 768;
constexpr int kWarps = kThreads / 32;
constexpr int kBlock = static_cast<int>(kOptimizerBlocksize);
constexpr int kPerLane = kBlock / 32;
static_assert(kPerLane == 8);

struct Nothing {};

/// What a thread block knows of the two maps.
template <OptimizerKind kKind>
struct Maps {
  StateCode<true> map1;
  std::conditional_t<has_second_state(kKind), StateCode<false>, Nothing> map2;
  const float* rows;  // as a pointer
  uint32_t place;     // of the rows
  bool plain;         // no bisection

  /// All threads of the block; ends with a barrier.
  __device__ void fill(const OptimizerLaunch& launch, char* memory) {
    const uint32_t begin = static_cast<uint32_t>(__cvta_generic_to_shared(memory)),
                   rows_at = StateLayout::rows_in(begin);
    char* here = memory + (rows_at - begin);
    auto* values = reinterpret_cast<float*>(here);
    constexpr int kRow = StateLayout::kRowFloats, kSecondMap = StateLayout::kCopies;
    for (int i = threadIdx.x; i < 256 * kRow; i += kThreads) {
      const float* map = i % kRow < kSecondMap ? launch.map1 : launch.map2;
      if (has_second_state(kKind) || i % kRow < kSecondMap) values[i] = map[i / kRow];
    }
    auto* tables = reinterpret_cast<uint32_t*>(here - 2 * StateLayout::kTableBytes);
    map1.fill(launch.map1, tables);
    if constexpr (has_second_state(kKind)) {
      map2.fill(launch.map2, tables + StateLayout::kTableBytes / 4);
    }
    if (threadIdx.x == 0) {
      rows = values;
      place = rows_at;
      plain = !map1.search;
      if constexpr (has_second_state(kKind)) plain = plain && !map2.search;
    }
    __syncthreads();
  }
};

/// place: of the lane's copies.
template <int kMap>
__device__ __forceinline__ void decode(uint2 codes, float absmax, uint32_t place,
                                       float (&state)[kPerLane]) {
  const auto four = [&](uint32_t word, float* out) {
    out[0] = __fmul_rn(state_value<kMap, 0>(word, place), absmax);
    out[1] = __fmul_rn(state_value<kMap, 1>(word, place), absmax);
    out[2] = __fmul_rn(state_value<kMap, 2>(word, place), absmax);
    out[3] = __fmul_rn(state_value<kMap, 3>(word, place), absmax);
  };
  four(codes.x, state);
  four(codes.y, state + 4);
}

/// max that NaN wins.
__device__ __forceinline__ float max_or_nan(float a, float b) {
#if __CUDA_ARCH__ >= 800
  float result;
  asm("max.NaN.ftz.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a > b || !(a == a) ? a : b;
#endif
}

/// Over the warp. Floats that are not negative are ordered as their bits are; NaN is above
/// infinity.
__device__ __forceinline__ float warp_max(float magnitude) {
#if __CUDA_ARCH__ >= 800
  return __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(magnitude)));
#else
  uint32_t bits = __float_as_uint(magnitude);
  for (int offset = 16; offset > 0; offset /= 2) {
    bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, offset));
  }
  return __uint_as_float(bits);
#endif
}

/// Largest magnitude of the block; NaN when one is.
__device__ __forceinline__ float block_absmax(const float (&state)[kPerLane]) {
  float largest = fabsf(state[0]);
#pragma unroll
  for (int j = 1; j < kPerLane; ++j) largest = max_or_nan(largest, fabsf(state[j]));
  return warp_max(largest);
}

/// Where quotients by `absmax` are the rounded ones, and scaled numbers normal.
__device__ __forceinline__ bool is_usual(float absmax) {
  return absmax >= 0x1p-70f && absmax <= 0x1p24f;
}

/// 1 / x rounded to nearest, |x| within [2^-125, 2^125]: what __frcp_rn does there, without its
/// branch. Compared for all 2^23 significands.
__device__ __forceinline__ float rounded_reciprocal(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return __fmaf_rn(__fmaf_rn(-x, r, 1.0f), r, r);
}

/// Codes of a block's states, of usual absmax.
template <CodeRule kRule, bool kSigned>
__device__ __forceinline__ uint2 encode(const StateCode<kSigned>& map,
                                        const float (&state)[kPerLane], float absmax,
                                        uint32_t table) {
  constexpr float kScale = StateCode<kSigned>::kToSmallest;
  const float scaled = absmax * (1.0f / kScale), reciprocal = rounded_reciprocal(absmax) * kScale;
  const float lowest = map.boundaries[255] * -kScale;
  const float positive = fmaxf(absmax * 0x1p-126f, 0x1p-126f);
  float y[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    // state / absmax, rounded to nearest: the reciprocal is, and one correction makes the quotient
    // so (Markstein 1990, "Computation of elementary functions on the IBM RISC System/6000"). The
    // correction turns -0 into +0.
    const float guess = __fmul_rn(state[j], reciprocal);
    y[j] = __fmaf_rn(__fmaf_rn(-guess, scaled, state[j]), reciprocal, guess);
  }
  return make_uint2(map.template encode<kRule>(y, state, lowest, positive, table),
                    map.template encode<kRule>(y + 4, state + 4, lowest, positive, table));
}

/// A lane's part of a block as it lies in memory.
template <typename T>
struct Loaded {
  static constexpr int kWords = sizeof(T) / 2;
  uint4 p[kWords], g[kWords];
  uint2 codes1, slow, codes2;
  float absmax;  // lane k: of the k-th state
};

/// Where a lane's part of a tensor's first block is.
template <typename T>
struct Place {
  T* p;
  const T* g;
  uint8_t *codes1, *slow, *codes2;
  float* absmax;  // of the lane's state
};

template <typename T, OptimizerKind kKind>
__device__ __forceinline__ Place<T> place_of(const DeviceTensor& t) {
  const int lane = threadIdx.x % 32, i = lane * kPerLane;
  Place<T> at{static_cast<T*>(t.p) + i,
              static_cast<const T*>(t.g) + i,
              static_cast<uint8_t*>(t.state1) + i,
              nullptr,
              nullptr,
              t.absmax1};
  if constexpr (kKind == OptimizerKind::kAdEMAMix) {
    at.slow = at.codes1 + t.numel;
    if (lane == 2) at.absmax += ceil_div(t.numel, int64_t{kBlock});
  }
  if constexpr (has_second_state(kKind)) {
    at.codes2 = static_cast<uint8_t*>(t.state2) + i;
    if (lane == 1) at.absmax = t.absmax2;
  }
  return at;
}

/// `block` blocks on. Pointer and number make an address in one instruction; pointers that move
/// would cost two each, and twice the registers where blocks are loaded ahead.
template <typename E>
__device__ __forceinline__ E* after(E* pointer, int block, int each) {
  using Byte = std::conditional_t<std::is_const_v<E>, const char, char>;
  return reinterpret_cast<E*>(reinterpret_cast<Byte*>(pointer) +
                              static_cast<uint64_t>(static_cast<uint32_t>(block)) *
                                  (static_cast<uint32_t>(each) * sizeof(E)));
}

template <typename T, OptimizerKind kKind>
__device__ __forceinline__ void load_block(const Place<T>& at, int block, Loaded<T>& in) {
  const auto* p = reinterpret_cast<const uint4*>(after(at.p, block, kBlock));
  const auto* g = reinterpret_cast<const uint4*>(after(at.g, block, kBlock));
#pragma unroll
  for (int k = 0; k < Loaded<T>::kWords; ++k) in.p[k] = __ldcs(p + k), in.g[k] = __ldcs(g + k);
  const auto codes = [&](const uint8_t* state) {
    return __ldcs(reinterpret_cast<const uint2*>(after(state, block, kBlock)));
  };
  in.codes1 = codes(at.codes1);
  in.absmax = __ldcs(after(at.absmax, block, 1));
  if constexpr (kKind == OptimizerKind::kAdEMAMix) in.slow = codes(at.slow);
  if constexpr (has_second_state(kKind)) in.codes2 = codes(at.codes2);
}

template <typename T>
__device__ __forceinline__ void unpack(const uint4 (&words)[sizeof(T) / 2],
                                       float (&out)[kPerLane]) {
  if constexpr (sizeof(T) == 4) {
    const float values[8] = {__uint_as_float(words[0].x), __uint_as_float(words[0].y),
                             __uint_as_float(words[0].z), __uint_as_float(words[0].w),
                             __uint_as_float(words[1].x), __uint_as_float(words[1].y),
                             __uint_as_float(words[1].z), __uint_as_float(words[1].w)};
    for (int j = 0; j < 8; ++j) out[j] = values[j];
  } else {
    cuda::unpack(words[0].x, out[0], out[1], T());
    cuda::unpack(words[0].y, out[2], out[3], T());
    cuda::unpack(words[0].z, out[4], out[5], T());
    cuda::unpack(words[0].w, out[6], out[7], T());
  }
}

/// New numbers of a lane.
template <typename T>
struct Stepped {
  Pack8<T> p;
  float state1[kPerLane], slow[kPerLane], state2[kPerLane];
};

template <typename T, OptimizerKind kKind>
__device__ __forceinline__ void update_block(const OptimizerCoefficients& c, uint32_t place,
                                             const Loaded<T>& in, Stepped<T>& out) {
  constexpr bool kSecond = has_second_state(kKind), kSlow = kKind == OptimizerKind::kAdEMAMix;
  float p[kPerLane], g[kPerLane];
  const auto absmax = [&](int k) {
    return kSecond ? __shfl_sync(0xffffffffu, in.absmax, k) : in.absmax;
  };
  decode<1>(in.codes1, absmax(0), place, out.state1);
  if constexpr (kSlow) decode<1>(in.slow, absmax(2), place, out.slow);
  if constexpr (kSecond) decode<2>(in.codes2, absmax(1), place, out.state2);
  unpack<T>(in.p, p);
  unpack<T>(in.g, g);
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    DeviceElement e{p[j], g[j], out.state1[j], kSlow ? out.slow[j] : 0.0f,
                    kSecond ? out.state2[j] : 0.0f};
    update_element<kKind, true, false>(c, e);
    out.p.values[j] = from_float<T>(e.p);
    out.state1[j] = e.state1;
    if constexpr (kSlow) out.slow[j] = e.slow;
    if constexpr (kSecond) out.state2[j] = e.state2;
  }
}

/// A whole, aligned block with ordinary options. False, and nothing written, where its numbers need
/// the general function.
template <typename T, OptimizerKind kKind>
__device__ __forceinline__ bool store_block(const Maps<kKind>& maps, uint32_t place,
                                            const Stepped<T>& from, const Place<T>& at, int block) {
  constexpr bool kSecond = has_second_state(kKind), kSlow = kKind == OptimizerKind::kAdEMAMix;
  constexpr CodeRule kRule = code_rule_of_state1(kKind);
  const float new1 = block_absmax(from.state1);
  const float new_slow = kSlow ? block_absmax(from.slow) : 1.0f;
  const float new2 = kSecond ? block_absmax(from.state2) : 1.0f;
  if (!is_usual(new1) || !is_usual(new_slow) || !is_usual(new2)) return false;
  store8(after(at.p, block, kBlock), from.p);
  const int lane = threadIdx.x % 32;
  if (lane <= kSecond + kSlow) {
    *after(at.absmax, block, 1) = lane == 0 ? new1 : lane == 1 ? new2 : new_slow;
  }
  const uint32_t table = StateLayout::table_of(place);
  const auto store = [&](uint8_t* state, uint2 codes) {
    __stcs(reinterpret_cast<uint2*>(after(state, block, kBlock)), codes);
  };
  store(at.codes1, encode<kRule>(maps.map1, from.state1, new1, table));
  if constexpr (kSlow) store(at.slow, encode<kRule>(maps.map1, from.slow, new_slow, table));
  if constexpr (kSecond) {
    store(at.codes2, encode<CodeRule::kNearest>(maps.map2, from.state2, new2, table));
  }
  return true;
}

/// Element j of a lane is lane + 32 * j in this function and the next two: bytes of a warp lie side
/// by side.
__device__ __forceinline__ uint2 gather_codes(const uint8_t* codes, int count) {
  uint32_t words[2] = {0, 0};
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int i = 32 * j + static_cast<int>(threadIdx.x % 32);
    if (i < count) words[j / 4] |= uint32_t{codes[i]} << (8 * (j % 4));
  }
  return make_uint2(words[0], words[1]);
}

/// Requantizes a state of any numbers; stores codes and scale.
template <int kMap, CodeRule kRule, OptimizerKind kKind, bool kSigned>
__device__ __forceinline__ void store_any_state(const Maps<kKind>& maps,
                                                const StateCode<kSigned>& map,
                                                const float (&state)[kPerLane], int count,
                                                uint8_t* codes, float* absmax) {
  const int lane = threadIdx.x % 32;
  float largest = block_absmax(state);
  uint2 packed = make_uint2(0, 0);
  if (maps.plain && is_usual(largest)) {
    packed = encode<kRule>(map, state, largest,
                           StateLayout::table_of(StateLayout::place_of_lane(maps.place)));
  } else {
    largest = 0.0f;  // NaN does not count
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) largest = fmaxf(largest, fabsf(state[j]));
    largest = warp_max(largest);
#pragma unroll  // `state` must stay in registers
    for (int j = 0; j < kPerLane; ++j) {
      const uint32_t code = map.template encode_general<kRule>(
          maps.rows + (kMap - 1) * StateLayout::kCopies, __fdiv_rn(state[j], largest));
      (j < 4 ? packed.x : packed.y) |= code << (8 * (j % 4));
    }
  }
  if (lane == 0) *absmax = largest;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int i = 32 * j + lane;
    if (i < count) codes[i] = static_cast<uint8_t>((j < 4 ? packed.x : packed.y) >> (8 * (j % 4)));
  }
}

/// Any block: short, misaligned, of any numbers, maps and options.
template <typename T, OptimizerKind kKind>
__device__ __noinline__ void step_any_block(const Maps<kKind>& maps, const DeviceTensor& t,
                                            const OptimizerCoefficients& c, int64_t block,
                                            int64_t counted) {
  constexpr bool kSecond = has_second_state(kKind), kSlow = kKind == OptimizerKind::kAdEMAMix;
  constexpr CodeRule kRule = code_rule_of_state1(kKind);
  const int64_t first = block * kBlock, blocks = ceil_div(t.numel, int64_t{kBlock});
  const int lane = threadIdx.x % 32;
  const int count = static_cast<int>(min(int64_t{kBlock}, t.numel - first));
  const uint32_t place = StateLayout::place_of_lane(maps.place);
  T* p = static_cast<T*>(t.p) + first;
  const T* g = static_cast<const T*>(t.g) + first;
  uint8_t* codes1 = static_cast<uint8_t*>(t.state1) + first;
  uint8_t* codes_slow = kSlow ? codes1 + t.numel : nullptr;
  uint8_t* codes2 = kSecond ? static_cast<uint8_t*>(t.state2) + first : nullptr;
  float state1[kPerLane], slow[kPerLane] = {}, state2[kPerLane] = {};
  decode<1>(gather_codes(codes1, count), t.absmax1[block], place, state1);
  if constexpr (kSlow) {
    decode<1>(gather_codes(codes_slow, count), t.absmax1[blocks + block], place, slow);
  }
  if constexpr (kSecond) decode<2>(gather_codes(codes2, count), t.absmax2[block], place, state2);
  T old_p[kPerLane], old_g[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int i = 32 * j + lane;
    old_p[j] = i < count ? p[i] : from_float<T>(0.0f);
    old_g[j] = i < count ? g[i] : from_float<T>(0.0f);
  }
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int i = 32 * j + lane;
    DeviceElement e{to_float(old_p[j]), to_float(old_g[j]), state1[j], slow[j], state2[j]};
    update_element<kKind, true, true>(c, e);
    const bool restarts = kSecond && !(fabsf(e.g) <= 3.402823466e38f);  // and keeps p
    if (i < count && !restarts) p[i] = rounded<T, true>(c, e.p, counted + first + i);
    const bool counts = i < count && !restarts;
    state1[j] = counts ? e.state1 : 0.0f;
    slow[j] = counts ? e.slow : 0.0f;
    state2[j] = counts ? e.state2 : 0.0f;
  }
  store_any_state<1, kRule>(maps, maps.map1, state1, count, codes1, t.absmax1 + block);
  if constexpr (kSlow) {
    store_any_state<1, kRule>(maps, maps.map1, slow, count, codes_slow, t.absmax1 + blocks + block);
  }
  if constexpr (kSecond) {
    store_any_state<2, CodeRule::kNearest>(maps, maps.map2, state2, count, codes2,
                                           t.absmax2 + block);
  }
}

/// Blocks [block, end) in steps of `stride`.
template <typename T, OptimizerKind kKind>
__device__ __forceinline__ void step_blocks(const Maps<kKind>& maps, const DeviceTensor& t,
                                            const OptimizerCoefficients& shared, int block, int end,
                                            int stride, int64_t counted) {
  const OptimizerCoefficients c = shared;  // in registers
  const bool rare = c.skip_zeros || c.stochastic_rounding || t.aligned == 0 || !maps.plain;
  const int whole = rare ? 0 : static_cast<int>(min(int64_t{end}, t.numel / kBlock));
  const uint32_t place = StateLayout::place_of_lane(maps.place);
  const Place<T> at = place_of<T, kKind>(t);
  while (block < whole) {
    bool stored;
    Loaded<T> in;
    load_block<T, kKind>(at, block, in);
    do {
      Stepped<T> out;
      update_block<T, kKind>(c, place, in, out);
      // Not before here: loads into registers that are in use would be joined with them by moves,
      // and these wait for the memory.
      __syncwarp();
      if (block + stride < whole) load_block<T, kKind>(at, block + stride, in);
      stored = store_block<T, kKind>(maps, place, out, at, block);
      if (!stored) break;
      block += stride;
    } while (block < whole);
    if (!stored) {
      step_any_block<T, kKind>(maps, t, shared, block, counted);
      block += stride;
    }
  }
  for (; block < end; block += stride) step_any_block<T, kKind>(maps, t, shared, block, counted);
}

template <typename T, OptimizerKind kKind>
__global__ void __launch_bounds__(kThreads, 1)
    step_kernel(const __grid_constant__ OptimizerLaunch launch) {
  extern __shared__ __align__(16) char shared_memory[];
  __shared__ Maps<kKind> maps;
  maps.fill(launch, shared_memory);
  // Blocks are dealt to warps in turn, from tensor to tensor: to those of this thread block, or to
  // all.
  const bool swept = launch.is_swept();
  const int warps = swept ? static_cast<int>(gridDim.x) * kWarps : kWarps;
  int turn =
      (swept ? static_cast<int>(blockIdx.x) * kWarps : 0) + static_cast<int>(threadIdx.x) / 32;
  for_runs_of_block<kKind>(
      launch, swept,
      [&](const DeviceTensor& t, const OptimizerCoefficients& c, int first, int last) {
        constexpr int kBlocks = static_cast<int>(kOptimizerChunk / kBlock);
        const int64_t counted = (launch.chunks_before + t.first_chunk) * kOptimizerChunk;
        const int begin = (first - t.first_chunk) * kBlocks;
        const int end = static_cast<int>(
            min(int64_t{last - t.first_chunk} * kBlocks, ceil_div(t.numel, int64_t{kBlock})));
        step_blocks<T, kKind>(maps, t, c, begin + turn, end, warps, counted);
        turn = (turn + warps - (end - begin) % warps) % warps;
      });
}

/// Of the current device; 0 when there is none.
int compute_capability_major() noexcept {
  int device = 0, major = 0;
  const bool known =
      cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess;
  return known ? major : 0;
}

}  // namespace

namespace optimizer {

Status step_8bit(const OptimizerParams& params, Stream stream) noexcept {
  const int64_t most = multiprocessors();
  const int64_t shared_bytes = StateLayout::shared_bytes(compute_capability_major());
  return for_batches(params, [&](const OptimizerLaunch& batch, int64_t) {
    return visit_dtype_and_kind(params, [&](auto* tag, auto kind) {
      using T = std::remove_pointer_t<decltype(tag)>;
      const LaunchShape shape{
          .grid_x = static_cast<int32_t>(batch.nchunks < most ? batch.nchunks : most),
          .threads = kThreads,
          .shared_bytes = shared_bytes};
      return launch(step_kernel<T, decltype(kind)::value>, shape, stream, batch);
    });
  });
}

}  // namespace optimizer
}  // namespace lowbit::kernels::cuda
