// Speed of the 4-bit matmul on CUDA, against cuBLAS bf16 and dequantize + cuBLAS in the same run.
//
// Every figure is the median of 21 replays of a graph of launches over weights that rotate through
// more than four times the L2 cache, replayed in turns with those it is compared with. `--sweep`
// takes M = 1, 2, 4 ... 8192, the neighbours of each, and twenty others: what the thresholds of the
// plan are set from. TB/s counts the codes and statistics, once; `% read` is its share of what a
// kernel that only reads achieves.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "codebook.h"
#include "cuda/fourbit_large.h"
#include "cuda/fourbit_matmul.h"
#include "cuda/fourbit_mid.h"
#include "cuda/fourbit_mid_sm80.h"
#include "cuda_timing.h"
#include "device_bandwidth.h"
#include "fourbit_experts_cuda_bench.h"
#include "lowbit/kernels/fourbit.h"

namespace {

using namespace lowbit::bench;

struct Row {
  std::string shape, kernel;
  int64_t n, k, m;
  bool backward, fused;
  double us, plain_us, cublas_us, dequantize_us;
};

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Speed of the 4-bit matmul on CUDA against cuBLAS"};
  bool quick = false, variants = false, plain = false, fp16 = false, backward = false;
  bool sweep = false, experts = false;
  int64_t blocksize = 64;
  int arch = 0;
  std::string markdown, json;
  std::vector<int64_t> tokens;
  std::vector<std::string> shapes;
  app.add_flag("--quick", quick, "Few shapes and M");
  app.add_flag("--variants", variants, "Every variant of the tensor-core kernels, too");
  app.add_flag("--backward", backward, "The gradient of the input instead");
  app.add_flag("--experts", experts, "Stacks of experts over routed tokens instead");
  app.add_flag("--sweep", sweep, "M = 1, 2, 4 ... 8192, their neighbours and 20 others");
  app.add_flag("--plain", plain, "Scales in float32 instead of nested ones");
  app.add_flag("--fp16", fp16, "float16 instead of bfloat16 activations");
  app.add_option("--blocksize", blocksize);
  app.add_option("--m", tokens, "Values of M");
  app.add_option("--shape", shapes, "NxK, or N+N+NxK: several weights over one input");
  app.add_option("--arch", arch, "Plan for an older architecture, such as 80");
  app.add_option("--md", markdown, "Write the table to this file, too");
  app.add_option("--json", json, "Write the rows to this file");
  CLI11_PARSE(app, argc, argv);
  if (experts) return bench_experts(shapes, tokens, blocksize, arch, variants);
  if (shapes.empty()) {
    shapes = {"14336x4096", "4096x4096"};
    if (!quick) {
      for (const char* s : {"8192x8192", "4096x14336", "28672x8192", "1024x4096"}) {
        shapes.emplace_back(s);
      }
    }
  }
  for (int64_t m = 1; sweep && m <= 8192; m *= 2) {
    for (const int64_t near : {m - 1, m, m + 1}) {
      if (near >= 1) tokens.push_back(near);
    }
  }
  std::mt19937 draw(2);
  for (int i = 0; sweep && i < 20; ++i) {  // half of them where tiles are few
    tokens.push_back(1 + static_cast<int64_t>(draw() % (i % 2 == 0 ? 512 : 8192)));
  }
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  if (tokens.empty()) {
    tokens = quick ? std::vector<int64_t>{1, 4, 8, 16, 32, 64}
                   : std::vector<int64_t>{1,  2,  4,   8,   12,  16,  24,   32,   48,
                                          64, 96, 128, 192, 256, 512, 1024, 2048, 8192};
  }

  DeviceProperties gpu = properties();
  const bool may_launch_early = gpu.compute_capability >= 90;
  if (arch > 0) gpu.compute_capability = std::min(gpu.compute_capability, arch);
  check(cudaStreamCreate(&stream));
  cublasHandle_t cublas;
  check(cublasCreate(&cublas));
  check(cublasSetStream(cublas, stream));
  void* cublas_workspace = device<char>(64 << 20);
  check(cublasSetWorkspace(cublas, cublas_workspace, 64 << 20));
  std::mt19937 rng(1);
  const int64_t most_m = *std::max_element(tokens.begin(), tokens.end());

