// The scalar truth of the optimizer steps.
#include "lowbit/kernels/optimizer.h"

#include <algorithm>

#include "optimizer_math.h"
#include "ref/flushed.h"
#include "ref/nearest_code.h"
#include "validate.h"

namespace lowbit::kernels::ref {
namespace {

using Coefficients = OptimizerCoefficients;

/// One element with its states; `slow` is AdEMAMix's second row of state1.
struct Element {
  float p, g;
  float state1 = 0.0f, slow = 0.0f, state2 = 0.0f;
};

float average(float beta, float rest, float state, float value) {
  return multiply_add(rest, value, multiply(beta, state));
}
float average_of_squares(float beta, float rest, float state, float value) {
  return multiply_add(multiply(rest, value), value, multiply(beta, state));
}
float sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : 0.0f; }

/// Updates the states of e. Returns the direction in which p moves by step_size.
float update_states(OptimizerKind kind, const Coefficients& c, Element& e) {
  const auto over_root = [&](float numerator, float v) {
    return divide(numerator, add(square_root(v), c.eps));
  };
  switch (kind) {
    case OptimizerKind::kAdam:
      e.state1 = average(c.beta1, c.rest1, e.state1, e.g);
      e.state2 = average_of_squares(c.beta2, c.rest2, e.state2, e.g);
      return over_root(e.state1, e.state2);
    case OptimizerKind::kAdEMAMix:
      e.state1 = average(c.beta1, c.rest1, e.state1, e.g);
      e.slow = average(c.beta3, c.rest3, e.slow, e.g);
      e.state2 = average_of_squares(c.beta2, c.rest2, e.state2, e.g);
      return over_root(multiply_add(c.alpha, e.slow, multiply(e.state1, c.inverse_c1)), e.state2);
    case OptimizerKind::kMomentum:
      e.state1 = multiply_add(c.beta1, e.state1, e.g);
      return e.state1;
    case OptimizerKind::kRMSprop:
      e.state1 = average_of_squares(c.beta1, c.rest1, e.state1, e.g);
      return over_root(e.g, e.state1);
    case OptimizerKind::kAdagrad:
      e.state1 = multiply_add(e.g, e.g, e.state1);
      return over_root(e.g, e.state1);
    case OptimizerKind::kLion: {
      const float direction = sign(average(c.beta1, c.rest1, e.state1, e.g));
      e.state1 = average(c.beta2, c.rest2, e.state1, e.g);
      return direction;
    }
  }
  return 0.0f;
}

/// Direction of a whole update: gradient scaled, decay added where it is coupled, exceptions made.
/// Returns false when p and the states stay as they are in e.
bool direction_of(const OptimizerParams& params, const Coefficients& c, Element& e,
                  float& direction) {
  e.g = multiply(e.g, c.grad_scale);
  if (c.coupled_decay != 0.0f) e.g = multiply_add(c.coupled_decay, e.p, e.g);
  if (params.blockwise && has_second_state(params.kind) && !std::isfinite(e.g)) {
    e.state1 = e.slow = e.state2 = 0.0f;
    return false;
  }
  if (c.skip_zeros && flush(e.g) == 0.0f) return false;
  direction = update_states(params.kind, c, e);
  return true;
}

void update(const OptimizerParams& params, const Coefficients& c, float limit, Element& e) {
  float direction = 0.0f;
  if (!direction_of(params, c, e, direction)) return;
  const float step_size = multiply(c.step_size, limit);
  if (params.kind == OptimizerKind::kLion) {
    e.p = multiply_add(step_size, direction, multiply(e.p, c.decay));
  } else {
    e.p = multiply(multiply_add(step_size, direction, e.p), c.decay);
  }
}

/// The states of one tensor as floats, whatever they are stored as. Blocks are read and written one
/// by one.
class States {
 public:
  States(const OptimizerParams& params, const OptimizerTensor& tensor)
      : params_(params), t_(tensor), blocks_(ceil_div(tensor.numel, kOptimizerBlocksize)) {}

