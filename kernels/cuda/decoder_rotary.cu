// Rotary embedding of queries and keys, and the append to the cache. A thread takes the elements d
// and d + head_dim / 2 of a head; heads are the queries', then the keys', then the values'.
#include <type_traits>

#include "cuda/common/async_copy.cuh"
#include "cuda/common/cast.cuh"
#include "cuda/common/launch.h"
#include "decoder_check.h"

namespace lowbit::kernels::cuda {
namespace {

constexpr int kThreads = 128;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    rotary_kernel(const __grid_constant__ RotaryAppendCudaParams p) {
  allow_next_kernel();
  const int half = static_cast<int>(p.head_dim) / 2;
  const int heads = static_cast<int>(p.heads), kv_heads = static_cast<int>(p.kv_heads);
  const int index = blockIdx.y * kThreads + threadIdx.x;
  const int head = index / half, d = index - head * half;
  const int64_t row = blockIdx.x, sequence = row / p.tokens;
  const KvSlot slot = *p.slot;
  const int64_t position = slot.past + row - sequence * p.tokens;
  float sine = 0.0f, cosine = 1.0f;
  if (head < heads + kv_heads) {
    sincosf(__fmul_rn(static_cast<float>(position), p.inv_freq[d]), &sine, &cosine);
  }
  wait_for_previous_kernel();
  if (head >= heads + 2 * kv_heads) return;
  const int kv_head = head < heads + kv_heads ? head - heads : head - heads - kv_heads;
  const T* from;
  T* to;
  if (head < heads) {
    to = static_cast<T*>(p.query) + (row * heads + head) * p.head_dim + d;
    from = to;
  } else {
    if (position >= slot.capacity) return;
    const bool key = head < heads + kv_heads;
    from =
        static_cast<const T*>(key ? p.key : p.value) + (row * kv_heads + kv_head) * p.head_dim + d;
    to = static_cast<T*>(key ? slot.key : slot.value) +
         ((sequence * kv_heads + kv_head) * slot.capacity + position) * p.head_dim + d;
  }
  const T first = from[0], second = from[half];
  if (head >= heads + kv_heads) {
    to[0] = first;
    to[half] = second;
    return;
  }
  const float a = to_float(first), b = to_float(second);
  to[0] = from_float<T>(a * cosine - b * sine);
  to[half] = from_float<T>(b * cosine + a * sine);
}

}  // namespace

Status rotary_append(const RotaryAppendCudaParams& p, Stream stream) noexcept {
  if (const Status status = check(p); !status.ok()) return status;
  if (p.batch == 0 || p.tokens == 0) return ok_status();
  const int64_t pairs = (p.heads + 2 * p.kv_heads) * (p.head_dim / 2);
  const int64_t blocks = ceil_div(pairs, kThreads);
  if (p.batch > std::numeric_limits<int32_t>::max() / p.tokens || blocks > 65535) {
    return unsupported("the problem needs more than 2^31 - 1 thread blocks");
  }
  const LaunchShape shape{static_cast<int32_t>(p.batch * p.tokens), static_cast<int32_t>(blocks),
                          kThreads, 0, p.programmatic_launch};
  return visit_device_dtype(p.dtype, [&](auto* tag) {
    return launch(rotary_kernel<std::remove_pointer_t<decltype(tag)>>, shape, stream, p);
  });
}

}  // namespace lowbit::kernels::cuda