  // Reading alone, four buffers in turn, far beyond the L2 cache.
  const size_t read_bytes = size_t{1} << 30;
  auto* read_from = device<char>(4 * read_bytes);
  check(cudaMemset(read_from, 1, 4 * read_bytes));
  auto* read_sink = device<uint32_t>(1);
  const double ceiling = read_bytes /
                         time({{8,
                                [&](int i) {
                                  check(read_everything(read_from + i % 4 * read_bytes, read_bytes,
                                                        read_sink, stream));
                                }}})[0] *
                         1e-6;  // TB/s
  check(cudaFree(read_from));
  check(cudaFree(read_sink));

  cudaDeviceProp name;
  check(cudaGetDeviceProperties(&name, 0));
  std::string out = std::string(name.name) + ", read " + std::to_string(ceiling).substr(0, 4) +
                    " TB/s, NF4, blocksize " + std::to_string(blocksize) +
                    (plain ? ", float32 scales, " : ", nested scales, ") +
                    (fp16 ? "float16" : "bfloat16") + (backward ? ", gradient of the input" : "") +
                    "\n\n" +
                    "| N x K | M | kernel | us | us, no early launch | TB/s | % read | cuBLAS us | "
                    "ratio | dequantize + cuBLAS us |\n"
                    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
  std::printf("%s", out.c_str());
  std::vector<Row> rows;

