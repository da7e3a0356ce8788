// Three recorded steps of every optimizer of the reference, on CUDA and on the CPU.
#include <cmath>
#include <map>

#include "golden.h"
#include "instruction_sets.h"
#include "optimizer_problem.h"

namespace lowbit::kernels {
namespace {

using testing::cast;
using testing::dtype_named;
using testing::Golden;
using testing::OptimizerProblem;
using testing::split;

struct Recorded {
  OptimizerKind kind;
  OptimizerHyper hyper;
};

/// The hyper-parameters of the recording.
const std::map<std::string, Recorded>& recorded() {
  using Kind = OptimizerKind;
  static const std::map<std::string, Recorded> cases = {
      {"adam",
       {Kind::kAdam,
        {.lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.01f}}},
      {"adamw",
       {Kind::kAdam,
        {.lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.01f}}},
      {"ademamix",
       {Kind::kAdEMAMix,
        {.lr = 1e-3f,
         .beta1 = 0.9f,
         .beta2 = 0.999f,
         .beta3 = 0.9999f,
         .alpha = 5.0f,
         .eps = 1e-8f,
         .weight_decay = 0.01f}}},
      {"ademamix_sched",
       {Kind::kAdEMAMix,
        {.lr = 1e-3f,
         .beta1 = 0.9f,
         .beta2 = 0.999f,
         .beta3 = 0.9999f,
         .alpha = 5.0f,
         .eps = 1e-8f,
         .weight_decay = 0.01f}}},
      {"sgd", {Kind::kMomentum, {.lr = 1e-2f, .beta1 = 0.9f, .weight_decay = 0.01f}}},
      {"lars",
       {Kind::kMomentum, {.lr = 0.1f, .beta1 = 0.9f, .weight_decay = 0.01f, .max_unorm = 0.02f}}},
      {"rmsprop",
       {Kind::kRMSprop, {.lr = 1e-3f, .beta1 = 0.99f, .eps = 1e-8f, .weight_decay = 0.01f}}},
      {"adagrad", {Kind::kAdagrad, {.lr = 1e-2f, .eps = 1e-10f, .weight_decay = 0.01f}}},
      {"lion", {Kind::kLion, {.lr = 1e-4f, .beta1 = 0.9f, .beta2 = 0.99f, .weight_decay = 0.1f}}},
      {"lamb",
       {Kind::kAdam,
        {.lr = 1e-2f,
         .beta1 = 0.9f,
         .beta2 = 0.999f,
         .eps = 1e-8f,
         .weight_decay = 0.01f,
         .max_unorm = 1.0f}}},
  };
  return cases;
}

/// ademamix_sched: alpha and beta3 rise over ten steps.
void schedule(OptimizerHyper& h) {
  const double s = static_cast<double>(h.step) / 10.0, b1 = std::log(0.9), b3 = std::log(0.9999);
  h.alpha = static_cast<float>(std::min(s * 5.0, 5.0));
  h.beta3 = static_cast<float>(std::min(std::exp(b1 * b3 / ((1 - s) * b3 + s * b1)), 0.9999));
}

class OptimizerGolden : public testing::EachInstructionSet {
 protected:
  struct Deviation {
    double p = 0;                     ///< in units of what is allowed
    double states = 0;                ///< float32 states, in units of what is allowed
    int64_t codes = 0, elements = 0;  ///< codes that differ, of how many
    int64_t beyond = 0;               ///< elements of p that differ by more than is allowed
    int steps = 0;
  };

  std::vector<float> values(const std::string& key, DType dtype) {
    return testing::floats_of(golden_.get<uint8_t>(key), dtype);
  }

  /// Runs the three steps of "<device>.<name>.<bits>.<dtype>" and compares with what was recorded.
  Deviation run(const std::string& device, const std::string& name, bool blockwise,
                const std::string& dtype_name) {
    const std::string stem =
        testing::joined({device, name, blockwise ? "8" : "32", dtype_name, ""});
    const bool scheduled = name == "ademamix_sched";
    OptimizerProblem problem;
    problem.kind = recorded().at(name).kind;
    problem.blockwise = blockwise;
    problem.dtype = dtype_named(dtype_name);
    problem.hypers = {recorded().at(name).hyper};
    const int64_t n = blockwise ? 4140 : 600;
    auto& t = problem.add(n);
    std::vector<float> start = golden_.get<float>(device == "cpu" ? stem + "init.p" : "p0");
    start.resize(static_cast<size_t>(n));
    const auto bytes = cast(start, problem.dtype);
    std::memcpy(t.p.data(), bytes.data(), bytes.size());

    Deviation deviation;
    for (int step = 0; step < 3; ++step) {
      std::vector<float> g = golden_.get<float>(std::string(1, 'g').append(std::to_string(step)));
      g.resize(static_cast<size_t>(n));
      const auto g_bytes = cast(g, problem.dtype);
      std::memcpy(t.g.data(), g_bytes.data(), g_bytes.size());
      problem.hypers[0].step = step + 1;
      if (scheduled) schedule(problem.hypers[0]);
      problem.step_on_cpu();
      const std::string key = stem + std::to_string(step) + ".";
      compare(key, problem, step, deviation);
    }
    return deviation;
  }

