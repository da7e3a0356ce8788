// Every operator of the library, called through the dispatcher as Python and exported graphs call
// it: time, bytes a second over the tensors that go in and come out, and for products operations a
// second. The baselines of the same run: a copy, and libtorch's own linear layer.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <benchmark/benchmark.h>
#include <lowbit/functional.h>

#include <string>
#include <vector>

namespace {

constexpr int64_t kOut = 4096, kIn = 4096, kBlocksize = 64;

/// One operator with its arguments. `overload`: "" or "out". `flops` of one call; 0 for what is not
/// a product.
struct Case {
  std::string op, overload;
  std::vector<c10::IValue> arguments;
  double flops = 0;
};

int64_t tensor_bytes(const std::vector<c10::IValue>& values) {
  int64_t bytes = 0;
  for (const c10::IValue& value : values) {
    if (value.isTensorList()) {
      for (const at::Tensor& tensor : value.toTensorVector()) bytes += tensor.nbytes();
    }
    if (value.isTensor() && value.toTensor().defined()) bytes += value.toTensor().nbytes();
  }
  return bytes;
}

void run(benchmark::State& state, const Case& c) {
  const at::NoGradGuard no_grad;
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(c.op.c_str(), c.overload.c_str());
  std::vector<c10::IValue> stack;
  for (auto _ : state) {
    stack = c.arguments;
    op.callBoxed(stack);
    benchmark::DoNotOptimize(stack.data());
  }
  const int64_t bytes = tensor_bytes(c.arguments) + tensor_bytes(stack);
  state.SetBytesProcessed(state.iterations() * bytes);
  if (c.flops > 0) {
    state.counters["FLOP/s"] = benchmark::Counter(
        c.flops, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
  }
}

/// Adam and Lion on one bfloat16 tensor, and on a list of two halves of it.
std::vector<Case> optimizer_cases() {
  constexpr int64_t kNumel = int64_t{1} << 24, kBlocks = kNumel / 256;
  const c10::IValue none;
  const at::Tensor p = at::randn({kNumel}, at::kBFloat16), g = at::randn({kNumel}, at::kBFloat16);
  const at::Tensor m = at::zeros({kNumel}), v = at::zeros({kNumel});
  const at::Tensor m8 = at::zeros({kNumel}, at::kByte), v8 = at::zeros({kNumel}, at::kByte);
  const at::Tensor m_absmax = at::zeros({kBlocks}), v_absmax = at::zeros({kBlocks});
  const at::Tensor map1 = lowbit::create_dynamic_map(true),
                   map2 = lowbit::create_dynamic_map(false);
  const auto halves = [](const at::Tensor& t) { return c10::IValue(t.chunk(2)); };
  const c10::List<at::Tensor> empty;
  const int64_t step = 10;
  return {
      {"lowbit::optimizer_update_32bit",
       "",
       {"adam", g, p, m, v, none, 0.0, 0.0, 0.9, 0.999, 0.0, 0.0, 1e-8, 0.01, step, 1e-5, 1.0,
        false}},
      {"lowbit::optimizer_update_8bit_blockwise",
       "",
       {"adam", g, p, m8, v8, 0.9, 0.999, 0.0, 0.0, 1e-8, step, 1e-5, map1, map2, m_absmax,
        v_absmax, 0.01, 1.0, false}},
      {"lowbit::optimizer_update_8bit_blockwise",
       "",
       {"lion", g, p, m8, none, 0.9, 0.99, 0.0, 0.0, 0.0, step, 1e-5, map1, none, m_absmax, none,
        0.01, 1.0, false}},
      {"lowbit::optimizer_step_multi_tensor_32bit",
       "",
       {"adam", halves(g), halves(p), halves(m), halves(v), empty, 0.0,   0.9,  0.999, 0.0,
        0.0,    1e-8,      0.01,      step,      1e-5,      1.0,   false, none, none,  none}},
      {"lowbit::optimizer_step_multi_tensor_8bit",
       "",
       {"adam",
        halves(g),
        halves(p),
        halves(m8),
        halves(v8),
        map1,
        map2,
        halves(m_absmax),
        halves(v_absmax),
        empty,
        0.0,
        0.9,
        0.999,
        0.0,
        0.0,
        1e-8,
        0.01,
        step,
        1e-5,
        1.0,
        false,
        none,
        none,
        none}},
  };
}

/// `m`: rows of the activations.
std::vector<Case> cases(int64_t m) {
  const auto bf16 = at::kBFloat16;
  const c10::IValue none;
  const at::Tensor w = at::randn({kOut, kIn}, bf16), x = at::randn({m, kIn}, bf16);
  // The same weight as a stack of experts, over even groups of rows.
  constexpr int64_t kExperts = 4;
  const c10::List<int64_t> experts({kExperts, kOut / kExperts, kIn});
  const at::Tensor offs = (at::arange(1, kExperts + 1) * m).div(kExperts, "floor").to(at::kInt);
  const at::Tensor grad = at::randn({m, kOut}, bf16), ids = at::randint(kOut, {m});
  const double flops = 2.0 * static_cast<double>(m) * kOut * kIn;

  const auto [packed, s4] =
      lowbit::quantize_4bit(w, {.blocksize = kBlocksize, .quant_type = lowbit::QuantType::kNF4});
  const c10::List<int64_t> shape({kOut, kIn});
  const std::string nf4 = "nf4";
  const at::Tensor map = lowbit::create_dynamic_map();
  const auto [codes, s8] = lowbit::quantize_blockwise(w, {.blocksize = 256});
  const auto [CB, SCB, unused] = lowbit::int8_vectorwise_quant(w);
  const auto [CA, SCA, outliers] = lowbit::int8_vectorwise_quant(x, 3.0);
  const at::Tensor product = lowbit::int8_linear_matmul(CA, CB);
  const at::Tensor wide = at::empty_like(w), narrow = at::empty({m, kOut}, bf16);

  return {
      {"aten::clone", "", {w, none}},
      {"aten::linear", "", {x, w, none}, flops},
      {"lowbit::quantize_4bit", "", {w, kBlocksize, nf4, at::kByte}},
      {"lowbit::dequantize_4bit", "", {packed, s4.absmax, kBlocksize, nf4, shape, bf16}},
      {"lowbit::dequantize_4bit", "out", {packed, s4.absmax, kBlocksize, nf4, shape, bf16, wide}},
      {"lowbit::gemm_4bit",
       "",
       {x, packed, shape, s4.absmax, kBlocksize, nf4, none, none, none, none},
       flops},
      {"lowbit::gemv_4bit", "", {x, packed, shape, s4.absmax, s4.code, kBlocksize}, flops},
      {"lowbit::gemv_4bit",
       "out",
       {x, packed, shape, s4.absmax, s4.code, kBlocksize, narrow},
       flops},
      {"lowbit::linear_4bit",
       "",
       {x, packed, shape, s4.absmax, kBlocksize, nf4, none, none, none, none},
       flops},
      {"lowbit::linear_4bit_backward_input",
       "",
       {grad, packed, shape, s4.absmax, kBlocksize, nf4, none, none, none},
       flops},
      {"lowbit::grouped_mm_4bit",
       "",
       {x, packed, experts, s4.absmax, kBlocksize, nf4, offs, none, none, none},
       flops / kExperts},
      {"lowbit::grouped_mm_4bit_backward_input",
       "",
       {grad.narrow(1, 0, kOut / kExperts), packed, experts, s4.absmax, kBlocksize, nf4, offs, none,
        none, none},
       flops / kExperts},
      {"lowbit::embedding_4bit",
       "",
       {ids, packed, shape, s4.absmax, kBlocksize, nf4, bf16, none, none, none}},
      {"lowbit::quantize_blockwise", "", {w, map, int64_t{256}}},
      {"lowbit::dequantize_blockwise", "", {codes, s8.absmax, map, int64_t{256}, bf16}},
      {"lowbit::dequantize_blockwise", "out", {codes, s8.absmax, map, int64_t{256}, bf16, wide}},
      {"lowbit::int8_vectorwise_quant", "", {x, 3.0}},
      {"lowbit::int8_rowwise_quant", "", {w, 0.0}},
      {"lowbit::int8_colwise_quant", "", {w, 0.0}},
      {"lowbit::int8_double_quant", "", {w, 3.0}},
      {"lowbit::int8_vectorwise_dequant", "", {CB, SCB}},
      {"lowbit::int8_linear_matmul", "", {CA, CB}, flops},
      {"lowbit::int8_linear_matmul", "out", {CA, CB, product}, flops},
      {"lowbit::int8_mm_dequant", "", {product, SCA, SCB, bf16, none}},
      {"lowbit::int8_scaled_mm", "", {CA, CB, SCA, SCB, none, bf16}, flops},
      {"lowbit::int8_mixed_scaled_mm", "", {x, CA, CB, SCA, SCB, outliers, none}, flops},
      {"lowbit::linear_8bit", "", {x, CB, SCB, none, 3.0}, flops},
      {"lowbit::linear_8bit_weight_only", "", {x, CB, SCB, none}, flops},
      {"lowbit::linear_8bit_backward_input", "", {grad, CB, SCB}, flops},
      {"lowbit::embedding_8bit", "", {ids, CB, SCB, bf16}},
  };
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::AddCustomContext("instruction set", lowbit::cpu_isa());
  for (const int64_t m : {int64_t{1}, int64_t{64}}) {
    for (const Case& c : cases(m)) {
      const std::string name = c.op + (c.overload.empty() ? "" : "." + c.overload) +
                               (c.flops > 0 ? "/m:" + std::to_string(m) : "");
      if (m == 1 && c.flops == 0) continue;  // once is enough, and with many rows
      benchmark::RegisterBenchmark(name.c_str(), run, c)
          ->UseRealTime()
          ->Unit(benchmark::kMicrosecond);
    }
  }
  for (const Case& c : optimizer_cases()) {
    const std::string name = c.op + "/" + c.arguments[0].toStringRef();
    benchmark::RegisterBenchmark(name.c_str(), run, c)
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond);
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