  for (const std::string& shape : shapes) {
    int64_t n = 0, k = 0;
    std::vector<int64_t> members;
    const char* at = shape.c_str();
    do {
      char* end = nullptr;
      members.push_back(std::strtol(at, &end, 10));
      n += members.back();
      at = end + 1;
    } while (at[-1] == '+');
    if (at[-1] != 'x' || (k = std::atol(at)) < 1 || n < 1) {
      std::fprintf(stderr, "a shape is NxK, got %s\n", shape.c_str());
      return 2;
    }
    const int64_t codes = ceil_div(n * k, 2), blocks = ceil_div(n * k, blocksize);
    const int64_t weight_bytes = codes + (plain ? 4 * blocks : blocks + blocks / 64);
    const int64_t rotated = 4 * gpu.l2_bytes + (32 << 20);
    const int copies = static_cast<int>(ceil_div(rotated, weight_bytes) + 1);
    const int dense_copies = static_cast<int>(ceil_div(rotated, 2 * n * k) + 1);
    auto* packed = device<uint8_t>(codes * copies);
    auto* absmax_8bit = device<uint8_t>(blocks * copies + 16);
    auto* absmax = device<float>(blocks * copies + 16);
    auto* absmax2 = device<float>(ceil_div(blocks, kNestedBlocksize) * copies);
    auto* map = device<float>(256);
    auto* offset = device<float>(1);
    auto* dense = device<uint16_t>(n * k * dense_copies);
    const int64_t inner = backward ? n : k, outer = backward ? k : n;
    auto* x = device<uint16_t>(most_m * inner);
    auto* y = device<uint16_t>(most_m * outer);
    fill_random(packed, codes * copies, rng, false);
    fill_random(absmax_8bit, blocks * copies, rng, false);
    fill_random(dense, 2 * n * k * dense_copies, rng, true);
    fill_random(x, 2 * most_m * inner, rng, true);
    std::vector<float> values(blocks * copies);
    for (float& v : values) v = 0.02f + 0.001f * static_cast<float>(rng() % 64);
    check(cudaMemcpy(absmax, values.data(), values.size() * 4, cudaMemcpyHostToDevice));
    check(cudaMemcpy(absmax2, values.data(), ceil_div(blocks, kNestedBlocksize) * copies * 4,
                     cudaMemcpyHostToDevice));
    check(cudaMemcpy(map, codebook::kDynamicSigned.values, 1024, cudaMemcpyHostToDevice));
    check(cudaMemcpy(offset, values.data(), 4, cudaMemcpyHostToDevice));

    const auto params = [&](int64_t m, int i) {
      const int64_t c = i % copies;
      Matmul4bitParams p;
      p.input = x;
      p.input_stride = inner;
      p.dtype = fp16 ? DType::kFloat16 : DType::kBFloat16;
      p.m = m, p.n = n, p.k = k;
      p.packed = packed + c * codes;
      if (plain) {
        p.scales.absmax = absmax + c * blocks;
      } else {
        p.scales = {nullptr, absmax_8bit + c * blocks, map,
                    absmax2 + c * ceil_div(blocks, kNestedBlocksize), offset};
      }
      p.blocksize = blocksize;
      p.output = y;
      return p;
    };
    // The members are runs of rows of one weight.
    const auto group = [&](int64_t m, int i, bool early) {
      std::vector<Matmul4bitParams> all;
      int64_t row = 0;
      for (const int64_t rows : members) {
        Matmul4bitParams& p = all.emplace_back(params(m, i));
        p.n = rows;
        p.packed += row * k / 2;
        const int64_t block = row * k / blocksize;
        if (plain) {
          p.scales.absmax += block;
        } else {
          p.scales.absmax_8bit += block;
          p.scales.absmax2 += block / kNestedBlocksize;
        }
        p.output = y + m * row;
        p.programmatic_launch = early && may_launch_early;
        row += rows;
      }
      return all;
    };
    const auto library = [&](int64_t m, const void* w) {
      const float one = 1.0f, zero = 0.0f;
      const cudaDataType type = fp16 ? CUDA_R_16F : CUDA_R_16BF;
      check(cublasGemmEx(cublas, backward ? CUBLAS_OP_N : CUBLAS_OP_T, CUBLAS_OP_N,
                         static_cast<int>(outer), static_cast<int>(m), static_cast<int>(inner),
                         &one, w, type, static_cast<int>(k), x, type, static_cast<int>(inner),
                         &zero, y, type, static_cast<int>(outer), CUBLAS_COMPUTE_32F,
                         CUBLAS_GEMM_DEFAULT));
    };

    for (const int64_t m : tokens) {
      // Long ones need no more than a few.
      const int few =
          static_cast<int>(std::clamp<int64_t>((int64_t{1} << 40) / (m * n * k), 4, 24));
      const bool lengthy = few < 24;
      std::vector<Candidate> candidates;
      candidates.push_back({lengthy ? few : std::max(24, dense_copies),
                            [&](int i) { library(m, dense + (i % dense_copies) * n * k); }});
      candidates.push_back({lengthy ? few : std::max(8, std::min(copies, 16)), [&](int i) {
                              const Matmul4bitParams p = params(m, i);
                              Dequantize4bitParams d;
                              d.packed = p.packed;
                              d.scales = p.scales;
                              d.numel = n * k;
                              d.blocksize = blocksize;
                              d.output = dense;
                              d.output_dtype = p.dtype;
                              check(cuda::dequantize_4bit(d, Stream{stream}));
                              library(m, dense);
                            }});
      struct Chosen {
        Matmul4bitCudaPlan plan;
        const char* prefix;
        void* workspace;
      };
      std::vector<Chosen> plans;
      const auto consider = [&](const Matmul4bitCudaPlan& plan, const char* prefix) {
        void* workspace = plan.workspace_bytes > 0 ? device<char>(plan.workspace_bytes) : nullptr;
        plans.push_back({plan, prefix, workspace});
        for (const bool early : {false, true}) {
          candidates.push_back(
              {lengthy ? few : std::max(24, copies), [=, &params](int i) {
                 Matmul4bitParams p = params(m, i);
                 p.workspace = workspace;
                 p.programmatic_launch = early && may_launch_early;
                 check(backward ? cuda::matmul_4bit_backward_input(plan, p, Stream{stream})
                                : cuda::matmul_4bit(plan, p, Stream{stream}));
               }});
        }
      };
      const Matmul4bitCudaPlan chosen =
          backward ? cuda::plan_matmul_4bit_backward_input(params(m, 0), gpu)
                   : cuda::plan_matmul_4bit(params(m, 0), gpu);
      const int64_t first =
          backward || members.size() > 1 ? m : cuda::matmul_4bit_first_tokens(params(m, 0), gpu);
      if (first < m) {  // the rest in a launch of its own
        const Matmul4bitCudaPlan head = cuda::plan_matmul_4bit(params(first, 0), gpu);
        const Matmul4bitCudaPlan rest = cuda::plan_matmul_4bit(params(m - first, 0), gpu);
        plans.push_back({head, "two launches: ", nullptr});
        for (const bool early : {false, true}) {
          candidates.push_back({lengthy ? few : std::max(24, copies), [=, &params](int i) {
                                  Matmul4bitParams p = params(first, i);
                                  p.programmatic_launch = early && may_launch_early;
                                  check(cuda::matmul_4bit(head, p, Stream{stream}));
                                  p.m = m - first;
                                  p.input = static_cast<const char*>(p.input) + first * k * 2;
                                  p.output = static_cast<char*>(p.output) + first * n * 2;
                                  check(cuda::matmul_4bit(rest, p, Stream{stream}));
                                }});
        }
      }
      if (members.size() > 1) {
        const auto count = static_cast<int32_t>(members.size());
        const Matmul4bitCudaPlan grouped =
            cuda::plan_matmul_4bit_group(group(m, 0, false).data(), count, gpu);
        const auto add = [&](Matmul4bitCudaPlan plan, const char* prefix) {
          plans.push_back({plan, prefix, nullptr});
          for (const bool early : {false, true}) {
            candidates.push_back(
                {std::max(24, copies), [=, &group](int i) {
                   const auto all = group(m, i, early);
                   if (plan.members > 1) {
                     check(cuda::matmul_4bit_group(plan, all.data(), count, Stream{stream}));
                     return;
                   }
                   for (const Matmul4bitParams& p : all) {
                     check(cuda::matmul_4bit(cuda::plan_matmul_4bit(p, gpu), p, Stream{stream}));
                   }
                 }});
          }
        };
        if (grouped.grid_x > 0) add(grouped, "group ");
        add(cuda::plan_matmul_4bit(group(m, 0, false)[0], gpu), "one by one: ");
      } else if (chosen.fused || chosen.id != cuda::kGeneral) {
        consider(chosen,
                 first < m ? "~ " : "");  // an advised library call is measured in its own column
      }
      const bool hopper = gpu.compute_capability == 90;
      for (int v = 0; variants && !backward && hopper && v < cuda::kMidVariantCount; ++v) {
        const cuda::MidVariant& variant = cuda::kMidVariants[v];
        if (m > 2 * variant.tokens || (variant.tokens > 16 && m <= variant.tokens / 2) ||
            !cuda::mid_applies(params(m, 0))) {
          continue;
        }
        for (const int splits : {1, 2, 4, 8}) {
          const Matmul4bitCudaPlan plan = cuda::plan_mid(params(m, 0), gpu, v, splits);
          if (plan.grid_x == 0 || (plan.id == chosen.id && splits == chosen.splits)) continue;
          if (splits > 1 && plan.grid_x > gpu.multiprocessors) continue;
          consider(plan, "~ ");
        }
      }
      for (int v = 0; variants && hopper && v < cuda::kLargeVariantCount; ++v) {
        const int64_t tile = cuda::kLargeVariants[v].tokens;
        if ((!backward && m <= 32) || (m < tile - 32 && tile > 64) ||
            !cuda::large_applies(params(m, 0))) {
          continue;
        }
        for (const int together : {2, 1}) {
          for (const int splits : {1, 2, 4}) {
            const Matmul4bitCudaPlan plan =
                cuda::plan_large(params(m, 0), gpu, v, together, splits, backward);
            if (plan.grid_x == 0 ||
                (plan.id == chosen.id && together == chosen.together && splits == chosen.splits)) {
              continue;
            }
            if (splits > 1 && plan.grid_x > 2 * gpu.multiprocessors) continue;
            consider(plan, "~ ");
          }
        }
      }
      for (int v = 0; variants && !backward && v < cuda::kMidSm80VariantCount; ++v) {
        const cuda::MidSm80Variant& variant = cuda::kMidSm80Variants[v];
        const Matmul4bitParams p = params(m, 0);
        if (members.size() > 1 || !cuda::mid_sm80_applies(p) ||
            variant.granule != cuda::mid_sm80_granule(p) || m > 2 * variant.tokens ||
            (variant.tokens > 16 && m <= variant.tokens / 2)) {
          continue;
        }
        const Matmul4bitCudaPlan plan = cuda::plan_mid_sm80(&p, 1, gpu, v);
        if (plan.grid_x > 0 && plan.id != chosen.id) consider(plan, "~ ");
      }
      for (int v = 0; variants && !backward && v < cuda::kSmallVariantCount; ++v) {
        const cuda::SmallVariant& variant = cuda::kSmallVariants[v];
        if (m > variant.tokens || variant.fine != (blocksize == 32)) continue;
        const Matmul4bitCudaPlan plan = cuda::plan_small(params(m, 0), gpu, v);
        if (plan.grid_x > 0 && plan.id != chosen.id) consider(plan, "~ ");
      }
      const std::vector<double> us = time(candidates);
      for (size_t i = 0; i < plans.size(); ++i) {
        const auto& [plan, prefix, workspace] = plans[i];
        const Row row{shape,
                      std::string(prefix) + plan.kernel + (plan.together > 1 ? "_pair" : "") +
                          (plan.splits > 1 ? "_s" + std::to_string(plan.splits) : ""),
                      n,
                      k,
                      m,
                      backward,
                      plan.fused,
                      us[2 * i + 3],
                      us[2 * i + 2],
                      us[0],
                      us[1]};
        if (workspace != nullptr) check(cudaFree(workspace));
        const double terabytes = static_cast<double>(weight_bytes) / row.us * 1e-6;
        char line[256];
        std::snprintf(line, sizeof line,
                      "| %s | %ld | %s%s | %.2f | %.2f | %.2f | %.0f | %.2f | %.2f | %.1f |\n",
                      shape.c_str(), m, row.kernel.c_str(), row.fused ? "" : " (not advised)",
                      row.us, row.plain_us, terabytes, 100 * terabytes / ceiling, row.cublas_us,
                      row.cublas_us / row.us, row.dequantize_us);
        std::printf("%s", line);
        std::fflush(stdout);
        out += line;
        rows.push_back(row);
      }
    }
    for (void* p :
         {static_cast<void*>(packed), static_cast<void*>(absmax_8bit), static_cast<void*>(absmax),
          static_cast<void*>(absmax2), static_cast<void*>(map), static_cast<void*>(offset),
          static_cast<void*>(dense), static_cast<void*>(x), static_cast<void*>(y)}) {
      check(cudaFree(p));
    }
  }
  if (!markdown.empty()) std::ofstream(markdown) << out;
  if (!json.empty()) {
    std::ofstream file(json);
    file << "[";
    for (size_t i = 0; i < rows.size(); ++i) {
      const Row& r = rows[i];
      file << (i > 0 ? ",\n " : "\n ") << "{\"n\": " << r.n << ", \"k\": " << r.k
           << ", \"m\": " << r.m << ", \"backward\": " << (r.backward ? "true" : "false")
           << ", \"kernel\": \"" << r.kernel << "\", \"us\": " << r.us
           << ", \"us_no_early_launch\": " << r.plain_us << ", \"cublas_us\": " << r.cublas_us
           << ", \"dequantize_cublas_us\": " << r.dequantize_us << "}";
    }
    file << "\n]\n";
  }
  return 0;
}