  void read(int64_t i, Element& e) const {
    e.state1 = value(t_.state1, t_.absmax1, params_.map1, i, 0);
    if (params_.kind == OptimizerKind::kAdEMAMix) {
      e.slow = value(t_.state1, t_.absmax1, params_.map1, i, 1);
    }
    if (has_second_state(params_.kind)) {
      e.state2 = value(t_.state2, t_.absmax2, params_.map2, i, 0);
    }
  }

  void write(int64_t first, int64_t count, const Element* elements) const {
    const CodeRule rule = code_rule_of_state1(params_.kind);
    write(t_.state1, t_.absmax1, params_.map1, rule, first, count, 0, elements, &Element::state1);
    if (params_.kind == OptimizerKind::kAdEMAMix) {
      write(t_.state1, t_.absmax1, params_.map1, rule, first, count, 1, elements, &Element::slow);
    }
    if (has_second_state(params_.kind)) {
      write(t_.state2, t_.absmax2, params_.map2, CodeRule::kNearest, first, count, 0, elements,
            &Element::state2);
    }
  }

 private:
  float value(const void* state, const float* absmax, const float* map, int64_t i,
              int64_t row) const {
    const int64_t at = row * t_.numel + i;
    if (!params_.blockwise) return flush(static_cast<const float*>(state)[at]);
    return multiply(map[static_cast<const uint8_t*>(state)[at]],
                    absmax[row * blocks_ + i / kOptimizerBlocksize]);
  }

  void write(void* state, float* absmax, const float* map, CodeRule rule, int64_t first,
             int64_t count, int64_t row, const Element* elements, float Element::*member) const {
    const int64_t at = row * t_.numel + first;
    if (!params_.blockwise) {
      for (int64_t i = 0; i < count; ++i) static_cast<float*>(state)[at + i] = elements[i].*member;
      return;
    }
    float largest = 0.0f;
    for (int64_t i = 0; i < count; ++i) {
      const float magnitude = std::fabs(elements[i].*member);
      if (magnitude > largest) largest = magnitude;
    }
    absmax[row * blocks_ + first / kOptimizerBlocksize] = largest;
    for (int64_t i = 0; i < count; ++i) {
      static_cast<uint8_t*>(state)[at + i] =
          code_of(map, rule, divide(elements[i].*member, largest));
    }
  }

  static uint8_t code_of(const float* map, CodeRule rule, float y) {
    if (std::isnan(y)) return 0;
    int code = nearest_code(map, y);
    if (rule == CodeRule::kKeepSign) {
      if (std::signbit(y) && !std::signbit(map[code])) code -= 1;
      if (!std::signbit(y) && std::signbit(map[code])) code += 1;
    } else if (rule == CodeRule::kPositive && y > 0.0f) {
      while (code < 255 && !(map[code] > 0.0f)) ++code;
    }
    return static_cast<uint8_t>(std::clamp(code, 0, 255));
  }