  /// The reference's AdEMAMix kernel shares one scale between the first block of the slow moment
  /// and the last one of the fast moment: elements of these blocks are not compared after step 0.
  static bool spoiled(const OptimizerProblem& problem, int step, int64_t element) {
    const int64_t block = element / kOptimizerBlocksize;
    return problem.kind == OptimizerKind::kAdEMAMix && problem.blockwise && step > 0 &&
           (block == 0 || block == 4140 / kOptimizerBlocksize);
  }

  void compare(const std::string& key, OptimizerProblem& problem, int step, Deviation& deviation) {
    auto& t = *problem.tensors[0];
    const OptimizerHyper& h = problem.hypers[0];
    const DType dtype = problem.dtype;
    const bool half = dtype != DType::kFloat32;
    const float unit = dtype == DType::kBFloat16  ? 0x1p-8f
                       : dtype == DType::kFloat16 ? 0x1p-11f
                                                  : 0x1p-23f;
    // The reference's 8-bit Lion rounds lr to the dtype of p.
    const double lr_unit =
        problem.blockwise && problem.kind == OptimizerKind::kLion && half ? unit : 0.0;
    const std::vector<float> p = values(key + "p", dtype);
    for (int64_t i = 0; i < t.numel; ++i) {
      if (spoiled(problem, step, i)) continue;
      const float ours = load_element(t.p.data(), dtype, i), theirs = p[static_cast<size_t>(i)];
      // The reference's powers and roots are approximate (1e-4 of an update), and it rounds p twice
      // a step where lowbit rounds once (its own rounding is half of one unit).
      const double allowed =
          (step + 1) * ((1e-4 + lr_unit) * h.lr + (half ? 2.0 : 1.0) * unit * std::fabs(theirs));
      const double error = std::fabs(double{ours} - theirs) / allowed;
      deviation.beyond += error > 1;
      deviation.p = std::max(deviation.p, error);
    }
    ++deviation.steps;
    if (golden_.contains(key + "unorm_vec")) {
      const float theirs = golden_.get<float>(key + "unorm_vec")[0];
      EXPECT_NEAR(t.unorm, theirs, (half ? 1e-3 : 1e-4) * theirs) << key;
    }
    for (const char* name : {"state1", "state2"}) {
      if (!golden_.contains(key + name)) continue;
      compare_states(key + name, problem, step, name == std::string("state1") ? t.state1 : t.state2,
                     deviation);
    }
    if (problem.blockwise && golden_.contains(key + "absmax1")) {
      scales(key + "absmax1", problem, step, t.absmax1);
    }
    if (problem.blockwise && golden_.contains(key + "absmax2")) {
      scales(key + "absmax2", problem, step, t.absmax2);
    }
  }

  void compare_states(const std::string& key, const OptimizerProblem& problem, int step,
                      testing::GuardedBuffer& ours, Deviation& deviation) {
    const int64_t n = problem.tensors[0]->numel;
    if (problem.blockwise) {
      const std::vector<uint8_t> codes = golden_.get<uint8_t>(key);
      ASSERT_EQ(codes.size(), ours.bytes()) << key;
      for (size_t i = 0; i < codes.size(); ++i) {
        if (spoiled(problem, step, static_cast<int64_t>(i) % n)) continue;
        const int difference = std::abs(int{codes[i]} - int{ours.as<uint8_t>()[i]});
        // Quotients that the reference only approximates can be exact ties, above all of 16-bit
        // gradients. A moment that cancels in a later step magnifies the difference.
        if (step == 0) {
          ASSERT_LE(difference, 1) << key << " " << i;
        }
        deviation.codes += difference != 0;
        ++deviation.elements;
      }
      return;
    }
    // h is rounded to 16 bits by the reference, before it is averaged (or squared).
    const OptimizerKind kind = problem.kind;
    const bool coupled = kind == OptimizerKind::kMomentum || kind == OptimizerKind::kRMSprop ||
                         kind == OptimizerKind::kAdagrad;
    const double unit = problem.dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
    const bool rounded = coupled && problem.dtype != DType::kFloat32;
    const std::vector<float> states = golden_.get<float>(key);
    ASSERT_EQ(states.size() * 4, ours.bytes()) << key;
    double largest = 0;
    for (const float x : states) largest = std::max(largest, std::fabs(double{x}));
    for (size_t i = 0; i < states.size(); ++i) {
      const double allowed =
          rounded ? unit * (std::fabs(states[i]) + largest) : 2e-6 * std::fabs(states[i]) + 1e-9;
      deviation.states =
          std::max(deviation.states, std::fabs(double{ours.as<float>()[i]} - states[i]) / allowed);
    }
  }

