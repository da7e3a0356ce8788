// What holds for every op on a CUDA device: it agrees with the CPU, runs on the current stream, never
// waits for the device, can be captured in a graph and replayed on other data, reads any layout, and
// writes nothing but its outputs.
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGraph.h>
#include <ATen/cuda/Sleep.h>
#include <c10/cuda/CUDAGuard.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>

#include "lowbit/functional.h"
#include "ops/dispatch.h"
#include "ops/linear.h"
#include "support/error.h"
#include "support/golden.h"
#include "support/random.h"
#include "support/tolerance.h"

namespace lowbit::test {
namespace {

namespace dispatch = ops::dispatch;
using Tensors = std::vector<at::Tensor>;

/// How results on two devices compare.
enum class Agreement {
  kBits,   ///< every bit
  kCodes,  ///< the devices' reciprocals differ in the last bit, so some ties move by one code
  kSums,   ///< sums in another order, weights rounded to the dtype before the product
};

struct Case {
  std::string name;
  Tensors inputs;                         ///< on the CPU; [0] is what changes between calls
  std::function<at::Tensor()> another;    ///< a fresh inputs[0]
  std::function<Tensors(const Tensors&)> run;
  Agreement agreement = Agreement::kSums;
};

Tensors on(at::Device device, const Tensors& tensors) {
  Tensors moved;
  for (const at::Tensor& tensor : tensors) moved.push_back(tensor.to(device));
  return moved;
}

/// An op of the dispatcher by its name; arguments and results as IValues.
template <class... Args>
Tensors call(const char* name, Args... args) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  torch::jit::Stack stack{c10::IValue(std::move(args))...};
  while (stack.size() < op.schema().arguments().size()) stack.emplace_back();
  op.callBoxed(&stack);
  Tensors results;
  for (const c10::IValue& value : stack) {
    if (value.isTensor()) results.push_back(value.toTensor());
  }
  return results;
}

class CudaOps : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "needs a CUDA GPU";
  }

  at::Tensor normal(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) {
    return at::randn(sizes, generator_).to(dtype);
  }
  at::Tensor integers(int64_t low, int64_t high, at::IntArrayRef sizes, at::ScalarType dtype) {
    return at::randint(low, high, sizes, generator_).to(dtype);
  }

  /// Every op. Shapes with whole and with broken vectors.
  std::vector<Case> cases() {
    std::vector<Case> all;
    const auto dtypes = {at::kFloat, at::kBFloat16, at::kHalf};
    for (const auto dtype : dtypes) {
      for (const int64_t width : {256, 331}) {
        const std::string suffix = c10::str(" ", ops::dtype_name(dtype), " ", width);
        const auto x = [this, dtype, width] { return normal({37, width}, dtype); };
        for (const char* type : {"nf4", "fp4"}) {
          all.push_back({c10::str("quantize_4bit ", type, suffix), {x()}, x,
                         [type](const Tensors& t) {
                           return call("lowbit::quantize_4bit", t[0], int64_t{64}, type,
                                       static_cast<int64_t>(at::kByte));
                         },
                         Agreement::kCodes});
        }
        all.push_back({"quantize_blockwise" + suffix, {x(), create_dynamic_map()}, x,
                       [](const Tensors& t) {
                         return call("lowbit::quantize_blockwise", t[0], t[1], int64_t{256});
                       },
                       Agreement::kCodes});
        const auto spread = [this, dtype, width] { return normal({37, width}, dtype) * 2.5; };
        for (const double threshold : {0.0, 6.0}) {
          all.push_back({c10::str("int8_rowwise_quant ", threshold, suffix), {spread()}, spread,
                         [threshold](const Tensors& t) {
                           return call("lowbit::int8_rowwise_quant", t[0], threshold);
                         },
                         Agreement::kCodes});
          all.push_back({c10::str("int8_colwise_quant ", threshold, suffix), {spread()}, spread,
                         [threshold](const Tensors& t) {
                           return call("lowbit::int8_colwise_quant", t[0], threshold);
                         },
                         Agreement::kBits});
        }
        add_products(all, dtype, width, suffix);
      }
    }
    add_integers(all);
    return all;
  }

 private:
  void add_products(std::vector<Case>& all, at::ScalarType dtype, int64_t width,
                    const std::string& suffix) {
    constexpr int64_t kRows = 72;
    for (const bool nested : {false, true}) {
      const auto [packed, state] =
          quantize_4bit(normal({kRows, width}),
                        {.compress_statistics = nested, .quant_type = QuantType::kNF4});
      const auto weight = [nested = nested](const Tensors& t) {
        return ops::Weight4bit{t[1], kRows, t[0].size(-1), t[2], 64, QuantType::kNF4,
                               nested ? t[3] : at::Tensor(), nested ? t[4] : at::Tensor(),
                               nested ? t[5] : at::Tensor()};
      };
      Tensors parts{packed, nested ? state.state2->absmax : state.absmax};
      if (nested) {
        for (const at::Tensor& part : {state.absmax, state.state2->code, state.offset}) {
          parts.push_back(part);
        }
      }
      const auto with = [&parts](const at::Tensor& first, const at::Tensor& last = {}) {
        Tensors inputs{first};
        inputs.insert(inputs.end(), parts.begin(), parts.end());
        if (last.defined()) inputs.push_back(last);
        return inputs;
      };
      const std::string kind = (nested ? " nested" : "") + suffix;
      for (const int64_t m : {1, 5, 40}) {
        const auto x = [this, m, width, dtype] { return normal({m, width}, dtype); };
        all.push_back({c10::str("linear_4bit ", m, kind), with(x(), normal({kRows}, dtype)), x,
                       [weight](const Tensors& t) {
                         return Tensors{dispatch::linear_4bit(t[0], weight(t), t.back())};
                       }});
        const auto g = [this, m, dtype] { return normal({m, kRows}, dtype); };
        all.push_back({c10::str("linear_4bit_backward_input ", m, kind), with(g()), g,
                       [weight, width](const Tensors& t) {
                         ops::Weight4bit w = weight(t);
                         w.cols = width;
                         return Tensors{dispatch::linear_4bit_backward_input(t[0], w)};
                       }});
      }
      const auto ids = [this] { return integers(0, kRows, {19}, at::kLong); };
      all.push_back({"embedding_4bit" + kind, with(ids()), ids,
                     [weight, width, dtype](const Tensors& t) {
                       ops::Weight4bit w = weight(t);
                       w.cols = width;
                       return Tensors{dispatch::embedding_4bit(t[0], w, dtype)};
                     },
                     Agreement::kBits});
      if (nested) continue;
      const auto codes = [this, packed = packed] {
        return integers(0, 256, packed.sizes(), at::kByte);
      };
      all.push_back({"dequantize_4bit" + suffix, {packed, state.absmax}, codes,
                     [width, dtype](const Tensors& t) {
                       return Tensors{dispatch::dequantize_4bit(t[0], t[1], 64, QuantType::kNF4,
                                                                {kRows, width}, dtype)};
                     },
                     Agreement::kBits});
      const auto x = [this, width, dtype] { return normal({3, width}, dtype); };
      all.push_back({"gemv_4bit, any code" + suffix, {x(), packed, state.absmax, normal({16})}, x,
                     [width](const Tensors& t) {
                       return call("lowbit::gemv_4bit", t[0], t[1],
                                   std::vector<int64_t>{kRows, width}, t[2], t[3], int64_t{64});
                     }});
      all.push_back({"gemm_4bit" + suffix, {x(), packed, state.absmax, normal({kRows})}, x,
                     [width](const Tensors& t) {
                       return call("lowbit::gemm_4bit", t[0], t[1],
                                   std::vector<int64_t>{kRows, width}, t[2], int64_t{64}, "nf4",
                                   t[3]);
                     }});
    }
    const auto [codes, eight] = quantize_blockwise(normal({37, width}), {.blocksize = 256});
    const auto bytes = [this, width] { return integers(0, 256, {37, width}, at::kByte); };
    all.push_back({"dequantize_blockwise" + suffix, {codes, eight.absmax, eight.code}, bytes,
                   [dtype](const Tensors& t) {
                     return Tensors{
                         dispatch::dequantize_blockwise(t[0], t[1], t[2], 256, dtype)};
                   },
                   Agreement::kBits});

    const auto [CB, SCB, none] = int8_vectorwise_quant(normal({kRows, width}));
    for (const int64_t m : {1, 5, 40}) {
      for (const double threshold : {0.0, 6.0}) {
        const auto x = [this, m, width, dtype] { return normal({m, width}, dtype) * 2.5; };
        all.push_back({c10::str("linear_8bit ", threshold, " ", m, suffix),
                       {x(), CB, SCB, normal({kRows})}, x,
                       [threshold](const Tensors& t) {
                         return Tensors{
                             dispatch::linear_8bit(t[0], {t[1], t[2]}, t[3], threshold)};
                       }});
      }
      const auto x = [this, m, width, dtype] { return normal({m, width}, dtype); };
      all.push_back({c10::str("linear_8bit_weight_only ", m, suffix),
                     {x(), CB, SCB, normal({kRows}, dtype)}, x,
                     [](const Tensors& t) {
                       return Tensors{
                           dispatch::linear_8bit_weight_only(t[0], {t[1], t[2]}, t[3])};
                     }});
      const auto g = [this, m, dtype] { return normal({m, kRows}, dtype); };
      all.push_back({c10::str("linear_8bit_backward_input ", m, suffix), {g(), CB, SCB}, g,
                     [](const Tensors& t) {
                       return Tensors{dispatch::linear_8bit_backward_input(t[0], {t[1], t[2]})};
                     }});
    }
    const auto ids = [this] { return integers(0, kRows, {19}, at::kLong); };
    all.push_back({"embedding_8bit" + suffix, {ids(), CB, SCB}, ids,
                   [dtype](const Tensors& t) {
                     return Tensors{dispatch::embedding_8bit(t[0], {t[1], t[2]}, dtype)};
                   },
                   Agreement::kBits});
    const auto sums = [this] { return integers(-2000000, 2000000, {37, kRows}, at::kInt); };
    all.push_back({"int8_mm_dequant" + suffix,
                   {sums(), normal({37}).abs(), normal({kRows}).abs(), normal({kRows}, dtype)},
                   sums,
                   [dtype](const Tensors& t) {
                     return Tensors{dispatch::int8_mm_dequant(t[0], t[1], t[2], dtype, t[3])};
                   },
                   Agreement::kBits});
  }

  void add_integers(std::vector<Case>& all) {
    for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{
             {1, 72, 256}, {3, 7, 65}, {16, 33, 100}, {17, 64, 128}, {40, 72, 256}, {33, 50, 331},
             {100, 50, 331}, {129, 136, 1000}, {2, 5, 1}}) {
      const auto a = [this, m = m, k = k] { return integers(-127, 128, {m, k}, at::kChar); };
      const at::Tensor b = integers(-127, 128, {n, k}, at::kChar);
      const std::string suffix = c10::str(" ", m, "x", n, "x", k);
      all.push_back({"int8_linear_matmul" + suffix, {a(), b}, a,
                     [](const Tensors& t) {
                       return Tensors{dispatch::int8_linear_matmul(t[0], t[1])};
                     },
                     Agreement::kBits});
      all.push_back({"int8_scaled_mm" + suffix,
                     {a(), b, normal({m}).abs(), normal({n}).abs(), normal({n})}, a,
                     [](const Tensors& t) {
                       return Tensors{dispatch::int8_scaled_mm(t[0], t[1], t[2], t[3], t[4],
                                                               at::kBFloat16)};
                     },
                     Agreement::kBits});
      const auto q = [this, n = n, k = k] { return integers(-127, 128, {n, k}, at::kChar); };
      all.push_back({"int8_vectorwise_dequant" + suffix, {q(), normal({n}).abs()}, q,
                     [](const Tensors& t) {
                       return Tensors{dispatch::int8_vectorwise_dequant(t[0], t[1])};
                     },
                     Agreement::kBits});
    }
    const auto x = [this] { return normal({21, 64}, at::kHalf); };
    const auto [CB, SCB, none] = int8_vectorwise_quant(normal({40, 64}));
    const auto [CA, SCA, also_none] = int8_vectorwise_quant(x());
    all.push_back({"int8_mixed_scaled_mm",
                   {x(), CA, CB, SCA, SCB, integers(0, 64, {3}, at::kLong)}, x,
                   [](const Tensors& t) {
                     return call("lowbit::int8_mixed_scaled_mm", t[0], t[1], t[2], t[3], t[4],
                                 t[5]);
                   }});
  }

  at::Generator generator_ = at::detail::createCPUGenerator(seed());
};