  const OptimizerParams& params_;
  const OptimizerTensor& t_;
  int64_t blocks_;
};

/// `element` counts through all chunks of the call.
template <typename T>
T rounded(const Coefficients& c, float p, int64_t element) {
  if constexpr (std::is_same_v<T, BFloat>) {
    if (c.stochastic_rounding) {
      return {round_to_bfloat(std::bit_cast<uint32_t>(p), rounding_bits(c.rounding_key, element))};
    }
  }
  return from_float<T>(p);
}

template <typename T>
void step_chunk(const OptimizerParams& params, const OptimizerChunk& chunk) {
  const OptimizerTensor& t = *chunk.tensor;
  const OptimizerHyper& hyper = params.hypers[t.hyper];
  const Coefficients c = optimizer_coefficients(params.kind, hyper);
  const float limit =
      hyper.max_unorm > 0.0f ? optimizer_limits_of(params)[chunk.tensor_index] : 1.0f;
  const States states(params, t);
  Element block[kOptimizerBlocksize];
  for (int64_t first = chunk.first; first < chunk.last; first += kOptimizerBlocksize) {
    const int64_t count = std::min(kOptimizerBlocksize, chunk.last - first);
    for (int64_t i = 0; i < count; ++i) {
      block[i] = {to_float(static_cast<const T*>(t.p)[first + i]),
                  to_float(static_cast<const T*>(t.g)[first + i])};
      states.read(first + i, block[i]);
      update(params, c, limit, block[i]);
      const int64_t element = chunk.chunk * kOptimizerChunk + first - chunk.first + i;
      static_cast<T*>(t.p)[first + i] = rounded<T>(c, block[i].p, element);
    }
    states.write(first, count, block);
  }
}

template <typename T>
void norms_of_chunk(const OptimizerParams& params, const OptimizerChunk& chunk) {
  const OptimizerTensor& t = *chunk.tensor;
  const OptimizerHyper& hyper = params.hypers[t.hyper];
  if (!(hyper.max_unorm > 0.0f)) return;
  const Coefficients c = optimizer_coefficients(params.kind, hyper);
  Coefficients undecayed = c;  // the norm is that of the update without weight decay
  undecayed.coupled_decay = 0.0f;
  const States states(params, t);
  // Sixteen sums side by side, which are added up at the end: the order of the vector kernels.
  constexpr int kSums = 16;
  float p2[kSums] = {}, d2[kSums] = {};
  for (int64_t i = chunk.first; i < chunk.last; ++i) {
    const auto lane = static_cast<size_t>((i - chunk.first) % kSums);
    Element e{to_float(static_cast<const T*>(t.p)[i]), to_float(static_cast<const T*>(t.g)[i])};
    p2[lane] = multiply_add(e.p, e.p, p2[lane]);
    states.read(i, e);
    float direction = 0.0f;
    if (direction_of(params, undecayed, e, direction)) {
      d2[lane] = multiply_add(direction, direction, d2[lane]);
    }
  }
  float* out = optimizer_norms_of(params) + 2 * chunk.chunk;
  out[0] = out[1] = 0.0f;
  for (int lane = 0; lane < kSums; ++lane) {
    out[0] = add(out[0], p2[lane]);
    out[1] = add(out[1], d2[lane]);
  }
}

}  // namespace

Status optimizer_norms(const OptimizerParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, optimizer_chunks(p));
  if (!status.ok()) return status;
  visit_dtype(p.dtype, [&](auto* tag) {
    for_each_chunk(p, begin, end, [&](const OptimizerChunk& chunk) {
      norms_of_chunk<std::remove_pointer_t<decltype(tag)>>(p, chunk);
    });
  });
  return ok_status();
}

Status optimizer_step(const OptimizerParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, optimizer_chunks(p));
  if (!status.ok()) return status;
  visit_dtype(p.dtype, [&](auto* tag) {
    for_each_chunk(p, begin, end, [&](const OptimizerChunk& chunk) {
      step_chunk<std::remove_pointer_t<decltype(tag)>>(p, chunk);
    });
  });
  return ok_status();
}

}  // namespace lowbit::kernels::ref

namespace lowbit::kernels {

int64_t optimizer_chunks(const OptimizerParams& p) noexcept {
  int64_t chunks = 0;
  if (p.tensors == nullptr) return 0;
  for (int64_t t = 0; t < p.ntensors; ++t) chunks += ceil_div(p.tensors[t].numel, kOptimizerChunk);
  return chunks;
}

int64_t optimizer_workspace_bytes(const OptimizerParams& p) noexcept {
  for (int64_t t = 0; t < p.ntensors; ++t) {
    if (p.hypers[p.tensors[t].hyper].max_unorm > 0.0f) {
      return (2 * optimizer_chunks(p) + p.ntensors) * static_cast<int64_t>(sizeof(float));
    }
  }
  return 0;
}

}  // namespace lowbit::kernels
