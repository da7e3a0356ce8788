// What holds for every op on a CUDA device: it agrees with the CPU, runs on the current stream,
// never waits for the device, can be captured in a graph and replayed on other data, reads any
// layout, and writes nothing but its outputs.
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGraph.h>
#include <ATen/cuda/Sleep.h>
#include <c10/cuda/CUDAGuard.h>

#include "cuda_cases.h"
#include "ops/linear.h"
#include "support/error.h"
#include "support/tolerance.h"

namespace lowbit::test {
namespace {

TEST_F(CudaOps, AgreeWithTheCpu) {
  const std::vector<Case> all = cases();
  for (const Case& c : all) {
    expect_close(c.run(on(at::kCUDA, c.inputs)), c.run(c.inputs), c.agreement, c.name);
  }
  EXPECT_GE(all.size(), 250u);
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
    expect_same(c.run(on(second, c.inputs)),
                on(at::kCPU, c.run(on(at::Device(at::kCUDA, 0), c.inputs))), c.name);
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
         run("lowbit::dequantize_blockwise",
             {codes, eight.absmax, eight.code, int64_t{32}, static_cast<int64_t>(at::kFloat), out});
       }},
      {int8_linear_matmul(a, b), [&](const at::Tensor& out) {
         run("lowbit::int8_linear_matmul", {a, b, out});
       }}};
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
      const at::Tensor exact = at::matmul(x.to(at::kDouble), truth.t()) + bias.to(at::kDouble);
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
  // A mean: its last bits depend on the order of summation.
  EXPECT_LE((state.offset.cpu() - cpu_state.offset).abs().item<double>(), 1e-6);
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
  EXPECT_EQ(message_of([&] {
              ops::linear_8bit(normal({2, 64}), eight);
            }),
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