/// Where two tensors first differ.
std::string first_difference(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.cpu().flatten(), y = b.cpu().flatten();
  const at::Tensor where = x.ne(y).nonzero();
  if (where.numel() == 0) return "only in the sign of zeros, or in NaN";
  const int64_t i = where[0].item<int64_t>();
  return c10::str(where.size(0), " of ", x.numel(), " differ, first at ", i, ": ",
                  x[i].item<double>(), ", expected ", y[i].item<double>());
}

void expect_same(const Tensors& got, const Tensors& expected, const std::string& name) {
  ASSERT_EQ(got.size(), expected.size()) << name;
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_TRUE(same_bytes(got[i], expected[i]))
        << name << ", result " << i << ": " << first_difference(got[i], expected[i]);
  }
}

void expect_close(const Tensors& got, const Tensors& expected, Agreement agreement,
                  const std::string& name) {
  if (agreement == Agreement::kBits) return expect_same(got, expected, name);
  ASSERT_EQ(got.size(), expected.size()) << name;
  for (size_t i = 0; i < got.size(); ++i) {
    const at::Tensor x = got[i].cpu(), &y = expected[i];
    ASSERT_EQ(x.sizes(), y.sizes()) << name;
    ASSERT_EQ(x.scalar_type(), y.scalar_type()) << name;
    if (y.numel() == 0) continue;
    if (agreement == Agreement::kCodes && !y.is_floating_point()) {
      EXPECT_LE(x.ne(y).sum().item<int64_t>(), 2 + y.numel() / 2000)
          << name << ", result " << i << ": " << first_difference(x, y);
    } else if (agreement == Agreement::kCodes) {
      EXPECT_TRUE(same_bytes(x, y)) << name << ", result " << i << ": " << first_difference(x, y);
    } else {
      EXPECT_TRUE(is_near(x, y, kTwoDevices)) << name << ", result " << i;
    }
  }
}

