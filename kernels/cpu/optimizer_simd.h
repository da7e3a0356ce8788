// Optimizer steps for the instruction set LOWBIT_ISA whose vec_*.h is included before: the
// arithmetic of ref/optimizer.cpp, operation by operation.
#include <cmath>
#include <cstring>

#include "cpu/absmax_simd.h"
#include "cpu/nearest_code_simd.h"
#include "cpu/optimizer_isa.h"
#include "optimizer_math.h"

namespace lowbit::kernels::cpu::LOWBIT_ISA {

static constexpr int kBlock = static_cast<int>(kOptimizerBlocksize);

/// OptimizerCoefficients in every lane.
struct Lanes {
  F beta1, rest1, beta2, rest2, beta3, rest3, alpha, inverse_c1, step_size, eps, decay,
      coupled_decay, grad_scale;
  bool couples, skip_zeros;

  Lanes(const OptimizerCoefficients& c, float limit)
      : beta1(set(c.beta1)),
        rest1(set(c.rest1)),
        beta2(set(c.beta2)),
        rest2(set(c.rest2)),
        beta3(set(c.beta3)),
        rest3(set(c.rest3)),
        alpha(set(c.alpha)),
        inverse_c1(set(c.inverse_c1)),
        step_size(multiply(set(c.step_size), set(limit))),
        eps(set(c.eps)),
        decay(set(c.decay)),
        coupled_decay(set(c.coupled_decay)),
        grad_scale(set(c.grad_scale)),
        couples(c.coupled_decay != 0.0f),
        skip_zeros(c.skip_zeros) {}
};

struct Elements {
  F p, g, state1, slow, state2;
};

static inline F average(F beta, F rest, F state, F value) {
  return multiply_add(rest, value, multiply(beta, state));
}
static inline F average_of_squares(F beta, F rest, F state, F value) {
  return multiply_add(multiply(rest, value), value, multiply(beta, state));
}
/// Without subnormals x > 0 is x >= FLT_MIN.
static inline F sign(F x) {
  const F down = select(at_least(set(-FLT_MIN), x), set(-1.0f), set(0.0f));
  return select(at_least(x, set(FLT_MIN)), set(1.0f), down);
}

template <OptimizerKind kKind>
static inline F update_states(const Lanes& c, Elements& e) {
  F numerator = e.g, v = e.state1;
  if constexpr (kKind == OptimizerKind::kMomentum) {
    return e.state1 = multiply_add(c.beta1, e.state1, e.g);
  } else if constexpr (kKind == OptimizerKind::kLion) {
    const F direction = sign(average(c.beta1, c.rest1, e.state1, e.g));
    e.state1 = average(c.beta2, c.rest2, e.state1, e.g);
    return direction;
  } else if constexpr (kKind == OptimizerKind::kRMSprop) {
    v = e.state1 = average_of_squares(c.beta1, c.rest1, e.state1, e.g);
  } else if constexpr (kKind == OptimizerKind::kAdagrad) {
    v = e.state1 = multiply_add(e.g, e.g, e.state1);
  } else {
    numerator = e.state1 = average(c.beta1, c.rest1, e.state1, e.g);
    v = e.state2 = average_of_squares(c.beta2, c.rest2, e.state2, e.g);
    if constexpr (kKind == OptimizerKind::kAdEMAMix) {
      e.slow = average(c.beta3, c.rest3, e.slow, e.g);
      numerator = multiply_add(c.alpha, e.slow, multiply(e.state1, c.inverse_c1));
    }
  }
  return divide(numerator, add(square_root(v), c.eps));
}

/// The updated p. Elements that stay as they are have direction 0.
template <OptimizerKind kKind, bool kBlockwise>
static inline F update(const Lanes& c, Elements& e, F& direction) {
  e.g = multiply(e.g, c.grad_scale);
  if (c.couples) e.g = multiply_add(c.coupled_decay, e.p, e.g);
  const Elements old = e;
  direction = update_states<kKind>(c, e);
  F p = kKind == OptimizerKind::kLion
            ? multiply_add(c.step_size, direction, multiply(e.p, c.decay))
            : multiply(multiply_add(c.step_size, direction, e.p), c.decay);
  if (c.skip_zeros) {
    const Mask stays = at_least(set(0.0f), magnitude(e.g));
    e.state1 = select(stays, old.state1, e.state1);
    e.slow = select(stays, old.slow, e.slow);
    e.state2 = select(stays, old.state2, e.state2);
    direction = zero_where(stays, direction);
    p = select(stays, e.p, p);
  }
  if constexpr (kBlockwise && has_second_state(kKind)) {
    const Mask finite = at_least(set(FLT_MAX), magnitude(e.g));
    e.state1 = select(finite, e.state1, set(0.0f));
    e.slow = select(finite, e.slow, set(0.0f));
    e.state2 = select(finite, e.state2, set(0.0f));
    direction = select(finite, direction, set(0.0f));
    p = select(finite, p, e.p);
  }
  return p;
}

template <typename T>
static inline F load_some(const T* p, int n) {
  return n == kLanes ? load(p) : load_first(p, n);
}
template <typename T>
static inline void store_some(T* p, F a, int n) {
  if (n == kLanes) {
    store(p, a);
  } else {
    store_first(p, a, n);
  }
}

/// The float32 states of up to a block of elements.
struct States {
  float *state1, *slow, *state2;
};

template <typename T, OptimizerKind kKind>
static inline Elements load_elements(const T* p, const T* g, const States& s, int i, int n) {
  const F zero = set(0.0f);
  Elements e{load_some(p + i, n), load_some(g + i, n), load_some(s.state1 + i, n), zero, zero};
  if constexpr (kKind == OptimizerKind::kAdEMAMix) e.slow = load_some(s.slow + i, n);
  if constexpr (has_second_state(kKind)) e.state2 = load_some(s.state2 + i, n);
  return e;
}

/// The 8-bit states of a block as floats, in `values` [3, kBlock].
template <OptimizerKind kKind>
static inline States decode(const OptimizerParams& params, const OptimizerTensor& t, int64_t first,
                            int count, float* values) {
  const int64_t blocks = ceil_div(t.numel, kBlock), block = first / kBlock;
  const auto read = [&](const void* state, const float* absmax, const float* map, int64_t row,
                        float* out) {
    const uint8_t* codes = static_cast<const uint8_t*>(state) + row * t.numel + first;
    for (int i = 0; i < count; ++i) out[i] = map[codes[i]];
    for (int i = count; i < kBlock; ++i) out[i] = 0.0f;
    const F scale = set(absmax[row * blocks + block]);
    for (int i = 0; i < kBlock; i += kLanes) store(out + i, multiply(load(out + i), scale));
  };
  const States s{values, values + kBlock, values + 2 * kBlock};
  read(t.state1, t.absmax1, params.map1, 0, s.state1);
  if constexpr (kKind == OptimizerKind::kAdEMAMix) {
    read(t.state1, t.absmax1, params.map1, 1, s.slow);
  }
  if constexpr (has_second_state(kKind)) read(t.state2, t.absmax2, params.map2, 0, s.state2);
  return s;
}

/// The states of a block: in place, or decoded to `values`.
template <OptimizerKind kKind, bool kBlockwise>
static inline States states_of(const OptimizerParams& params, const OptimizerTensor& t,
                               int64_t first, int count, float* values) {
  if constexpr (kBlockwise) {
    return decode<kKind>(params, t, first, count, values);
  } else {
    States s{static_cast<float*>(t.state1) + first, nullptr, nullptr};
    if constexpr (kKind == OptimizerKind::kAdEMAMix) s.slow = s.state1 + t.numel;
    if constexpr (has_second_state(kKind)) s.state2 = static_cast<float*>(t.state2) + first;
    return s;
  }
}

/// Codes and scale of a block.
template <CodeRule kRule>
static inline void encode(const StateMap& map, const float* values, int count, uint8_t* codes,
                          float* absmax) {
  *absmax = block_absmax(values, count, /*full=*/false);
  const F scale = set(*absmax), lowest = set(-HUGE_VALF);
  float y[kChunk] = {};
  uint8_t found[kChunk];
  for (int i = 0; i < count; i += kChunk) {
    const int n = count - i < kChunk ? count - i : kChunk;
    for (int j = 0; j < n; j += kLanes) {
      const F ratio = divide(load_some(values + i + j, n - j < kLanes ? n - j : kLanes), scale);
      store(y + j, select(is_nan(ratio), lowest, ratio));
    }
    if (map.search.one_look) {
      find_codes<true>(map.search, y, found);
    } else {
      find_codes<false>(map.search, y, found);
    }
    if constexpr (kRule == CodeRule::kKeepSign) {
      for (int j = 0; j < kChunk; ++j) {
        const int code = found[j];
        const bool negative = std::bit_cast<int32_t>(y[j]) < 0;
        const int below = code < map.last_negative ? code : map.last_negative;
        const int above = code > map.first_unsigned ? code : map.first_unsigned;
        found[j] = static_cast<uint8_t>(negative ? below : above);
      }
    } else if constexpr (kRule == CodeRule::kPositive) {
      for (int j = 0; j < kChunk; ++j) {
        const int code = found[j];
        const int above = code > map.first_positive ? code : map.first_positive;
        found[j] = static_cast<uint8_t>(y[j] > 0.0f ? above : code);
      }
    }
    std::memcpy(codes + i, found, static_cast<size_t>(n));
  }
}

template <typename T, OptimizerKind kKind, bool kBlockwise>
static void step_chunk(const OptimizerParams& params, const StateMaps& maps,
                       const OptimizerChunk& chunk) {
  const OptimizerTensor& t = *chunk.tensor;
  const OptimizerHyper& hyper = params.hypers[t.hyper];
  const float limit =
      hyper.max_unorm > 0.0f ? optimizer_limits_of(params)[chunk.tensor_index] : 1.0f;
  const Lanes c(optimizer_coefficients(kKind, hyper), limit);
  const int64_t blocks = ceil_div(t.numel, kBlock);
  float values[3 * kBlock];
  for (int64_t first = chunk.first; first < chunk.last; first += kBlock) {
    const int count = static_cast<int>(chunk.last - first < kBlock ? chunk.last - first : kBlock);
    T* p = static_cast<T*>(t.p) + first;
    const T* g = static_cast<const T*>(t.g) + first;
    const States s = states_of<kKind, kBlockwise>(params, t, first, count, values);
    for (int i = 0; i < count; i += kLanes) {
      const int n = count - i < kLanes ? count - i : kLanes;
      Elements e = load_elements<T, kKind>(p, g, s, i, n);
      F direction;
      store_some(p + i, update<kKind, kBlockwise>(c, e, direction), n);
      store_some(s.state1 + i, e.state1, n);
      if constexpr (kKind == OptimizerKind::kAdEMAMix) store_some(s.slow + i, e.slow, n);
      if constexpr (has_second_state(kKind)) store_some(s.state2 + i, e.state2, n);
    }
    if constexpr (kBlockwise) {
      constexpr CodeRule kRule = code_rule_of_state1(kKind);
      const int64_t block = first / kBlock;
      uint8_t* codes = static_cast<uint8_t*>(t.state1) + first;
      encode<kRule>(*maps.map1, s.state1, count, codes, t.absmax1 + block);
      if constexpr (kKind == OptimizerKind::kAdEMAMix) {
        encode<kRule>(*maps.map1, s.slow, count, codes + t.numel, t.absmax1 + blocks + block);
      }
      if constexpr (has_second_state(kKind)) {
        encode<CodeRule::kNearest>(*maps.map2, s.state2, count,
                                   static_cast<uint8_t*>(t.state2) + first, t.absmax2 + block);
      }
    }
  }
}

/// Sixteen sums side by side, added up in order: the bits do not depend on the width of a vector.
template <typename T, OptimizerKind kKind, bool kBlockwise>
static void norms_of_chunk(const OptimizerParams& params, const OptimizerChunk& chunk) {
  const OptimizerTensor& t = *chunk.tensor;
  const OptimizerHyper& hyper = params.hypers[t.hyper];
  if (!(hyper.max_unorm > 0.0f)) return;
  OptimizerCoefficients undecayed = optimizer_coefficients(kKind, hyper);
  undecayed.coupled_decay = 0.0f;
  const Lanes c(undecayed, 1.0f);
  constexpr int kSums = 16;
  float p2[kSums] = {}, d2[kSums] = {}, values[3 * kBlock];
  for (int64_t first = chunk.first; first < chunk.last; first += kBlock) {
    const int count = static_cast<int>(chunk.last - first < kBlock ? chunk.last - first : kBlock);
    const States s = states_of<kKind, kBlockwise>(params, t, first, count, values);
    for (int i = 0; i < count; i += kLanes) {
      const int n = count - i < kLanes ? count - i : kLanes;
      Elements e = load_elements<T, kKind>(static_cast<const T*>(t.p) + first,
                                           static_cast<const T*>(t.g) + first, s, i, n);
      F direction;
      update<kKind, kBlockwise>(c, e, direction);
      float inside[kLanes] = {};  // 0 / 0 in lanes behind the end would be NaN
      store_some(inside, direction, n);
      const int lane = i % kSums;
      const F d = load(inside);
      store(p2 + lane, multiply_add(e.p, e.p, load(p2 + lane)));
      store(d2 + lane, multiply_add(d, d, load(d2 + lane)));
    }
  }
  float* out = optimizer_norms_of(params) + 2 * chunk.chunk;
  out[0] = out[1] = 0.0f;
  for (int lane = 0; lane < kSums; ++lane) {
    out[0] += p2[lane];
    out[1] += d2[lane];
  }
}

/// Calls f<T, kind, blockwise>() for the problem.
template <typename F>
static inline void visit_problem(const OptimizerParams& params, const F& f) {
  visit_dtype(params.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const auto with_kind = [&](auto kind) {
      if (params.blockwise) {
        f.template operator()<T, decltype(kind)::value, true>();
      } else {
        f.template operator()<T, decltype(kind)::value, false>();
      }
    };
    using Kind = OptimizerKind;
    switch (params.kind) {
      case Kind::kAdam:
        return with_kind(std::integral_constant<Kind, Kind::kAdam>{});
      case Kind::kAdEMAMix:
        return with_kind(std::integral_constant<Kind, Kind::kAdEMAMix>{});
      case Kind::kMomentum:
        return with_kind(std::integral_constant<Kind, Kind::kMomentum>{});
      case Kind::kRMSprop:
        return with_kind(std::integral_constant<Kind, Kind::kRMSprop>{});
      case Kind::kAdagrad:
        return with_kind(std::integral_constant<Kind, Kind::kAdagrad>{});
      case Kind::kLion:
        return with_kind(std::integral_constant<Kind, Kind::kLion>{});
    }
  });
}

void optimizer_step(const OptimizerParams& params, StateMaps maps, int64_t begin,
                    int64_t end) noexcept {
  visit_problem(params, [&]<typename T, OptimizerKind kKind, bool kBlockwise>() {
    for_each_chunk(params, begin, end, [&](const OptimizerChunk& chunk) {
      step_chunk<T, kKind, kBlockwise>(params, maps, chunk);
    });
  });
}

void optimizer_norms(const OptimizerParams& params, int64_t begin, int64_t end) noexcept {
  visit_problem(params, [&]<typename T, OptimizerKind kKind, bool kBlockwise>() {
    if constexpr (has_update_limit(kKind)) {
      for_each_chunk(params, begin, end, [&](const OptimizerChunk& chunk) {
        norms_of_chunk<T, kKind, kBlockwise>(params, chunk);
      });
    }
  });
}

}  // namespace lowbit::kernels::cpu::LOWBIT_ISA
