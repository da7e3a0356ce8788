// Tiles of a quantizer on their way through shared memory: as many bytes under way as memory wants,
// without the registers that hold them in a loop of loads.
#pragma once

#include "cuda/common/async_copy.cuh"
#include "cuda/common/cast.cuh"

namespace lowbit::kernels::cuda {

#if __CUDA_ARCH__ >= 800
inline constexpr bool kHasAsyncCopies = true;
#else
inline constexpr bool kHasAsyncCopies = false;
#endif

/// Two slots, each of kTurns times kVectors packs a lane. A lane copies what it takes itself, so it
/// waits for its own copies alone. Not kUsed: no memory.
template <typename T, int kTurns, int kVectors, int kThreads, bool kUsed>
struct LaneRing {
  static constexpr int kWords = sizeof(Pack8<T>) / 16, kAll = kTurns * kVectors * kWords;
  uint4 words[kUsed ? 2 : 1][kUsed ? kAll : 1][kUsed ? kThreads : 1];

  /// `from`: the first pack, null when no tile is left; turns and vectors so many elements apart.
  __device__ __forceinline__ void fetch(int slot, const T* from, int64_t turn, int64_t vector) {
    if (from != nullptr) {
#pragma unroll
      for (int i = 0; i < kAll; ++i) {
        const T* at = from + i / (kVectors * kWords) * turn + i / kWords % kVectors * vector;
        copy_async(shared_address(&words[slot][i][threadIdx.x]),
                   reinterpret_cast<const uint4*>(at) + i % kWords);
      }
    }
    commit_copies();
  }
  /// The older of two fetches; call fetch only when x has been used.
  __device__ __forceinline__ void take(Pack8<T> (&x)[kTurns][kVectors], int slot) const {
    wait_copies<1>();
#pragma unroll
    for (int i = 0; i < kAll; ++i) {
      reinterpret_cast<uint4*>(x)[i] = words[slot][i][threadIdx.x];
    }
  }
};

}  // namespace lowbit::kernels::cuda