TEST_F(CudaOps, AgreeWithTheCpu) {
  const std::vector<Case> all = cases();
  for (const Case& c : all) {
    expect_close(c.run(on(at::kCUDA, c.inputs)), c.run(c.inputs), c.agreement, c.name);
  }
  EXPECT_GE(all.size(), 300u);
}

TEST_F(CudaOps, RunOnTheCurrentStreamAfterWhatIsQueuedThere) {
  for (const Case& c : cases()) {
    const Tensors inputs = on(at::kCUDA, c.inputs);
    const at::Tensor data = c.another().to(at::kCUDA), good = inputs[0].clone();
    Tensors changed = inputs;
    changed[0] = data;
    const Tensors expected = c.run(changed);
    at::cuda::device_synchronize();
    const auto stream = c10::cuda::getStreamFromPool();
    Tensors results;
    {
      const c10::cuda::CUDAStreamGuard guard(stream);
      at::cuda::sleep(2000000);  // about a millisecond: an op on another stream would overtake it
      inputs[0].copy_(data);
      results = c.run(inputs);
    }
    stream.synchronize();
    expect_same(results, expected, c.name);
  }
}

// A capture fails at anything that waits for the device, and at memory that is not the graph's.
TEST_F(CudaOps, AreCapturedInGraphsAndReplayedOnOtherData) {
  for (const Case& c : cases()) {
    const Tensors inputs = on(at::kCUDA, c.inputs);
    const auto stream = c10::cuda::getStreamFromPool();
    at::cuda::CUDAGraph graph;
    Tensors results;
    {
      const c10::cuda::CUDAStreamGuard guard(stream);
      c.run(inputs);  // libraries make their handles and workspaces at the first call
      stream.synchronize();
      graph.capture_begin();
      std::string error;
      try {
        results = c.run(inputs);
      } catch (const std::exception& e) {
        error = e.what();
      }
      graph.capture_end();
      ASSERT_EQ(error.substr(0, error.find('\n')), "") << c.name;
    }
    for (int round = 0; round < 3; ++round) {
      inputs[0].copy_(c.another());
      const Tensors expected = c.run(inputs);
      at::cuda::device_synchronize();
      graph.replay();
      at::cuda::device_synchronize();
      expect_same(results, expected, c10::str(c.name, ", replay ", round));
    }
  }
}

