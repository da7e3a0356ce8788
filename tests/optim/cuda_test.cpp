// Optimizers on a CUDA device: no waiting, captured training steps, memory that can be spilled.
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "families.h"
#include "support/error.h"
#include "support/random.h"

namespace lowbit {
namespace {

using namespace optim;

class CudaOptimizers : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "needs a CUDA GPU";
  }
  at::Tensor normal(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) {
    return at::randn(sizes, generator_).to(dtype).to(at::kCUDA);
  }
  static std::vector<at::Tensor> copies(const std::vector<at::Tensor>& params) {
    std::vector<at::Tensor> result;
    for (const at::Tensor& p : params) result.push_back(p.detach().clone().requires_grad_());
    return result;
  }
  at::Generator generator_ = at::detail::createCPUGenerator(test::seed());
};

/// Parameters of every dtype, on either side of min_8bit_size.
TEST_F(CudaOptimizers, AgreeWithTheCpu) {
  for (const test::Family& family : test::families()) {
    std::vector<at::Tensor> there{normal({70, 80}).requires_grad_(), normal({90}).requires_grad_(),
                                  normal({5001}, at::kBFloat16).requires_grad_(),
                                  normal({5001}, at::kHalf).requires_grad_()},
        here;
    for (const at::Tensor& p : there) here.push_back(p.detach().cpu().requires_grad_());
    const auto on_cuda = family.make(there), on_cpu = family.make(here);
    for (int step = 0; step < 3; ++step) {
      for (size_t i = 0; i < there.size(); ++i) {
        there[i].mutable_grad() = normal(there[i].sizes(), there[i].scalar_type());
        here[i].mutable_grad() = there[i].grad().cpu();
      }
      on_cuda->step();
      on_cpu->step();
    }
    for (size_t i = 0; i < there.size(); ++i) {
      // One rounding of p; norms are summed in another order.
      const double unit = here[i].scalar_type() == at::kBFloat16 ? 0x1p-7
                          : here[i].scalar_type() == at::kHalf   ? 0x1p-10
                                                                 : 2e-6;
      EXPECT_TRUE(at::allclose(there[i].detach().cpu(), here[i].detach(), 2 * unit, 1e-6))
          << family.name << " parameter " << i;
    }
  }
}

TEST_F(CudaOptimizers, NeverWaitForTheDevice) {
  for (const test::Family& family : test::families()) {
    std::vector<at::Tensor> params{normal({200, 300}).requires_grad_(),
                                   normal({50}).requires_grad_()};
    const auto optimizer = family.make(params);
    for (at::Tensor& p : params) p.mutable_grad() = normal(p.sizes());
    optimizer->step();
    auto& state = c10::cuda::warning_state();
    state.set_sync_debug_mode(c10::cuda::SyncDebugMode::L_ERROR);
    const std::string message = test::message_of([&] { optimizer->step(); });
    state.set_sync_debug_mode(c10::cuda::SyncDebugMode::L_DISABLED);
    EXPECT_EQ(message, "(nothing was thrown)") << family.name;
  }
}

/// Forward, backward and step in one graph: replays are the eager steps, to the bit, with clipping
/// and a rate that changes.
TEST_F(CudaOptimizers, ACapturedTrainingStepIsTheEagerOne) {
  for (const int64_t bits : {32, 8}) {
    const at::Tensor x = normal({64, 128}), y = normal({64, 16});
    torch::nn::Linear first(128, 256), second(256, 16);
    first->to(at::kCUDA), second->to(at::kCUDA);
    std::vector<at::Tensor> a{first->weight, first->bias, second->weight, second->bias};
    std::vector<at::Tensor> b = copies(a);
    const auto options =
        AdamWOptions(1e-2).optim_bits(bits).capturable(true).max_grad_norm(0.5).max_unorm(0.1);
    AdamW eager(a, options), captured(b, options);
    const auto train = [&](const std::vector<at::Tensor>& p, AdamW& optimizer) {
      for (const at::Tensor& t : p) {
        if (t.grad().defined()) t.grad().zero_();
      }
      const at::Tensor out = at::linear(at::relu(at::linear(x, p[0], p[1])), p[2], p[3]);
      at::mse_loss(out, y).backward();
      optimizer.step();
    };
    const auto stream = c10::cuda::getStreamFromPool();
    const c10::cuda::CUDAStreamGuard guard(stream);
    for (int i = 0; i < 3; ++i) train(a, eager), train(b, captured);
    at::cuda::CUDAGraph graph;
    stream.synchronize();
    graph.capture_begin();
    train(b, captured);  // recorded, not run
    graph.capture_end();
    for (int i = 0; i < 5; ++i) {
      for (AdamW* optimizer : {&eager, &captured}) {
        optimizer->param_groups()[0].options().set_lr(1e-2 / (i + 1));
      }
      train(a, eager);
      captured.sync_learning_rates();
      graph.replay();
    }
    stream.synchronize();
    for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::equal(a[i], b[i])) << bits << " " << i;
    EXPECT_EQ(captured.state_dict().state.at(0).step, 8);
  }
}

