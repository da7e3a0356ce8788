// Optimizer steps with 8-bit block-wise states: one launch for any number of tensors.
//
// A warp takes a block of 256 elements, eight to a lane: 16 bytes of 16-bit p and g, 8 of codes. It
// asks for its next block before it works on one: with 24 warps on a multiprocessor and load, work
// and store in turn, half of the bandwidth was all that was in flight.
// The work between load and store is about sixty instructions an element, which is what a
// multiprocessor can issue while the memory delivers: hence exact quotients by one reciprocal a
// block, and codes by one look into a table.
#include <type_traits>

#include "cuda/common/cast.cuh"
#include "cuda/common/state_code.cuh"
#include "cuda/optimizer_launch.cuh"
#include "cuda/optimizer_update.cuh"
#include "validate.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlock = static_cast<int>(kOptimizerBlocksize);
constexpr int kPerLane = kBlock / 32;
static_assert(kPerLane == 8);

struct Nothing {};

/// Eight codes as they lie in memory; those behind the end are 0.
__device__ __forceinline__ uint2 load_codes(const uint8_t* codes, int valid, bool aligned) {
  if (valid == kPerLane && aligned) return __ldcs(reinterpret_cast<const uint2*>(codes));
  uint32_t words[2] = {0, 0};
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    if (j < valid) words[j / 4] |= uint32_t{codes[j]} << (8 * (j % 4));
  }
  return make_uint2(words[0], words[1]);
}

__device__ __forceinline__ void store_codes(uint8_t* codes, uint2 packed, int valid, bool aligned) {
  if (valid == kPerLane && aligned) {
    __stcs(reinterpret_cast<uint2*>(codes), packed);
    return;
  }
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    if (j < valid) codes[j] = static_cast<uint8_t>((j < 4 ? packed.x : packed.y) >> (8 * (j % 4)));
  }
}

template <typename T>
__device__ __forceinline__ Pack8<T> load_elements(const T* p, int valid, bool aligned) {
  return valid == kPerLane && aligned ? load8(p) : load8_tail(p, valid);
}

template <bool kSigned>
__device__ __forceinline__ void decode(const StateCode<kSigned>& map, uint2 codes, float absmax,
                                       float* state) {
  const auto four = [&](uint32_t word, float* out) {
    out[0] = __fmul_rn(map.template decode<0>(word), absmax);
    out[1] = __fmul_rn(map.template decode<1>(word), absmax);
    out[2] = __fmul_rn(map.template decode<2>(word), absmax);
    out[3] = __fmul_rn(map.template decode<3>(word), absmax);
  };
  four(codes.x, state);
  four(codes.y, state + 4);
}

/// Largest magnitude of the block; NaN does not count. `state` behind the end is 0.
__device__ __forceinline__ float block_absmax(const float* state) {
  float largest = 0.0f;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) largest = fmaxf(largest, fabsf(state[j]));
  // Floats that are not negative are ordered as their bits are.
  return __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(largest)));
}

/// Codes of a block's states.
template <CodeRule kRule, bool kMayBeNaN, bool kSigned>
__device__ __forceinline__ uint2 encode(const StateCode<kSigned>& map, const float* state,
                                        float absmax) {
  uint32_t words[2] = {0, 0};
  // Outside this range the quotient below may not be the rounded one; 0 and infinity are there too.
  if (absmax >= 0x1p-70f && absmax <= 0x1p125f && !map.search) {
    const float reciprocal = __frcp_rn(absmax);
    float y[kPerLane], mark = 0.0f;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      // state / absmax, rounded to nearest: the reciprocal is, and one correction makes the
      // quotient so (Markstein 1990, "Computation of elementary functions on the IBM RISC
      // System/6000"). The correction turns -0 into +0.
      const float guess = __fmul_rn(state[j], reciprocal);
      y[j] = __fmaf_rn(__fmaf_rn(-guess, absmax, state[j]), reciprocal, guess);
      if constexpr (kMayBeNaN) mark = __fmaf_rn(state[j], 0.0f, mark);
    }
#pragma unroll
    for (int k = 0; k < kPerLane / 4; ++k) {
      words[k] = map.template encode<kRule>(y + 4 * k, state + 4 * k);
    }
    if (kMayBeNaN && !(mark == 0.0f)) {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        if (!(state[j] == state[j])) words[j / 4] &= ~(0xffu << (8 * (j % 4)));
      }
    }
  } else {
#pragma unroll  // `state` must stay in registers
    for (int j = 0; j < kPerLane; ++j) {
      const uint32_t code = map.template encode_general<kRule>(__fdiv_rn(state[j], absmax));
      words[j / 4] |= code << (8 * (j % 4));
    }
  }
  return make_uint2(words[0], words[1]);
}