TEST_F(CudaOps, NeverWaitForTheDevice) {
  for (const Case& c : cases()) {
    const Tensors inputs = on(at::kCUDA, c.inputs);
    c.run(inputs);
    auto& state = c10::cuda::warning_state();
    state.set_sync_debug_mode(c10::cuda::SyncDebugMode::L_ERROR);
    const std::string message = message_of([&] { c.run(inputs); });
    state.set_sync_debug_mode(c10::cuda::SyncDebugMode::L_DISABLED);
    EXPECT_EQ(message, "(nothing was thrown)") << c.name;
  }
}

TEST_F(CudaOps, ReadStridedAndUnalignedInputsInPlace) {
  for (const Case& c : cases()) {
    const Tensors inputs = on(at::kCUDA, c.inputs);
    const Tensors expected = c.run(inputs);
    Tensors odd;
    for (const at::Tensor& input : inputs) {
      // One element off: no vector access fits.
      at::Tensor memory = at::empty({input.numel() + 1}, input.options());
      odd.push_back(memory.narrow(0, 1, input.numel()).view(input.sizes()));
      odd.back().copy_(input);
    }
    expect_close(c.run(odd), on(at::kCPU, expected),
                 c.agreement == Agreement::kSums ? Agreement::kSums : Agreement::kBits,
                 c.name + ", unaligned");
    if (inputs[0].dim() != 2) continue;
    Tensors strided = inputs;
    const int64_t rows = inputs[0].size(0), cols = inputs[0].size(1);
    at::Tensor wide = at::empty({rows, cols + 3}, inputs[0].options());
    strided[0] = wide.narrow(1, 2, cols);
    strided[0].copy_(inputs[0]);
    expect_close(c.run(strided), on(at::kCPU, expected),
                 c.agreement == Agreement::kSums ? Agreement::kSums : Agreement::kBits,
                 c.name + ", rows of a wider matrix");
    strided[0] = inputs[0].t().contiguous().t();
    expect_close(c.run(strided), on(at::kCPU, expected),
                 c.agreement == Agreement::kSums ? Agreement::kSums : Agreement::kBits,
                 c.name + ", transposed");
  }
}

