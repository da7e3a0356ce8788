// Every figure is the median of 21 replays of a graph of launches; each launch has a routing of its
// own (a token's experts are drawn at random) and weights that rotate through more than four times
// the L2 cache. TB/s counts the codes and statistics of the experts that have tokens.
#include "fourbit_experts_cuda_bench.h"

#include <numeric>

#include "cuda/fourbit_experts.h"
#include "cuda/fourbit_mid_sm80.h"
#include "cuda_timing.h"

namespace lowbit::bench {
namespace {

struct Routing {
  std::vector<int32_t> ends;
  int64_t used = 0;  // experts with tokens
};

Routing route(int64_t experts, int64_t top, int64_t tokens, std::mt19937& rng) {
  std::vector<int32_t> counts(static_cast<size_t>(experts)), order(counts.size());
  std::iota(order.begin(), order.end(), 0);
  for (int64_t t = 0; t < tokens; ++t) {
    std::shuffle(order.begin(), order.end(), rng);
    for (int64_t i = 0; i < top; ++i) ++counts[order[i]];
  }
  Routing routing;
  for (const int32_t count : counts) {
    routing.ends.push_back((routing.ends.empty() ? 0 : routing.ends.back()) + count);
    routing.used += count > 0;
  }
  return routing;
}

}  // namespace

int bench_experts(std::vector<std::string> shapes, std::vector<int64_t> tokens, int64_t blocksize,
                  int arch, bool variants) {
  if (shapes.empty()) {
    shapes = {"8/2x14336x4096", "8/2x4096x14336", "128/8x768x2048", "128/8x2048x768"};
  }
  if (tokens.empty()) tokens = {1, 8, 32, 128};
  DeviceProperties gpu = properties();
  const bool early = gpu.compute_capability >= 90;
  if (arch > 0) gpu.compute_capability = std::min(gpu.compute_capability, arch);
  check(cudaStreamCreate(&stream));
  cublasHandle_t cublas;
  check(cublasCreate(&cublas));
  check(cublasSetStream(cublas, stream));
  void* workspace = device<char>(64 << 20);
  check(cublasSetWorkspace(cublas, workspace, 64 << 20));
  std::mt19937 rng(1);
  cudaDeviceProp name;
  check(cudaGetDeviceProperties(&name, 0));
  std::printf("%s, NF4, blocksize %ld, float32 scales, bfloat16\n\n", name.name, blocksize);
  std::printf(
      "| experts / of a token x N x K | tokens | kernel | us | TB/s | dequantize + cuBLAS us | "
      "one launch per expert us |\n| --- | --- | --- | --- | --- | --- | --- |\n");

  for (const std::string& shape : shapes) {
    long experts = 0, top = 0, n = 0, k = 0;
    if (std::sscanf(shape.c_str(), "%ld/%ldx%ldx%ld", &experts, &top, &n, &k) != 4 || top < 1 ||
        experts < top || n < 1 || k < 1) {
      std::fprintf(stderr, "a shape is EXPERTS/OF_A_TOKENxNxK, got %s\n", shape.c_str());
      return 2;
    }
    const int64_t weight = n * k, codes = ceil_div(experts * weight, 2);
    const int64_t blocks = ceil_div(experts * weight, blocksize);
    const int64_t bytes = codes + 4 * blocks;
    // The experts of one token are the fewest bytes of a launch.
    const int64_t least = std::max<int64_t>(1, bytes / experts * top);
    const int copies = static_cast<int>(std::clamp<int64_t>(
        (4 * gpu.l2_bytes + (32 << 20)) / least + 1, 2, std::max<int64_t>(2, (16L << 30) / bytes)));
    const int64_t most = *std::max_element(tokens.begin(), tokens.end()) * top;
    auto* packed = device<uint8_t>(codes * copies);
    auto* absmax = device<float>(blocks);
    auto* dense = device<uint16_t>(experts * weight);
    auto* x = device<uint16_t>(most * k);
    auto* y = device<uint16_t>(most * n);
    fill_random(packed, codes * copies, rng, false);
    fill_random(x, 2 * most * k, rng, true);
    const std::vector<float> scales(static_cast<size_t>(blocks), 0.03f);
    check(cudaMemcpy(absmax, scales.data(), 4 * scales.size(), cudaMemcpyHostToDevice));

    for (const int64_t m : tokens) {
      constexpr int kRoutings = 24;
      std::vector<Routing> routings;
      auto* ends = device<int32_t>(kRoutings * experts);
      int64_t used = 0;
      for (int i = 0; i < kRoutings; ++i) {
        const Routing& r = routings.emplace_back(route(experts, top, m, rng));
        used += r.used;
        check(cudaMemcpy(ends + i * experts, r.ends.data(), 4 * experts, cudaMemcpyHostToDevice));
      }
      const auto params = [&](int i) {
        GroupedMatmul4bitParams p;
        p.stack.input = x;
        p.stack.input_stride = k;
        p.stack.dtype = DType::kBFloat16;
        p.stack.m = m * top, p.stack.n = experts * n, p.stack.k = k;
        p.stack.packed = packed + i % copies * codes;
        p.stack.scales.absmax = absmax;
        p.stack.blocksize = blocksize;
        p.stack.output = y;
        p.stack.programmatic_launch = early;
        p.experts = experts;
        p.ends = ends + i % kRoutings * experts;
        return p;
      };
      std::vector<Matmul4bitCudaPlan> plans = {cuda::plan_grouped_matmul_4bit(params(0), gpu)};
      for (int v = 0; variants && v < cuda::kMidSm80VariantCount; ++v) {
        const Matmul4bitCudaPlan plan = cuda::plan_experts(params(0), gpu, v);
        const bool fine =
            cuda::kMidSm80Variants[v].granule < cuda::mid_sm80_granule(params(0).stack);
        if (plan.grid_x > 0 && plan.id != plans[0].id && !fine) plans.push_back(plan);
      }
      // Calls f(expert, first token, tokens) for the experts that have some.
      const auto for_groups = [&](int i, const auto& f) {
        int32_t begin = 0;
        for (int64_t e = 0; e < experts; ++e) {
          const int32_t end = routings[i % kRoutings].ends[e];
          if (end > begin) f(e, begin, end - begin);
          begin = end;
        }
      };
      std::vector<Candidate> candidates = {
          {8,
           [&](int i) {
             const Matmul4bitParams p = params(i).stack;
             Dequantize4bitParams d;
             d.packed = p.packed;
             d.scales = p.scales;
             d.numel = experts * weight;
             d.blocksize = blocksize;
             d.output = dense;
             d.output_dtype = p.dtype;
             check(cuda::dequantize_4bit(d, Stream{stream}));
             for_groups(i, [&](int64_t e, int64_t first, int count) {
               const float one = 1.0f, zero = 0.0f;
               check(cublasGemmEx(cublas, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(n), count,
                                  static_cast<int>(k), &one, dense + e * weight, CUDA_R_16BF,
                                  static_cast<int>(k), x + first * k, CUDA_R_16BF,
                                  static_cast<int>(k), &zero, y + first * n, CUDA_R_16BF,
                                  static_cast<int>(n), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
             });
           }},
          {kRoutings, [&](int i) {
             for_groups(i, [&](int64_t e, int64_t first, int count) {
               Matmul4bitParams p = params(i).stack;
               p.m = count, p.n = n;
               p.input = x + first * k;
               p.output = y + first * n;
               p.packed += e * weight / 2;
               p.scales.absmax += e * weight / blocksize;
               const Matmul4bitCudaPlan one = cuda::plan_matmul_4bit(p, gpu);
               if (one.workspace_bytes > 0) p.workspace = workspace;
               check(cuda::matmul_4bit(one, p, Stream{stream}));
             });
           }}};
      for (const Matmul4bitCudaPlan& plan : plans) {
        candidates.push_back({kRoutings, [&](int i) {
                                check(cuda::grouped_matmul_4bit(plan, params(i), Stream{stream}));
                              }});
      }
      const std::vector<double> us = time(candidates);
      const double read = static_cast<double>(bytes) / experts * used / kRoutings;
      for (size_t i = 0; i < plans.size(); ++i) {
        std::printf("| %s | %ld | %s%s%s | %.2f | %.2f | %.1f | %.2f |\n", shape.c_str(), m,
                    i > 0 ? "~ " : "", plans[i].kernel, plans[i].fused ? "" : " (not advised)",
                    us[i + 2], read / us[i + 2] * 1e-6, us[0], us[1]);
      }
      std::fflush(stdout);
      check(cudaFree(ends));
    }
    for (void* p : {static_cast<void*>(packed), static_cast<void*>(absmax),
                    static_cast<void*>(dense), static_cast<void*>(x), static_cast<void*>(y)}) {
      check(cudaFree(p));
    }
  }
  return 0;
}

}  // namespace lowbit::bench
