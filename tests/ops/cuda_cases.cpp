#include "cuda_cases.h"

#include <array>

#include "ops/check.h"
#include "ops/grouped_mm.h"
#include "ops/linear.h"
#include "support/tolerance.h"

namespace lowbit::test {
namespace {

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
}  // namespace

std::vector<Case> CudaOps::cases() {
  std::vector<Case> all;
  const auto dtypes = {at::kFloat, at::kBFloat16, at::kHalf};
  for (const auto dtype : dtypes) {
    for (const int64_t width : {256, 331}) {
      const std::string suffix = c10::str(" ", ops::dtype_name(dtype), " ", width);
      const auto x = [this, dtype, width] { return normal({37, width}, dtype); };
      for (const char* type : {"nf4", "fp4"}) {
        all.push_back({c10::str("quantize_4bit ", type, suffix),
                       {x()},
                       x,
                       [type](const Tensors& t) {
                         return call("lowbit::quantize_4bit", t[0], int64_t{64}, type,
                                     static_cast<int64_t>(at::kByte));
                       },
                       Agreement::kCodes});
      }
      all.push_back({"quantize_blockwise" + suffix,
                     {x(), create_dynamic_map()},
                     x,
                     [](const Tensors& t) {
                       return call("lowbit::quantize_blockwise", t[0], t[1], int64_t{256});
                     },
                     Agreement::kCodes});
      const auto spread = [this, dtype, width] { return normal({37, width}, dtype) * 2.5; };
      for (const double threshold : {0.0, 6.0}) {
        all.push_back({c10::str("int8_rowwise_quant ", threshold, suffix),
                       {spread()},
                       spread,
                       [threshold](const Tensors& t) {
                         return call("lowbit::int8_rowwise_quant", t[0], threshold);
                       },
                       Agreement::kCodes});
        all.push_back({c10::str("int8_colwise_quant ", threshold, suffix),
                       {spread()},
                       spread,
                       [threshold](const Tensors& t) {
                         return call("lowbit::int8_colwise_quant", t[0], threshold);
                       },
                       Agreement::kBits});
      }
      add_products(all, dtype, width, suffix);
    }
    add_optimizers(all, dtype);
  }
  add_integers(all);
  return all;
}

void CudaOps::add_products(std::vector<Case>& all, at::ScalarType dtype, int64_t width,
                           const std::string& suffix) {
  constexpr int64_t kRows = 72;
  for (const bool nested : {false, true}) {
    const auto [packed, state] = quantize_4bit(
        normal({kRows, width}), {.compress_statistics = nested, .quant_type = QuantType::kNF4});
    const auto weight = [nested = nested](const Tensors& t) {
      return ops::Weight4bit{t[1],
                             kRows,
                             t[0].size(-1),
                             t[2],
                             64,
                             QuantType::kNF4,
                             nested ? t[3] : at::Tensor(),
                             nested ? t[4] : at::Tensor(),
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
    for (const int64_t m : {5, 40, 300}) {  // 300: enough for the library's product of groups
      const auto ends = at::tensor({m / 3, m / 3, m - 1}, at::kInt);
      const auto x = [this, m, width, dtype] { return normal({m, width}, dtype); };
      all.push_back(
          {c10::str("grouped_mm_4bit ", m, kind), with(x(), ends), x, [weight](const Tensors& t) {
             return Tensors{dispatch::grouped_mm_4bit(t[0], {weight(t), 3}, t.back())};
           }});
      const auto g = [this, m, dtype] { return normal({m, kRows / 3}, dtype); };
      all.push_back({c10::str("grouped_mm_4bit_backward_input ", m, kind), with(g(), ends), g,
                     [weight, width](const Tensors& t) {
                       ops::Stack4bit stack{weight(t), 3};
                       stack.weight.cols = width;
                       return Tensors{
                           dispatch::grouped_mm_4bit_backward_input(t[0], stack, t.back())};
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
    all.push_back({"dequantize_4bit" + suffix,
                   {packed, state.absmax},
                   codes,
                   [width, dtype](const Tensors& t) {
                     return Tensors{dispatch::dequantize_4bit(t[0], t[1], 64, QuantType::kNF4,
                                                              {kRows, width}, dtype)};
                   },
                   Agreement::kBits});
    const auto x = [this, width, dtype] { return normal({3, width}, dtype); };
    all.push_back({"gemv_4bit, any code" + suffix,
                   {x(), packed, state.absmax, normal({16})},
                   x,
                   [width](const Tensors& t) {
                     return call("lowbit::gemv_4bit", t[0], t[1],
                                 std::vector<int64_t>{kRows, width}, t[2], t[3], int64_t{64});
                   }});
    all.push_back({"gemm_4bit" + suffix,
                   {x(), packed, state.absmax, normal({kRows})},
                   x,
                   [width](const Tensors& t) {
                     return call("lowbit::gemm_4bit", t[0], t[1],
                                 std::vector<int64_t>{kRows, width}, t[2], int64_t{64}, "nf4",
                                 t[3]);
                   }});
  }
  const auto [codes, eight] = quantize_blockwise(normal({37, width}), {.blocksize = 256});
  const auto bytes = [this, width] { return integers(0, 256, {37, width}, at::kByte); };
  all.push_back({"dequantize_blockwise" + suffix,
                 {codes, eight.absmax, eight.code},
                 bytes,
                 [dtype](const Tensors& t) {
                   return Tensors{dispatch::dequantize_blockwise(t[0], t[1], t[2], 256, dtype)};
                 },
                 Agreement::kBits});

  const auto [CB, SCB, none] = int8_vectorwise_quant(normal({kRows, width}));
  for (const int64_t m : {1, 5, 40}) {
    for (const double threshold : {0.0, 6.0}) {
      const auto x = [this, m, width, dtype] { return normal({m, width}, dtype) * 2.5; };
      all.push_back({c10::str("linear_8bit ", threshold, " ", m, suffix),
                     {x(), CB, SCB, normal({kRows})},
                     x,
                     [threshold](const Tensors& t) {
                       return Tensors{dispatch::linear_8bit(t[0], {t[1], t[2]}, t[3], threshold)};
                     }});
    }
    const auto x = [this, m, width, dtype] { return normal({m, width}, dtype); };
    all.push_back({c10::str("linear_8bit_weight_only ", m, suffix),
                   {x(), CB, SCB, normal({kRows}, dtype)},
                   x,
                   [](const Tensors& t) {
                     return Tensors{dispatch::linear_8bit_weight_only(t[0], {t[1], t[2]}, t[3])};
                   }});
    const auto g = [this, m, dtype] { return normal({m, kRows}, dtype); };
    all.push_back({c10::str("linear_8bit_backward_input ", m, suffix),
                   {g(), CB, SCB},
                   g,
                   [](const Tensors& t) {
                     return Tensors{dispatch::linear_8bit_backward_input(t[0], {t[1], t[2]})};
                   }});
  }
  const auto ids = [this] { return integers(0, kRows, {19}, at::kLong); };
  all.push_back({"embedding_8bit" + suffix,
                 {ids(), CB, SCB},
                 ids,
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

void CudaOps::add_integers(std::vector<Case>& all) {
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{{1, 72, 256},
                                                                   {3, 7, 65},
                                                                   {16, 33, 100},
                                                                   {17, 64, 128},
                                                                   {40, 72, 256},
                                                                   {33, 50, 331},
                                                                   {100, 50, 331},
                                                                   {129, 136, 1000},
                                                                   {2, 5, 1}}) {
    const auto a = [this, m = m, k = k] { return integers(-127, 128, {m, k}, at::kChar); };
    const at::Tensor b = integers(-127, 128, {n, k}, at::kChar);
    const std::string suffix = c10::str(" ", m, "x", n, "x", k);
    all.push_back(
        {"int8_linear_matmul" + suffix,
         {a(), b},
         a,
         [](const Tensors& t) { return Tensors{dispatch::int8_linear_matmul(t[0], t[1])}; },
         Agreement::kBits});
    all.push_back({"int8_scaled_mm" + suffix,
                   {a(), b, normal({m}).abs(), normal({n}).abs(), normal({n})},
                   a,
                   [](const Tensors& t) {
                     return Tensors{
                         dispatch::int8_scaled_mm(t[0], t[1], t[2], t[3], t[4], at::kBFloat16)};
                   },
                   Agreement::kBits});
    const auto q = [this, n = n, k = k] { return integers(-127, 128, {n, k}, at::kChar); };
    all.push_back(
        {"int8_vectorwise_dequant" + suffix,
         {q(), normal({n}).abs()},
         q,
         [](const Tensors& t) { return Tensors{dispatch::int8_vectorwise_dequant(t[0], t[1])}; },
         Agreement::kBits});
  }
  const auto x = [this] { return normal({21, 64}, at::kHalf); };
  const auto [CB, SCB, none] = int8_vectorwise_quant(normal({40, 64}));
  const auto [CA, SCA, also_none] = int8_vectorwise_quant(x());
  all.push_back({"int8_mixed_scaled_mm",
                 {x(), CA, CB, SCA, SCB, integers(0, 64, {3}, at::kLong)},
                 x,
                 [](const Tensors& t) {
                   return call("lowbit::int8_mixed_scaled_mm", t[0], t[1], t[2], t[3], t[4], t[5]);
                 }});
}

/// Steps from given states. The ops write in place: results are copies.
void CudaOps::add_optimizers(std::vector<Case>& all, at::ScalarType dtype) {
  const auto g = [this, dtype] { return normal({53, 97}, dtype); };
  constexpr int64_t kBlocks = (53 * 97 + 255) / 256, kStep = 5;
  const std::string suffix = c10::str(" ", ops::dtype_name(dtype));
  const c10::List<at::Tensor> none;
  const Tensors floats{g(), g(), normal({53, 97}), normal({53, 97}).abs()};
  const Tensors codes{g(),
                      g(),
                      integers(0, 256, {53, 97}, at::kByte),
                      integers(0, 256, {53, 97}, at::kByte),
                      normal({kBlocks}).abs(),
                      normal({kBlocks}).abs(),
                      create_dynamic_map(true),
                      create_dynamic_map(false)};
  all.push_back({"optimizer_update_32bit" + suffix, floats, g,
                 [](const Tensors& t) {
                   const at::Tensor p = t[1].clone(), m = t[2].clone(), v = t[3].clone();
                   call("lowbit::optimizer_update_32bit", "adam", t[0], p, m, v, c10::IValue(), 0.0,
                        0.0, 0.9, 0.999, 0.0, 0.0, 1e-8, 0.01, kStep, 1e-3, 1.0, false);
                   return Tensors{p, m, v};
                 },
                 Agreement::kBits});
  all.push_back({"optimizer_step_multi_tensor_32bit" + suffix, floats, g,
                 [none](const Tensors& t) {
                   const Tensors p{t[1].clone(), t[1].clone()}, m{t[2].clone(), t[3].clone()};
                   call("lowbit::optimizer_step_multi_tensor_32bit", "lion", Tensors{t[0], t[0]}, p,
                        m, none, none, 0.0, 0.9, 0.99, 0.0, 0.0, 0.0, 0.01, kStep, 1e-3, 1.0,
                        false);
                   return Tensors{p[0], p[1], m[0], m[1]};
                 },
                 Agreement::kBits});
  // Only p sees the device's approximate root and quotient.
  for (const bool states : {true, false}) {
    const Agreement agreement = states ? Agreement::kBits : Agreement::kSums;
    const std::string part = (states ? " states" : " p") + suffix;
    all.push_back({"optimizer_update_8bit_blockwise" + part, codes, g,
                   [states](const Tensors& t) {
                     Tensors s;
                     for (size_t i = 1; i < 6; ++i) s.push_back(t[i].clone());
                     call("lowbit::optimizer_update_8bit_blockwise", "adam", t[0], s[0], s[1], s[2],
                          0.9, 0.999, 0.0, 0.0, 1e-8, kStep, 1e-3, t[6], t[7], s[3], s[4], 0.01,
                          1.0, false);
                     return states ? Tensors(s.begin() + 1, s.end()) : Tensors{s[0]};
                   },
                   agreement});
    all.push_back({"optimizer_step_multi_tensor_8bit" + part, codes, g,
                   [states, none](const Tensors& t) {
                     Tensors s;
                     for (size_t i = 1; i < 6; ++i) s.push_back(t[i].clone());
                     call("lowbit::optimizer_step_multi_tensor_8bit", "adam", Tensors{t[0]},
                          Tensors{s[0]}, Tensors{s[1]}, Tensors{s[2]}, t[6], t[7], Tensors{s[3]},
                          Tensors{s[4]}, none, 0.0, 0.9, 0.999, 0.0, 0.0, 1e-8, 0.01, kStep, 1e-3,
                          1.0, false);
                     return states ? Tensors(s.begin() + 1, s.end()) : Tensors{s[0]};
                   },
                   agreement});
  }
}

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
      // Ties that the device's reciprocal decides: FP4 of bfloat16 has the most, 6 of 6124 here.
      EXPECT_LE(x.ne(y).sum().item<int64_t>(), 2 + y.numel() / 500)
          << name << ", result " << i << ": " << first_difference(x, y);
    } else if (agreement == Agreement::kCodes) {
      EXPECT_TRUE(same_bytes(x, y)) << name << ", result " << i << ": " << first_difference(x, y);
    } else {
      EXPECT_TRUE(is_near(x, y, kTwoDevices)) << name << ", result " << i;
    }
  }
}
}  // namespace lowbit::test