TEST_F(CudaOps, RunOnTheDeviceOfTheirTensors) {
  if (at::cuda::device_count() < 2) GTEST_SKIP() << "needs two CUDA GPUs";
  const at::Device second(at::kCUDA, 1);
  for (const Case& c : cases()) {
    expect_same(c.run(on(second, c.inputs)), on(at::kCPU, c.run(on(at::Device(at::kCUDA, 0),
                                                                   c.inputs))),
                c.name);
    EXPECT_EQ(c10::cuda::current_device(), 0) << c.name;
  }
}

TEST_F(CudaOps, OutVariantsWriteIntoTheirTensorAndNothingElse) {
  const at::Tensor w = normal({48, 96}).to(at::kCUDA);
  const auto [packed, state] = quantize_4bit(w, {.quant_type = QuantType::kNF4});
  const auto [codes, eight] = quantize_blockwise(w, {.blocksize = 32});
  const at::Tensor a = integers(-127, 128, {48, 64}, at::kChar).to(at::kCUDA),
                   b = integers(-127, 128, {96, 64}, at::kChar).to(at::kCUDA);
  const auto run = [](const char* name, torch::jit::Stack stack) {
    c10::Dispatcher::singleton().findSchemaOrThrow(name, "out").callBoxed(&stack);
  };
  const std::vector<std::pair<at::Tensor, std::function<void(const at::Tensor&)>>> writers = {
      {dequantize_4bit(packed, state),
       [&, &packed = packed, &state = state](const at::Tensor& out) {
         run("lowbit::dequantize_4bit",
             {packed, state.absmax, int64_t{64}, "nf4", std::vector<int64_t>{48, 96},
              static_cast<int64_t>(at::kFloat), out});
       }},
      {dequantize_blockwise(codes, eight),
       [&, &codes = codes, &eight = eight](const at::Tensor& out) {
         run("lowbit::dequantize_blockwise", {codes, eight.absmax, eight.code, int64_t{32},
                                              static_cast<int64_t>(at::kFloat), out});
       }},
      {int8_linear_matmul(a, b),
       [&](const at::Tensor& out) { run("lowbit::int8_linear_matmul", {a, b, out}); }}};
  for (const auto& [expected, write] : writers) {
    for (const int64_t offset : {1, 4}) {
      at::Tensor memory = at::full({48 * 96 + 8}, 77, expected.options());
      const at::Tensor out = memory.narrow(0, offset, 48 * 96).view({48, 96});
      write(out);
      EXPECT_TRUE(same_bytes(out, expected)) << first_difference(out, expected);
      EXPECT_EQ(memory.narrow(0, 0, offset).ne(77).sum().item<int64_t>(), 0);
      EXPECT_EQ(memory.narrow(0, offset + 48 * 96, 8 - offset).ne(77).sum().item<int64_t>(), 0);
    }
    at::Tensor strided = at::full({96, 48}, 77, expected.options()).t();
    write(strided);
    EXPECT_TRUE(same_bytes(strided, expected)) << first_difference(strided, expected);
  }
}

