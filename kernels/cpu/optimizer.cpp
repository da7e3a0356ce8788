// Optimizer steps on the CPU: chooses the kernel for the active instruction set.
#include "lowbit/kernels/optimizer.h"

#include <cmath>
#include <optional>

#include "cpu/flush_mode.h"
#include "cpu/optimizer_isa.h"
#include "lowbit/kernels/cpu.h"
#include "optimizer_math.h"
#include "validate.h"

namespace lowbit::kernels::cpu {
namespace {

/// A rare wish that has no vector kernel.
bool rounds_at_random(const OptimizerParams& p) {
  if (p.dtype != DType::kBFloat16) return false;
  for (int64_t i = 0; i < p.nhypers; ++i) {
    if (p.hypers[i].stochastic_rounding) return true;
  }
  return false;
}

}  // namespace

StateMap::StateMap(const float* map) noexcept : values(map), search(map) {
  const auto first = [&](auto&& holds) {
    int code = 0;
    while (code < 255 && !holds(map[code])) ++code;
    return code;
  };
  first_unsigned = first([](float value) { return !std::signbit(value); });
  first_positive = first([](float value) { return value > 0.0f; });
  last_negative = std::signbit(map[first_unsigned]) ? 255
                  : first_unsigned > 0              ? first_unsigned - 1
                                                    : 0;
}

Status optimizer_norms(const OptimizerParams& p, int64_t begin, int64_t end) noexcept {
  const Isa isa = active_isa();
  if (isa == Isa::kScalar) return ref::optimizer_norms(p, begin, end);
  const Status status = check(p, begin, end, optimizer_chunks(p));
  if (!status.ok() || begin == end) return status;
#if defined(__x86_64__)
  const FlushMode flush_mode;
  if (isa == Isa::kAVX512) {
    avx512::optimizer_norms(p, begin, end);
  } else {
    avx2::optimizer_norms(p, begin, end);
  }
#endif
  return ok_status();
}

Status optimizer_limits(const OptimizerParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, p.ntensors);
  if (!status.ok()) return status;
  int64_t chunk = 0;
  for (int64_t i = 0; i < end; ++i) {
    const OptimizerTensor& t = p.tensors[i];
    const OptimizerHyper& h = p.hypers[t.hyper];
    const int64_t chunks = ceil_div(t.numel, kOptimizerChunk);
    if (i >= begin && h.max_unorm > 0.0f) {
      double squares_of_p = 0.0, squares_of_update = 0.0;
      for (const float* norms = optimizer_norms_of(p) + 2 * chunk;
           norms != optimizer_norms_of(p) + 2 * (chunk + chunks); norms += 2) {
        squares_of_p += norms[0];
        squares_of_update += norms[1];
      }
      squares_of_update *= optimizer_coefficients(p.kind, h).norm_factor;
      if (t.unorm != nullptr) *t.unorm = static_cast<float>(squares_of_update);
      optimizer_limits_of(p)[i] = optimizer_limit(
          h.max_unorm, h.param_norm >= 0.0f ? h.param_norm : std::sqrt(squares_of_p),
          std::sqrt(squares_of_update));
    }
    chunk += chunks;
  }
  return ok_status();
}

Status optimizer_step(const OptimizerParams& p, int64_t begin, int64_t end) noexcept {
  const Isa isa = active_isa();
  if (isa == Isa::kScalar || rounds_at_random(p)) return ref::optimizer_step(p, begin, end);
  const Status status = check(p, begin, end, optimizer_chunks(p));
  if (!status.ok() || begin == end) return status;
#if defined(__x86_64__)
  std::optional<StateMap> map1, map2;
  if (p.blockwise) map1.emplace(p.map1);
  if (p.blockwise && has_second_state(p.kind)) map2.emplace(p.map2);
  const StateMaps maps{map1 ? &*map1 : nullptr, map2 ? &*map2 : nullptr};
  const FlushMode flush_mode;
  if (isa == Isa::kAVX512) {
    avx512::optimizer_step(p, maps, begin, end);
  } else {
    avx2::optimizer_step(p, maps, begin, end);
  }
#endif
  return ok_status();
}

}  // namespace lowbit::kernels::cpu
