// linear_4bit, linear_4bit_backward_input, gemm_4bit, gemv_4bit, embedding_4bit: golden outputs,
// float64 truth, gradients, layouts.
#include <ATen/record_function.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "lowbit/functional.h"
#include "ops/dispatch.h"
#include "ops/linear.h"
#include "support/golden.h"
#include "support/random.h"
#include "support/tolerance.h"

namespace lowbit {
namespace {

using test::Golden;
using test::is_near;
using test::kGradient;
using test::kMatmul;
using test::same_bytes;

const std::vector<std::pair<std::string, at::ScalarType>> kDtypes = {
    {"fp32", at::kFloat}, {"bf16", at::kBFloat16}, {"fp16", at::kHalf}};

struct Problem {
  at::Tensor packed;
  QuantState state;
  ops::Weight4bit weight;
  at::Tensor truth;  ///< the dequantized weight, float64
};

class Linear4bitTest : public test::RandomTest {
 protected:
  Problem problem(int64_t n, int64_t k, bool nested = false, QuantType type = QuantType::kNF4,
                  int64_t blocksize = 64) {
    Problem p;
    std::tie(p.packed, p.state) =
        quantize_4bit(normal({n, k}),
                      {.blocksize = blocksize, .compress_statistics = nested, .quant_type = type});
    p.weight = ops::Weight4bit::make(p.packed, p.state);
    p.truth = dequantize_4bit(p.packed, p.state).to(at::kDouble);
    return p;
  }
};

at::Tensor linear_f64(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias = {}) {
  const at::Tensor y = at::matmul(x.to(at::kDouble), w.t());
  return bias.defined() ? y + bias.to(at::kDouble) : y;
}

TEST(Linear4bitGolden, OutputsAndGradientsOfTheReferenceLayer) {
  const Golden golden("modules.safetensors");
  int outputs = 0, gradients = 0;
  for (const char* type : {"nf4", "fp4"}) {
    for (const int nested : {0, 1}) {
      for (const auto& [name, dtype] : kDtypes) {
        const std::string key = c10::str("l4.", type, ".", nested, ".", name, ".");
        auto entries = golden.with_prefix(key + "sd.weight.");
        const QuantState state = QuantState::from_tensors(entries).to(test::device());
        const at::Tensor packed = golden[key + "sd.weight"];
        const at::Tensor bias = golden[key + "sd.bias"];
        for (const int m : {1, 2, 5, 16, 64}) {
          const std::string y = key + "y" + std::to_string(m);
          if (!golden.contains(y)) continue;
          const at::Tensor x = golden[c10::str("x", m)].to(dtype);
          EXPECT_TRUE(is_near(matmul_4bit(x, packed, state, bias), golden[y], test::kMatmulGolden))
              << y;
          ++outputs;
        }
        at::Tensor x = golden["x16"].to(dtype).requires_grad_();
        matmul_4bit(x, packed, state, bias).sum().backward();
        EXPECT_TRUE(is_near(x.grad(), golden[key + "gx"], test::kRoundedWeights)) << key;
        ++gradients;
      }
    }
  }
  EXPECT_EQ(outputs, 60);
  EXPECT_EQ(gradients, 12);
}

TEST_F(Linear4bitTest, AgreesWithFloat64ForAnySize) {
  // Many outputs each: of few the roundings do not average out, and a sum that cancels shows.
  const std::vector<std::array<int64_t, 3>> sizes = {
      {1, 1024, 1},  {1, 1024, 256}, {2, 512, 96},  {3, 353, 65},   {5, 256, 640}, {7, 149, 1},
      {16, 128, 64}, {31, 65, 129},  {64, 96, 320}, {1, 512, 4097}, {4, 257, 63}};
  for (const auto& [m, n, k] : sizes) {
    for (const bool nested : {false, true}) {
      for (const QuantType type : {QuantType::kNF4, QuantType::kFP4}) {
        const Problem p = problem(n, k, nested, type);
        for (const auto& [name, dtype] : kDtypes) {
          const at::Tensor x = normal({m, k}, dtype);
          const at::Tensor bias = normal({n}, dtype);
          EXPECT_TRUE(is_near(matmul_4bit(x, p.packed, p.state, bias), linear_f64(x, p.truth, bias),
                              kMatmul))
              << name << " " << m << "x" << n << "x" << k << (nested ? " nested" : "");
        }
      }
    }
  }
}

TEST_F(Linear4bitTest, OneTokenMoreThanRoundsOfTiles) {  // two launches on an H100 or H200
  const Problem p = problem(4096, 2048, true);
  const at::Tensor x = normal({1025, 2048}, at::kBFloat16), bias = normal({4096}, at::kBFloat16);
  // CUDA: from some number of tokens on, weights are rounded before they are multiplied.
  EXPECT_TRUE(is_near(matmul_4bit(x, p.packed, p.state, bias), linear_f64(x, p.truth, bias),
                      test::on_cuda() ? test::kRoundedWeights : kMatmul));
}

TEST_F(Linear4bitTest, EveryBlocksize) {
  for (int64_t blocksize = 32; blocksize <= 4096; blocksize *= 2) {
    const Problem p = problem(24, 320, true, QuantType::kNF4, blocksize);
    const at::Tensor x = normal({6, 320});
    EXPECT_TRUE(is_near(matmul_4bit(x, p.packed, p.state), linear_f64(x, p.truth), kMatmul))
        << blocksize;
  }
}

TEST_F(Linear4bitTest, AnyRankAndLayout) {
  const Problem p = problem(40, 64);
  const std::vector<at::Tensor> inputs = {normal({64}),
                                          normal({1, 64}),
                                          normal({3, 5, 64}),
                                          normal({2, 3, 2, 64}),
                                          normal({2, 1, 3, 1, 64}),
                                          normal({64, 9}).t(),
                                          normal({9, 130}).slice(1, 3, 67),
                                          normal({9, 128}).slice(1, 0, 128, 2),
                                          normal({1, 64}).expand({4, 64}),
                                          normal({5, 3, 64}).transpose(0, 1),
                                          normal({20, 64}).slice(0, 0, 20, 3)};
  for (const at::Tensor& x : inputs) {
    const at::Tensor y = matmul_4bit(x, p.packed, p.state);
    EXPECT_TRUE(is_near(y, linear_f64(x, p.truth), kMatmul)) << x.sizes() << x.strides();
    const at::Tensor g = ops::linear_4bit_backward_input(y, p.weight);
    EXPECT_TRUE(is_near(g, at::matmul(y.to(at::kDouble), p.truth), kGradient)) << x.sizes();
  }
}

TEST_F(Linear4bitTest, EmptyProblems) {
  const Problem p = problem(40, 64);
  EXPECT_EQ(matmul_4bit(test::empty({0, 64}), p.packed, p.state).sizes(), at::IntArrayRef({0, 40}));
  EXPECT_EQ(matmul_4bit(test::empty({3, 0, 64}), p.packed, p.state).sizes(),
            at::IntArrayRef({3, 0, 40}));
  EXPECT_EQ(ops::linear_4bit_backward_input(test::empty({0, 40}), p.weight).sizes(),
            at::IntArrayRef({0, 64}));
  // No features at all: the sum is empty, the bias remains.
  const auto [packed, state] = quantize_4bit(test::empty({5, 0}));
  const at::Tensor bias = normal({5});
  EXPECT_TRUE(
      at::equal(matmul_4bit(test::empty({3, 0}), packed, state, bias), bias.expand({3, 5})));
  EXPECT_TRUE(at::equal(matmul_4bit(test::empty({3, 0}), packed, state), test::zeros({3, 5})));
}

TEST_F(Linear4bitTest, BiasOfAnotherDtypeIsAddedInFloat32) {
  const Problem p = problem(64, 128);
  for (const auto& [x_name, x_dtype] : kDtypes) {
    for (const auto& [b_name, b_dtype] : kDtypes) {
      const at::Tensor x = normal({4, 128}, x_dtype), bias = normal({64}, b_dtype);
      EXPECT_TRUE(
          is_near(matmul_4bit(x, p.packed, p.state, bias), linear_f64(x, p.truth, bias), kMatmul))
          << x_name << " " << b_name;
      EXPECT_EQ(bias.scalar_type(), b_dtype);
      const at::Tensor strided = normal({64, 2}, b_dtype).select(1, 0);
      EXPECT_TRUE(is_near(matmul_4bit(x, p.packed, p.state, strided),
                          linear_f64(x, p.truth, strided), kMatmul));
    }
  }
}

TEST_F(Linear4bitTest, GradientsOfInputAndBias) {
  for (const auto& [name, dtype] : kDtypes) {
    for (const std::vector<int64_t>& shape :
         std::vector<std::vector<int64_t>>{{96}, {5, 96}, {2, 3, 96}}) {
      const Problem p = problem(40, 96, true);
      const at::Tensor x = normal(shape, dtype).requires_grad_();
      const at::Tensor bias = normal({40}, dtype).requires_grad_();
      const at::Tensor y = matmul_4bit(x, p.packed, p.state, bias);
      ASSERT_TRUE(y.requires_grad());
      const at::Tensor grad = normal(y.sizes(), dtype);
      y.backward(grad);
      EXPECT_TRUE(is_near(x.grad(), at::matmul(grad.to(at::kDouble), p.truth), kGradient)) << name;
      EXPECT_TRUE(is_near(bias.grad(), grad.to(at::kDouble).view({-1, 40}).sum(0), kMatmul))
          << name;
    }
  }
}

TEST_F(Linear4bitTest, OnlyWhatRequiresGradGetsOne) {
  const Problem p = problem(16, 64);
  const at::Tensor x = normal({2, 64}), bias = normal({16}).requires_grad_();
  matmul_4bit(x, p.packed, p.state, bias).sum().backward();
  EXPECT_FALSE(x.grad().defined());
  EXPECT_TRUE(at::equal(bias.grad(), test::full({16}, 2.0)));
  {
    const at::NoGradGuard no_grad;
    EXPECT_FALSE(matmul_4bit(x.detach().requires_grad_(), p.packed, p.state, bias).requires_grad());
  }
  {
    const c10::InferenceMode inference;
    EXPECT_TRUE(is_near(matmul_4bit(normal({2, 64}), p.packed, p.state).new_zeros({1}),
                        test::zeros({1}), kMatmul));
  }
}

TEST_F(Linear4bitTest, SecondDerivatives) {
  const Problem p = problem(24, 32);
  const at::Tensor x = normal({3, 32}).requires_grad_();
  const at::Tensor y = matmul_4bit(x, p.packed, p.state);
  const at::Tensor g = torch::autograd::grad({y.pow(2).sum()}, {x}, {}, true, true)[0];
  const at::Tensor gg = torch::autograd::grad({g.sum()}, {x})[0];
  // d/dx of sum(2 x W^T W) = 2 * ones W^T W
  const at::Tensor truth =
      2 * at::matmul(at::matmul(test::ones({3, 32}, at::kDouble), p.truth.t()), p.truth);
  EXPECT_TRUE(is_near(gg, truth, kMatmul));
}

TEST_F(Linear4bitTest, UntransposedWeightOfTheDeprecatedLayout) {
  const Problem p = problem(96, 40);  // stored [K, N]
  const at::Tensor x = normal({5, 96}).requires_grad_(), bias = normal({40});
  const at::Tensor y = matmul_4bit(x, p.packed, p.state, bias);
  EXPECT_TRUE(is_near(y.detach(), at::matmul(x.detach().to(at::kDouble), p.truth) + bias, kMatmul));
  y.sum().backward();
  EXPECT_TRUE(
      is_near(x.grad(), at::matmul(test::ones({5, 40}, at::kDouble), p.truth.t()), kGradient));
}

TEST_F(Linear4bitTest, SecondLevelOfAnotherBlocksizeIsExpanded) {
  Problem p = problem(96, 80, true);
  const auto [codes, state2] =
      quantize_blockwise(dequantize_absmax(p.state) - p.state.offset, {.blocksize = 64});
  QuantState state = p.state;
  state.absmax = codes;
  state.state2 = std::make_shared<const QuantState>(state2);
  const at::Tensor x = normal({3, 80});
  EXPECT_TRUE(is_near(matmul_4bit(x, p.packed, state),
                      linear_f64(x, dequantize_4bit(p.packed, state).to(at::kDouble)), kMatmul));
}

TEST_F(Linear4bitTest, DirectCallsAndTheDispatcherGiveTheSameBits) {
  const Problem p = problem(64, 128, true);
  const at::Tensor x = normal({7, 128}, at::kBFloat16), bias = normal({64}, at::kBFloat16);
  EXPECT_TRUE(same_bytes(ops::linear_4bit(x, p.weight, bias),
                         ops::dispatch::linear_4bit(x, p.weight, bias)));
  const at::Tensor g = normal({7, 64}, at::kBFloat16);
  EXPECT_TRUE(same_bytes(ops::linear_4bit_backward_input(g, p.weight),
                         ops::dispatch::linear_4bit_backward_input(g, p.weight)));
  const at::Tensor ids = integers(0, 64, {3, 4}, at::kLong);
  EXPECT_TRUE(same_bytes(ops::embedding_4bit(ids, p.weight, at::kHalf),
                         ops::dispatch::embedding_4bit(ids, p.weight, at::kHalf)));
  EXPECT_TRUE(
      same_bytes(ops::dequantize_4bit(p.weight, at::kFloat), dequantize_4bit(p.packed, p.state)));
}

// Operators that run between construction and count(), nested ones included.
class DispatchCounter {
 public:
  DispatchCounter() : handle_(at::addThreadLocalCallback(at::RecordFunctionCallback(&counted))) {
    calls_ = 0;
  }
  ~DispatchCounter() { at::removeCallback(handle_); }
  static int count() { return calls_; }