// The list of outliers is made on the device: a captured layer meets none, a few, all of them.
TEST_F(CudaOps, ACapturedInt8LayerFollowsItsOutliers) {
  for (const int64_t m : {1, 4, 33}) {
    const auto [CB, SCB, none] = int8_vectorwise_quant(normal({72, 256}).to(at::kCUDA));
    const ops::Weight8bit weight = ops::Weight8bit::make(CB, SCB);
    const at::Tensor bias = normal({72}, at::kHalf).to(at::kCUDA);
    at::Tensor x = normal({m, 256}, at::kHalf).to(at::kCUDA);
    const auto stream = c10::cuda::getStreamFromPool();
    at::cuda::CUDAGraph graph;
    at::Tensor y;
    {
      const c10::cuda::CUDAStreamGuard guard(stream);
      ops::linear_8bit(x, weight, bias, 6.0);
      stream.synchronize();
      graph.capture_begin();
      y = ops::linear_8bit(x, weight, bias, 6.0);
      graph.capture_end();
    }
    const at::Tensor truth = CB.to(at::kDouble) * SCB.to(at::kDouble).unsqueeze(1) / 127.0;
    for (const int64_t outliers : {0, 1, 7, 100, 256, 0}) {
      at::Tensor fresh = normal({m, 256}, at::kHalf) * 0.1;
      const at::Tensor columns = at::randperm(256).narrow(0, 0, outliers);
      if (outliers > 0) fresh.index_fill_(1, columns, 20.0);
      x.copy_(fresh);
      at::cuda::device_synchronize();
      graph.replay();
      at::cuda::device_synchronize();
      const at::Tensor exact =
          at::matmul(x.to(at::kDouble), truth.t()) + bias.to(at::kDouble);
      EXPECT_LE(relative_error(y, exact), 0.02) << m << " rows, " << outliers << " outliers";
      EXPECT_TRUE(same_bytes(y, ops::linear_8bit(x, weight, bias, 6.0)))
          << m << " rows, " << outliers << " outliers";
    }
  }
}

