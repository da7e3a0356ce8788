// Requantization of 8-bit states for any values at all.
#include <gtest/gtest.h>
// Needs the declarations of the one above.
#include <rapidcheck/gtest.h>

#include <cmath>

#include "lowbit/kernels/cpu.h"
#include "optimizer_problem.h"

namespace lowbit::kernels {
namespace {

using namespace testing;

/// The rule, by its words: the nearest value; a tie (with the middle as a float32) goes to the even
/// code; NaN is code 0; a negative value has a negative code, a positive or unsigned one has not.
int nearest(const float* map, float y) {
  if (std::isnan(y)) return 0;
  int code = 0;
  for (int k = 1; k < 256; ++k) {
    const float middle = (map[k - 1] + map[k]) * 0.5f;
    if (y > middle || (y == middle && k % 2 == 0)) code = k;
  }
  if (std::signbit(y) && !std::signbit(map[code])) return std::max(code - 1, 0);
  if (!std::signbit(y) && std::signbit(map[code])) return std::min(code + 1, 255);
  return code;
}

/// Bits of every kind: any float, subnormal ones, tiny, huge, and those around 1.
rc::Gen<float> any_state() {
  const auto bits = [](uint32_t from, uint32_t to) {
    return rc::gen::map(rc::gen::pair(rc::gen::inRange(from, to), rc::gen::arbitrary<bool>()),
                        [](const std::pair<uint32_t, bool>& drawn) {
                          return std::bit_cast<float>(drawn.first | uint32_t{drawn.second} << 31);
                        });
  };
  return rc::gen::oneOf(bits(0, 0x7f800001), bits(0, 0x00800000), bits(0x00800000, 0x04000000),
                        bits(0x7c000000, 0x7f800000), bits(0x3a000000, 0x3f800001));
}

/// From a momentum of zero the new state is the gradient: 100 cases of 40 blocks for each
/// instruction set are a million states.
RC_GTEST_PROP(OptimizerProperty, CodesOfAnyStatesAreTheNearest, ()) {
  constexpr int64_t kBlocks = 40, kNumel = kBlocks * kOptimizerBlocksize;
  const auto drawn = *rc::gen::container<std::vector<float>>(kNumel, any_state());
  for (const cpu::Isa isa : {cpu::Isa::kScalar, cpu::Isa::kAVX2, cpu::Isa::kAVX512}) {
    if (cpu::set_isa(isa) != isa) continue;
    OptimizerProblem problem;
    problem.kind = OptimizerKind::kMomentum;
    problem.blockwise = true;
    problem.hypers = {{.lr = 1e-3f, .beta1 = 0.9f}};
    auto& t = problem.add(kNumel);
    std::memset(t.p.data(), 0, t.p.bytes());
    std::memcpy(t.g.data(), drawn.data(), t.g.bytes());
    problem.step_on_cpu();
    for (int64_t i = 0; i < kNumel; ++i) {
      float largest = 0.0f;
      const int64_t first = i / kOptimizerBlocksize * kOptimizerBlocksize;
      for (int64_t j = first; j < first + kOptimizerBlocksize; ++j) {
        largest = std::max(largest, std::fabs(flush(drawn[static_cast<size_t>(j)])));
      }
      RC_ASSERT(t.absmax1.as<float>()[i / kOptimizerBlocksize] == largest);
      const float state = flush(drawn[static_cast<size_t>(i)]);
      const int expected = nearest(dynamic_map(true), flush(state / largest));
      RC_ASSERT(int{t.state1.as<uint8_t>()[i]} == expected);
    }
  }
  cpu::set_isa(cpu::detect_isa());
}

}  // namespace
}  // namespace lowbit::kernels