/// The 448 matrices of a LoRA take one launch: whatever else a captured step holds are the count of
/// the step and nothing for each tensor.
TEST_F(CudaOptimizers, OneLaunchForManyTensors) {
  std::vector<at::Tensor> params;
  for (int i = 0; i < 448; ++i) {
    params.push_back(normal({i % 2 == 0 ? 5000 : 300}, at::kBFloat16).requires_grad_());
    params.back().mutable_grad() = normal(params.back().sizes(), at::kBFloat16);
  }
  // 300 elements have float32 states, a launch of their own where states are 8-bit.
  for (const auto& [bits, launches] : {std::pair{32, 1}, {8, 2}}) {
    AdamW optimizer(params, AdamWOptions(1e-3).optim_bits(bits).capturable(true));
    c10::cuda::device_synchronize();
    const auto stream = c10::cuda::getStreamFromPool();
    const c10::cuda::CUDAStreamGuard guard(stream);
    optimizer.step();
    stream.synchronize();
    at::cuda::CUDAGraph graph(/*keep_graph=*/true);
    graph.capture_begin();
    optimizer.step();
    graph.capture_end();
    size_t count = 0;
    ASSERT_EQ(cudaGraphGetNodes(graph.raw_cuda_graph(), nullptr, &count), cudaSuccess);
    std::vector<cudaGraphNode_t> nodes(count);
    ASSERT_EQ(cudaGraphGetNodes(graph.raw_cuda_graph(), nodes.data(), &count), cudaSuccess);
    int kernels = 0;
    for (const cudaGraphNode_t node : nodes) {
      cudaGraphNodeType type{};
      ASSERT_EQ(cudaGraphNodeGetType(node, &type), cudaSuccess);
      kernels += type == cudaGraphNodeTypeKernel;
    }
    EXPECT_EQ(kernels, launches + 1) << bits << " bits: the steps and one addition to the count";
    EXPECT_EQ(nodes.size(), static_cast<size_t>(kernels)) << "nothing is copied or set";
  }
}

TEST_F(CudaOptimizers, WhatCannotBeCaptured) {
  at::Tensor p = normal({5000}).requires_grad_();
  p.mutable_grad() = normal({5000});
  AdamW8bit plain({p}), fresh({p}, AdamWOptions().capturable(true));
  plain.step();
  c10::cuda::device_synchronize();  // streams of the pool do not wait for this one
  const auto stream = c10::cuda::getStreamFromPool();
  const c10::cuda::CUDAStreamGuard guard(stream);
  const at::Tensor before = p.detach().clone();
  stream.synchronize();
  at::cuda::CUDAGraph graph;
  graph.capture_begin();
  const std::string first = test::message_of([&] { plain.step(); });
  const std::string second = test::message_of([&] { fresh.step(); });
  graph.capture_end();
  EXPECT_NE(first.find("`capturable` must be true while a CUDA graph is captured"),
            std::string::npos)
      << first;
  EXPECT_NE(second.find("`step()` must be called once before it is captured"), std::string::npos)
      << second;
  EXPECT_TRUE(at::equal(p, before));
}

/// Paged states, managed or pinned, give the bits of ordinary ones, also after loading.
TEST_F(CudaOptimizers, PagedStatesAreTheSame) {
  for (const PagedMemory memory : {PagedMemory::kManaged, PagedMemory::kPinned}) {
    std::vector<at::Tensor> a{normal({400, 500}, at::kBFloat16).requires_grad_(),
                              normal({1000}).requires_grad_()},
        b = copies(a), c = copies(a);
    const auto paged = AdamWOptions(1e-2).paged_memory(memory).paged_budget(int64_t{1} << 30);
    AdamW8bit plain(a, AdamWOptions(1e-2));
    PagedAdamW8bit spilled(b, paged), resumed(c, paged);
    const auto step = [&](std::vector<Optimizer*> optimizers,
                          std::vector<std::vector<at::Tensor>*> params) {
      for (size_t i = 0; i < a.size(); ++i) {
        const at::Tensor g = normal(a[i].sizes(), a[i].scalar_type());
        for (auto* list : params) (*list)[i].mutable_grad() = g.clone();
      }
      for (Optimizer* optimizer : optimizers) optimizer->step();
    };
    for (int i = 0; i < 3; ++i) step({&plain, &spilled}, {&a, &b});
    const PagedBytes bytes = spilled.paged_bytes();
    EXPECT_EQ(bytes.managed + bytes.pinned, 2 * 200000) << bytes.note;
    if (memory == PagedMemory::kPinned) {
      EXPECT_EQ(bytes.pinned, 2 * 200000);
    }
    std::printf("paged: %lld managed, %lld pinned %s\n", static_cast<long long>(bytes.managed),
                static_cast<long long>(bytes.pinned), bytes.note.c_str());
    resumed.load_state_dict(spilled.state_dict());
    for (size_t i = 0; i < c.size(); ++i) c[i].detach().copy_(b[i].detach());
    EXPECT_EQ(resumed.paged_bytes().managed + resumed.paged_bytes().pinned, 2 * 200000);
    for (int i = 0; i < 2; ++i) step({&plain, &spilled, &resumed}, {&a, &b, &c});
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_TRUE(at::equal(a[i], b[i])) << i;
      EXPECT_TRUE(at::equal(a[i], c[i])) << i;
    }
  }
}

TEST_F(CudaOptimizers, ThePagedBudgetBoundsManagedMemory) {
  at::Tensor p = normal({200000}).requires_grad_();
  p.mutable_grad() = normal({200000});
  PagedLion8bit optimizer({p}, LionOptions().paged_budget(100000));
  optimizer.step();
  const PagedBytes bytes = optimizer.paged_bytes();
  EXPECT_EQ(bytes.managed, 0);
  EXPECT_EQ(bytes.pinned, 200000);
  EXPECT_NE(bytes.note, "");
}

}  // namespace
}  // namespace lowbit