  void scales(const std::string& key, const OptimizerProblem& problem, int step,
              testing::GuardedBuffer& ours) {
    const std::vector<float> theirs = golden_.get<float>(key);
    ASSERT_EQ(theirs.size() * 4, ours.bytes()) << key;
    const bool pair = problem.kind == OptimizerKind::kAdEMAMix && theirs.size() == 34;
    const double allowed = problem.dtype == DType::kFloat32 ? 1e-6 : 1e-2;
    for (size_t i = 0; i < theirs.size(); ++i) {
      // The reference's slow moment begins one scale early.
      const size_t at = pair && i >= 17 ? i - 1 : i;
      if (pair && (i == 16 || i == 17)) continue;
      ASSERT_NEAR(ours.as<float>()[i], theirs[at], allowed * theirs[at])
          << key << " block " << i << " step " << step;
    }
  }

  const Golden golden_{"optim.safetensors"};
};
LOWBIT_EACH_INSTRUCTION_SET(OptimizerGolden);

TEST_P(OptimizerGolden, Float32States) {
  for (const auto& [name, unused] : recorded()) {
    for (const char* dtype : {"fp32", "fp16", "bf16"}) {
      if (!golden_.contains(testing::joined({"cuda", name, "32", dtype, "0.p"}))) continue;
      const Deviation d = run("cuda", name, false, dtype);
      std::printf(
          "[ golden ] cuda %-15s 32-bit %s  p %.3f (beyond: %lld)  states %.3f of what is "
          "allowed\n",
          name.c_str(), dtype, d.p, static_cast<long long>(d.beyond), d.states);
      EXPECT_EQ(d.steps, 3);
      // Where the rounded h is 0 or cancels, so does the reference's update.
      const bool rounded = dtype == std::string("fp16") && (name == "rmsprop" || name == "adagrad");
      EXPECT_LE(d.beyond, rounded ? 20 : 0) << name << " " << dtype << " worst " << d.p;
      EXPECT_LE(d.states, 1.0) << name << " " << dtype;
    }
  }
}

TEST_P(OptimizerGolden, EightBitStates) {
  for (const auto& [name, unused] : recorded()) {
    // The numerator of the reference's 8-bit RMSprop and Adagrad is wrong; LAMB and LARS fail.
    if (name == "rmsprop" || name == "adagrad" || name == "lamb" || name == "lars") continue;
    for (const char* dtype : {"fp32", "fp16", "bf16"}) {
      const Deviation d = run("cuda", name, true, dtype);
      std::printf(
          "[ golden ] cuda %-15s  8-bit %s  p %.3f of what is allowed, codes that differ %lld of "
          "%lld\n",
          name.c_str(), dtype, d.p, static_cast<long long>(d.codes),
          static_cast<long long>(d.elements));
      EXPECT_EQ(d.steps, 3);
      EXPECT_LE(d.p, 1.0) << name << " " << dtype;
      EXPECT_LE(d.codes * 1000, d.elements) << name << " " << dtype;
    }
  }
}

/// The CPU path of the reference with float32 states computes the same, up to the order of weight
/// decay and update (LAMB and LARS have another norm there).
TEST_P(OptimizerGolden, Float32StatesOnTheReferencesCpu) {
  for (const auto& [name, unused] : recorded()) {
    if (name == "lamb" || name == "lars") continue;
    const Deviation d = run("cpu", name, false, "fp32");
    std::printf("[ golden ] cpu  %-15s 32-bit fp32  p %.3f  states %.3f of what is allowed\n",
                name.c_str(), d.p, d.states);
    EXPECT_EQ(d.steps, 3);
    EXPECT_LE(d.p, 1.0) << name;
    EXPECT_LE(d.states, 100.0) << name;  // 1 - beta is the double there: 5e-5 relative
  }
}

}  // namespace
}  // namespace lowbit::kernels