template <OptimizerKind kKind>
struct Maps {
  StateCode<true> map1;
  std::conditional_t<has_second_state(kKind), StateCode<false>, Nothing> map2;
};

/// A lane's part of a block as it lies in memory.
template <typename T>
struct Loaded {
  Pack8<T> p, g;
  uint2 codes1, slow, codes2;
  float absmax1, absmax_slow, absmax2;
};

__device__ __forceinline__ int valid_elements(const DeviceTensor& t, int64_t i) {
  const int64_t left = t.numel - i;
  return left >= kPerLane ? kPerLane : left > 0 ? static_cast<int>(left) : 0;
}

template <typename T, OptimizerKind kKind>
__device__ __forceinline__ void load_block(const DeviceTensor& t, int64_t block, Loaded<T>& in) {
  const int64_t i = block * kBlock + threadIdx.x % 32 * kPerLane;
  const int valid = valid_elements(t, i);
  const bool aligned = t.aligned != 0;
  const uint8_t* codes1 = static_cast<const uint8_t*>(t.state1) + i;
  in.p = load_elements(static_cast<const T*>(t.p) + i, valid, aligned);
  in.g = load_elements(static_cast<const T*>(t.g) + i, valid, aligned);
  in.codes1 = load_codes(codes1, valid, aligned);
  in.absmax1 = t.absmax1[block];
  if constexpr (kKind == OptimizerKind::kAdEMAMix) {
    in.slow = load_codes(codes1 + t.numel, valid, aligned);
    in.absmax_slow = t.absmax1[ceil_div(t.numel, kBlock) + block];
  }
  if constexpr (has_second_state(kKind)) {
    in.codes2 = load_codes(static_cast<const uint8_t*>(t.state2) + i, valid, aligned);
    in.absmax2 = t.absmax2[block];
  }
}

/// `counted`: elements of whole chunks before the tensor, in the call.
template <typename T, OptimizerKind kKind, bool kRare>
__device__ __forceinline__ void step_block(const Maps<kKind>& maps, const DeviceTensor& t,
                                           const OptimizerCoefficients& c, int64_t block,
                                           int64_t counted, const Loaded<T>& in) {
  constexpr bool kSecond = has_second_state(kKind), kSlow = kKind == OptimizerKind::kAdEMAMix;
  constexpr CodeRule kRule = code_rule_of_state1(kKind);
  const int lane = threadIdx.x % 32;
  const int64_t i = block * kBlock + lane * kPerLane;
  const int valid = valid_elements(t, i);
  const bool aligned = t.aligned != 0;
  T* p = static_cast<T*>(t.p) + i;
  uint8_t* codes1 = static_cast<uint8_t*>(t.state1) + i;
  uint8_t* codes2 = kSecond ? static_cast<uint8_t*>(t.state2) + i : nullptr;
  const int64_t blocks = kSlow ? ceil_div(t.numel, kBlock) : 0;
  Pack8<T> pack_p = in.p;
  const Pack8<T>& pack_g = in.g;

  float state1[kPerLane], slow[kPerLane], state2[kPerLane];
  decode(maps.map1, in.codes1, in.absmax1, state1);
  if constexpr (kSlow) decode(maps.map1, in.slow, in.absmax_slow, slow);
  if constexpr (kSecond) decode(maps.map2, in.codes2, in.absmax2, state2);

  // Elements behind the end have p = g = 0; their codes say 0 * absmax only where the map has a
  // zero, so they are cleared.
  float mark = 0.0f;  // NaN when a gradient is not finite
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    DeviceElement e{to_float(pack_p.values[j]), to_float(pack_g.values[j]), state1[j],
                    kSlow ? slow[j] : 0.0f, kSecond ? state2[j] : 0.0f};
    update_element<kKind, true, kRare>(c, e);
    if constexpr (kSecond) mark = __fmaf_rn(e.g, 0.0f, mark);
    pack_p.values[j] = rounded<T, kRare>(c, e.p, counted + i + j);
    state1[j] = e.state1;
    if constexpr (kSlow) slow[j] = e.slow;
    if constexpr (kSecond) state2[j] = e.state2;
  }
  if constexpr (kSecond) {
    if (!(mark == 0.0f)) {  // such an element keeps p and restarts with states of 0
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const float g = to_float(pack_g.values[j]) * c.grad_scale;
        if (j < valid && !(fabsf(g) <= 3.402823466e38f)) {
          pack_p.values[j] = in.p.values[j];
          state1[j] = state2[j] = 0.0f;
          if constexpr (kSlow) slow[j] = 0.0f;
        }
      }
    }
  }
  if (valid < kPerLane) {
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      if (j < valid) continue;
      state1[j] = 0.0f;
      if constexpr (kSlow) slow[j] = 0.0f;
      if constexpr (kSecond) state2[j] = 0.0f;
    }
  }

  if (valid == kPerLane && aligned) {
    store8(p, pack_p);
  } else {
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      if (j < valid) p[j] = pack_p.values[j];
    }
  }
  const float new1 = block_absmax(state1);
  const float new_slow = kSlow ? block_absmax(slow) : 0.0f;
  const float new2 = kSecond ? block_absmax(state2) : 0.0f;
  if (lane == 0) {
    t.absmax1[block] = new1;
    if constexpr (kSlow) t.absmax1[blocks + block] = new_slow;
    if constexpr (kSecond) t.absmax2[block] = new2;
  }
  store_codes(codes1, encode<kRule, !kSecond>(maps.map1, state1, new1), valid, aligned);
  if constexpr (kSlow) {
    store_codes(codes1 + t.numel, encode<kRule, !kSecond>(maps.map1, slow, new_slow), valid,
                aligned);
  }
  if constexpr (kSecond) {
    store_codes(codes2, encode<CodeRule::kNearest, false>(maps.map2, state2, new2), valid, aligned);
  }
}