TEST_F(CudaOps, AnIdOutsideTheTableGivesNan) {
  const auto [packed, state] = quantize_4bit(normal({10, 24}).to(at::kCUDA));
  const auto four = ops::Weight4bit::make(packed, state);
  const auto [CB, SCB, none] = int8_vectorwise_quant(normal({10, 24}).to(at::kCUDA));
  const auto eight = ops::Weight8bit::make(CB, SCB);
  const at::Tensor ids = at::tensor({3, 10, -1, 9}).to(at::kCUDA);
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const at::Tensor& rows :
         {ops::embedding_4bit(ids, four, dtype), ops::embedding_8bit(ids, eight, dtype)}) {
      const at::Tensor nan = rows.isnan().sum(1).cpu();
      EXPECT_TRUE(at::equal(nan, at::tensor({0, 24, 24, 0}))) << nan;
    }
  }
}

TEST_F(CudaOps, StatisticsOfStatisticsStayOnTheDevice) {
  const at::Tensor w = normal({300, 257}, at::kBFloat16);
  const Quantize4bitOptions options{.compress_statistics = true, .quant_type = QuantType::kNF4};
  const at::Tensor input = w.to(at::kCUDA);
  quantize_4bit(input, options);  // the tables go to the device once
  auto& debug = c10::cuda::warning_state();
  debug.set_sync_debug_mode(c10::cuda::SyncDebugMode::L_ERROR);
  const auto [packed, state] = quantize_4bit(input, options);
  debug.set_sync_debug_mode(c10::cuda::SyncDebugMode::L_DISABLED);
  EXPECT_TRUE(state.offset.is_cuda() && state.absmax.is_cuda() && state.state2->code.is_cuda());
  const auto [cpu_packed, cpu_state] = quantize_4bit(w, options);
  EXPECT_LE(packed.cpu().ne(cpu_packed).sum().item<int64_t>(), 2 + cpu_packed.numel() / 2000);
  EXPECT_LE((state.offset.cpu() - cpu_state.offset).abs().item<double>(), 1e-7);
  EXPECT_TRUE(is_near(dequantize_absmax(state).cpu(), dequantize_absmax(cpu_state), kTwoDevices));
}

TEST_F(CudaOps, OtherDevicesAreRefusedByName) {
  const auto [packed, state] = quantize_4bit(normal({32, 64}));
  const auto on_cpu = ops::Weight4bit::make(packed, state);
  const at::Tensor x = normal({2, 64}).to(at::kCUDA);
  EXPECT_EQ(message_of([&] { ops::linear_4bit(x, on_cpu); }),
            "lowbit::linear_4bit: `input` must be on cpu, got cuda:0.");
  QuantState mixed = state;
  mixed.absmax = state.absmax.to(at::kCUDA);
  EXPECT_EQ(message_of([&, &packed = packed] { ops::Weight4bit::make(packed, mixed); }),
            "lowbit::linear_4bit: `absmax` must be on cpu, got cuda:0.");
  const auto [CB, SCB, none] = int8_vectorwise_quant(normal({32, 64}).to(at::kCUDA));
  const auto eight = ops::Weight8bit::make(CB, SCB);
  EXPECT_EQ(message_of([&] { ops::linear_8bit(normal({2, 64}), eight); }),
            "lowbit::linear_8bit: `input` must be on cuda:0, got cpu.");
  EXPECT_EQ(message_of([&] { ops::linear_8bit(x, eight, normal({32})); }),
            "lowbit::linear_8bit: `bias` must be on cuda:0, got cpu.");
  EXPECT_EQ(message_of([&] { ops::embedding_8bit(at::tensor({1}), eight, at::kFloat); }),
            "lowbit::embedding_8bit: `ids` must be on cuda:0, got cpu.");
  EXPECT_EQ(message_of([&] { int8_linear_matmul(CB.cpu(), CB); }),
            "lowbit::int8_linear_matmul: `B` must be on cpu, got cuda:0.");
  EXPECT_EQ(message_of([&] { dispatch::quantize_blockwise(x, create_dynamic_map(), 64); }),
            "lowbit::quantize_blockwise: `code` must be on cuda:0, got cpu.");
}

}  // namespace
}  // namespace lowbit::test
