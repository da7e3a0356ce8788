// Block-wise 8-bit quantization through any ascending 256-entry map. Bound by instructions (72 % of
// the issue slots). The ring in shared memory that helps the 4-bit quantizer leaves room for one
// block of a lane beside the table: 79 instead of 82 % of the copy with 256 elements a block, 68
// instead of 76 with 4096 (H200).
#include <type_traits>

#include "cuda/common/absmax.cuh"
#include "cuda/common/cast.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/nearest_code.cuh"
#include "validate.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kCtasPerMultiprocessor = 4;  // the table is built once a CTA: few, long-lived CTAs
constexpr int kTurns = 2;                  // blocks of a lane at once, to have loads in flight
constexpr int64_t kTile = int64_t{8} * kThreads * kTurns;  // elements of a CTA in a turn

/// kLanes threads share a block of 8 * kLanes elements; blocks of more than 256 elements span
/// warps. kWhole: all tiles are inside the input, and nothing is checked.
template <typename T, int kLanes, bool kWhole>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const T* __restrict__ input, int64_t numel, const float* __restrict__ code,
                    uint8_t* __restrict__ codes, float* __restrict__ absmax, int64_t first_tile,
                    int64_t end_tile) {
  constexpr int kGroups = kThreads / kLanes;
  __shared__ NearestCode nearest;
  nearest.fill(code);
  __shared__ float partial[2][kTurns][kThreads / 32];
  const int lane = threadIdx.x % kLanes;
  [[maybe_unused]] int turn = 0;
  for (int64_t tile = first_tile + blockIdx.x; tile < end_tile; tile += gridDim.x) {
    const int64_t start = tile * kTile + threadIdx.x * 8;
    Pack8<T> x[kTurns][1];
    float largest[kTurns];
#pragma unroll
    for (int r = 0; r < kTurns; ++r) {
      const int64_t i = start + r * kThreads * 8;
      x[r][0] = kWhole || i + 8 <= numel ? load8(input + i) : load8_tail(input + i, numel - i);
    }
    group_absmax<(kLanes < 32 ? kLanes : 32)>(x, largest);
    if constexpr (kLanes > 32) {
      across_warps<kLanes>(largest, partial[turn]);
      turn ^= 1;
    }
#pragma unroll
    for (int r = 0; r < kTurns; ++r) {
      const int64_t i = start + r * kThreads * 8;
      const float reciprocal = fast_reciprocal(largest[r]);
      if (lane == 0 && (kWhole || i < numel)) {
        absmax[tile * (kGroups * kTurns) + r * kGroups + threadIdx.x / kLanes] = largest[r];
      }
      float y[8];
      to_floats(x[r][0], y);
#pragma unroll
      for (int j = 0; j < 8; ++j) y[j] *= reciprocal;
      const uint2 words = nearest.eight(y);
      if (kWhole || i + 8 <= numel) {
        __stcs(reinterpret_cast<uint2*>(codes + i), words);
      } else {
        for (int j = 0; j < 8 && i + j < numel; ++j) {
          codes[i + j] = static_cast<uint8_t>((j < 4 ? words.x : words.y) >> (8 * (j % 4)));
        }
      }
    }
  }
}

/// Any blocksize, any alignment: a warp walks a block twice.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    quantize_general_kernel(const T* __restrict__ input, int64_t numel, int64_t blocksize,
                            const float* __restrict__ code, uint8_t* __restrict__ codes,
                            float* __restrict__ absmax) {
  __shared__ NearestCode nearest;
  nearest.fill(code);
  const int lane = threadIdx.x % 32;
  const int64_t warps = int64_t{gridDim.x} * (kThreads / 32);
  for (int64_t block = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
       block * blocksize < numel; block += warps) {
    const int64_t begin = block * blocksize, end = min(begin + blocksize, numel);
    float largest =
        end - begin < blocksize ? 0.0f : kNothing;  // a short block is padded with zeros
    for (int64_t i = begin + lane; i < end; i += 32)
      largest = fmaxf(largest, fabsf(to_float(input[i])));
    largest = group_max<32>(largest);
    if (lane == 0) absmax[block] = largest;
    const float reciprocal = fast_reciprocal(largest);
    for (int64_t i = begin + lane; i < end; i += 32) {
      codes[i] = static_cast<uint8_t>(nearest(to_float(input[i]) * reciprocal));
    }
  }
}

template <typename T>
Status quantize(const QuantizeBlockwiseParams& p, Stream stream) noexcept {
  const auto* input = static_cast<const T*>(p.input);
  const int64_t most = multiprocessors() * kCtasPerMultiprocessor;
  const int64_t whole = p.numel / kTile, tiles = ceil_div(p.numel, kTile);
  const auto run = [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    const Status status =
        launch(quantize_kernel<T, kLanes, true>, whole < most ? whole : most, kThreads, stream,
               input, p.numel, p.code, p.codes, p.absmax, int64_t{0}, whole);
    if (!status.ok()) return status;
    return launch(quantize_kernel<T, kLanes, false>, tiles - whole, kThreads, stream, input,
                  p.numel, p.code, p.codes, p.absmax, whole, tiles);
  };
  if (aligned(p.input, 16) && aligned(p.codes, 8)) {
    using std::integral_constant;
    switch (p.blocksize) {
      case 32:
        return run(integral_constant<int, 4>{});
      case 64:
        return run(integral_constant<int, 8>{});
      case 128:
        return run(integral_constant<int, 16>{});
      case 256:
        return run(integral_constant<int, 32>{});
      case 512:
        return run(integral_constant<int, 64>{});
      case 1024:
        return run(integral_constant<int, 128>{});
      case 2048:
        return run(integral_constant<int, 256>{});
      case 4096:
        return run(integral_constant<int, 512>{});
      default:
        break;
    }
  }
  const int64_t ctas = ceil_div(ceil_div(p.numel, p.blocksize), kThreads / 32);
  return launch(quantize_general_kernel<T>, ctas < most ? ctas : most, kThreads, stream, input,
                p.numel, p.blocksize, p.code, p.codes, p.absmax);
}

}  // namespace

Status quantize_blockwise(const QuantizeBlockwiseParams& params, Stream stream) noexcept {
  if (const Status status = check(params); !status.ok()) return status;
  return visit_device_dtype(params.input_dtype, [&](auto* tag) {
    return quantize<std::remove_pointer_t<decltype(tag)>>(params, stream);
  });
}

}  // namespace lowbit::kernels::cuda