/// Blocks [block, end) in steps of kWarps.
template <typename T, OptimizerKind kKind, bool kRare>
__device__ __forceinline__ void step_blocks(const Maps<kKind>& maps, const DeviceTensor& t,
                                            const OptimizerCoefficients& c, int64_t block,
                                            int64_t end, int64_t counted) {
  if (block >= end) return;
  Loaded<T> next;
  load_block<T, kKind>(t, block, next);
  for (; block < end; block += kWarps) {
    const Loaded<T> now = next;
    if (block + kWarps < end) load_block<T, kKind>(t, block + kWarps, next);
    step_block<T, kKind, kRare>(maps, t, c, block, counted, now);
  }
}

template <typename T, OptimizerKind kKind>
__global__ void __launch_bounds__(kThreads, 3)
    step_kernel(const __grid_constant__ OptimizerLaunch launch) {
  constexpr bool kSecond = has_second_state(kKind);
  __shared__ Maps<kKind> maps;
  maps.map1.fill(launch.map1);
  if constexpr (kSecond) maps.map2.fill(launch.map2);
  for_runs_of_block<kKind>(
      launch, [&](const DeviceTensor& t, const OptimizerCoefficients& shared, int first, int last) {
        constexpr int kBlocks = static_cast<int>(kOptimizerChunk / kBlock);
        const OptimizerCoefficients c = shared;  // in registers
        const int64_t counted = (launch.chunks_before + t.first_chunk) * kOptimizerChunk;
        const int64_t begin = int64_t{first - t.first_chunk} * kBlocks + threadIdx.x / 32;
        const int64_t end =
            min(int64_t{last - t.first_chunk} * kBlocks, ceil_div(t.numel, int64_t{kBlock}));
        if (c.skip_zeros || c.stochastic_rounding) {
          step_blocks<T, kKind, true>(maps, t, c, begin, end, counted);
        } else {
          step_blocks<T, kKind, false>(maps, t, c, begin, end, counted);
        }
      });
}

}  // namespace

namespace optimizer {

Status step_8bit(const OptimizerParams& params, Stream stream) noexcept {
  const int64_t most = multiprocessors() * 3;
  return for_batches(params, [&](const OptimizerLaunch& batch, int64_t) {
    return visit_device_dtype(params.dtype, [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      return visit_kind(params.kind, [&](auto kind) {
        return launch(step_kernel<T, decltype(kind)::value>,
                      batch.nchunks < most ? batch.nchunks : most, kThreads, stream, batch);
      });
    });
  });
}

}  // namespace optimizer
}  // namespace lowbit::kernels::cuda