 private:
  static std::unique_ptr<at::ObserverContext> counted(const at::RecordFunction&) {
    ++calls_;
    return nullptr;
  }
  static inline thread_local int calls_ = 0;
  at::CallbackHandle handle_;
};

TEST_F(Linear4bitTest, AStepWithoutGradientsNeverEntersTheDispatcher) {
  const Problem p = problem(64, 128, true);
  const at::Tensor x = normal({1, 1, 128}, at::kBFloat16), bias = normal({64}, at::kBFloat16);
  const at::Tensor leaf = x.clone().requires_grad_();
  const auto [q, stats, outliers] = int8_vectorwise_quant(normal({64, 128}));
  const auto eight = ops::Weight8bit::make(q, stats);
  const DispatchCounter counter;
  ops::linear_4bit(x, p.weight, bias);
  ops::linear_8bit_weight_only(x, eight, bias);
  ops::linear_8bit(x, eight, bias);
  EXPECT_EQ(counter.count(), 0);
  ops::linear_4bit(leaf, p.weight, bias);
  EXPECT_GT(counter.count(), 0);
}

TEST_F(Linear4bitTest, ThreadsDoNotChangeTheResult) {
  const Problem p = problem(512, 512, true);
  const at::Tensor x = normal({33, 512});
  const int threads = at::get_num_threads();
  const at::Tensor parallel = ops::linear_4bit(x, p.weight);
  const at::Tensor parallel_grad = ops::linear_4bit_backward_input(x, p.weight);
  at::set_num_threads(1);
  EXPECT_TRUE(same_bytes(ops::linear_4bit(x, p.weight), parallel));
  EXPECT_TRUE(same_bytes(ops::linear_4bit_backward_input(x, p.weight), parallel_grad));
  at::set_num_threads(threads);
}

TEST_F(Linear4bitTest, AGroupIsItsMembers) {
  for (const auto& [name, dtype] : kDtypes) {
    for (const int64_t m : {0, 1, 3, 20}) {
      const Problem a = problem(64, 128, true), b = problem(32, 128, true),
                    c = problem(7, 128, false, QuantType::kFP4, 256);
      const at::Tensor bias = normal({64}, dtype);
      for (const at::Tensor& x : {normal({m, 128}, dtype), normal({128, m}, dtype).t()}) {
        const auto group = ops::linear_4bit_group(x, {&a.weight, &b.weight, &c.weight},
                                                  {bias, at::Tensor(), at::Tensor()});
        ASSERT_EQ(group.size(), 3u);
        EXPECT_TRUE(same_bytes(group[0], ops::linear_4bit(x, a.weight, bias))) << name << m;
        EXPECT_TRUE(same_bytes(group[1], ops::linear_4bit(x, b.weight))) << name << m;
        EXPECT_TRUE(same_bytes(group[2], ops::linear_4bit(x, c.weight))) << name << m;
      }
    }
  }
  const Problem a = problem(16, 64), b = problem(8, 64);
  const at::Tensor x = normal({2, 64}).requires_grad_();
  const auto group =
      ops::linear_4bit_group(x, {&a.weight, &b.weight}, {at::Tensor(), at::Tensor()});
  (group[0].sum() + group[1].sum()).backward();
  EXPECT_TRUE(is_near(x.grad()[0], a.truth.sum(0) + b.truth.sum(0), kGradient));
}

TEST_F(Linear4bitTest, GemmAndGemvOpsOfTheEcosystem) {
  const auto gemm =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("lowbit::gemm_4bit", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, at::IntArrayRef,
                            const at::Tensor&, int64_t, std::string_view,
                            const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
                            const std::optional<at::Tensor>&, const std::optional<at::Tensor>&)>();
  const auto gemv = c10::Dispatcher::singleton()
                        .findSchemaOrThrow("lowbit::gemv_4bit", "")
                        .typed<at::Tensor(const at::Tensor&, const at::Tensor&, at::IntArrayRef,
                                          const at::Tensor&, const at::Tensor&, int64_t)>();
  const auto gemv_out =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("lowbit::gemv_4bit", "out")
          .typed<void(const at::Tensor&, const at::Tensor&, at::IntArrayRef, const at::Tensor&,
                      const at::Tensor&, int64_t, const at::Tensor&)>();
  const Problem nested = problem(48, 64, true), plain = problem(48, 64);
  const at::Tensor x = normal({1, 1, 64}), bias = normal({48});
  EXPECT_TRUE(
      is_near(gemm.call(x, nested.packed, {48, 64}, nested.state.state2->absmax, 64, "nf4", bias,
                        nested.state.absmax, nested.state.state2->code, nested.state.offset),
              linear_f64(x, nested.truth, bias), kMatmul));
  EXPECT_TRUE(
      is_near(gemv.call(x, plain.packed, {48, 64}, plain.state.absmax, plain.state.code, 64),
              linear_f64(x, plain.truth), kMatmul));
  // Any 16 values are a code.
  const at::Tensor code = normal({16});
  const at::Tensor codes = at::stack(
      {plain.packed.view(-1).bitwise_right_shift(4), plain.packed.view(-1).bitwise_and(15)}, 1);
  const at::Tensor w =
      (code.index({codes.view(-1).to(at::kLong)}).view({-1, 64}) * plain.state.absmax.unsqueeze(1))
          .view({48, 64})
          .to(at::kDouble);
  EXPECT_TRUE(is_near(gemv.call(x, plain.packed, {48, 64}, plain.state.absmax, code, 64),
                      linear_f64(x, w), kMatmul));
  at::Tensor out = test::full({1, 1, 48}, NAN);
  gemv_out.call(x, plain.packed, {48, 64}, plain.state.absmax, code, 64, out);
  EXPECT_TRUE(same_bytes(out, gemv.call(x, plain.packed, {48, 64}, plain.state.absmax, code, 64)));
}

TEST_F(Linear4bitTest, EmbeddingGathersDequantizedRows) {
  for (const int64_t dim : {64, 96, 7}) {  // rows that start inside a block, and inside a byte
    for (const bool nested : {false, true}) {
      const Problem p = problem(50, dim, nested);
      for (const auto& [name, dtype] : kDtypes) {
        const at::Tensor table = ops::dequantize_4bit(p.weight, dtype);
        for (const at::Tensor& ids :
             {integers(0, 50, {3, 4}, at::kLong), integers(0, 50, {11}, at::kInt),
              integers(0, 50, {4, 3}, at::kLong).t(), test::empty({0}, at::kLong),
              test::full({}, 49, at::kLong)}) {
          const at::Tensor rows = ops::embedding_4bit(ids, p.weight, dtype);
          EXPECT_TRUE(same_bytes(rows, at::embedding(table, ids.to(at::kLong))))
              << name << " " << dim;
        }
      }
    }
  }
}

}  // namespace
}  // namespace lowbit
