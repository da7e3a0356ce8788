// Speed of the CUDA quantizers against the copy bandwidth, in one run. Bytes are those that must
// move: input, codes, statistics. Usage: quantize_cuda_bench [elements] [FILE.md]
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "codebook.h"
#include "lowbit/kernels/blockwise.h"
#include "lowbit/kernels/fourbit.h"
#include "lowbit/kernels/int8.h"

namespace {

using namespace lowbit::kernels;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}
void check(Status status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.reason);
  std::exit(1);
}

template <typename T>
T* device(size_t count) {
  void* p = nullptr;
  check(cudaMalloc(&p, count * sizeof(T)));
  return static_cast<T*>(p);
}

std::string table;

/// To standard output and to the table of the file.
void print(const char* format, ...) {
  char line[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  std::fputs(line, stdout);
  table += line;
}

/// Median of 21 timings, in seconds.
double time(const std::function<void()>& work) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 24; ++i) {
    check(cudaEventRecord(begin));
    work();
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 3) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1e-3;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t n = argc > 1 ? std::atoll(argv[1]) : int64_t{1} << 28;
  const int64_t cols = 4096, rows = 14336, small = rows * cols;
  std::vector<uint16_t> host(1 << 22);
  std::mt19937 engine(1);
  std::normal_distribution<float> normal;
  for (auto& v : host) {
    const float x = normal(engine) * 0.02f;
    v = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, x) >> 16);
  }
  auto* x = device<uint16_t>(n);
  auto* y = device<uint16_t>(n);
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(host.size())) {
    check(cudaMemcpy(x + i, host.data(), std::min<size_t>(host.size(), n - i) * 2,
                     cudaMemcpyHostToDevice));
  }
  auto* codes = device<uint8_t>(n);
  auto* absmax = device<float>(n / 32 + 1);
  auto* map = device<float>(256);
  auto* flags = device<uint8_t>(cols);
  // Activations: one column in a thousand holds outliers, far beyond the threshold.
  std::vector<uint16_t> activations(small);
  for (int64_t i = 0; i < small; ++i) {
    activations[i] = i % cols % 1000 == 0 ? uint16_t{0x41a0} : host[i % host.size()];  // 20
  }
  auto* with_outliers = device<uint16_t>(small);
  check(cudaMemcpy(with_outliers, activations.data(), small * 2, cudaMemcpyHostToDevice));
  auto* stats = device<float>(rows);
  check(cudaMemcpy(map, codebook::kDynamicSigned.values, 1024, cudaMemcpyHostToDevice));
  check(cudaMemset(flags, 0, cols));

  const double copy_time =
      time([&] { check(cudaMemcpyAsync(y, x, n * 2, cudaMemcpyDeviceToDevice)); });
  const double ceiling = 4.0 * n / copy_time;
  print(
      "| op | elements | us | TB/s | %% of copy | goal %% | |\n| --- | --- | --- | --- | --- | --- "
      "| --- |\n");
  print("| copy | %lld | %.1f | %.2f | 100 | | |\n", static_cast<long long>(n), copy_time * 1e6,
        ceiling / 1e12);
  const auto row = [&](const char* name, int64_t elements, double bytes, double goal,
                       const std::function<void()>& work) {
    const double t = time(work), percent = 100 * bytes / t / ceiling;
    print("| %s | %lld | %.1f | %.2f | %.0f | %.0f | %s |\n", name,
          static_cast<long long>(elements), t * 1e6, bytes / t / 1e12, percent, goal,
          percent >= goal ? "met" : "not met");
  };
  const auto bf16 = DType::kBFloat16;
  for (auto type : {QuantType::kNF4, QuantType::kFP4}) {
    const bool nf4 = type == QuantType::kNF4;
    row(nf4 ? "quantize_4bit nf4 64" : "quantize_4bit fp4 64", n, n * (2.5 + 4.0 / 64), 85, [&] {
      check(cuda::quantize_4bit({x, bf16, n, 64, type, codes, absmax}, Stream{}));
    });
    row(nf4 ? "dequantize_4bit nf4 64" : "dequantize_4bit fp4 64", n, n * (2.5 + 4.0 / 64), 90,
        [&] {
          Dequantize4bitParams p;
          p.packed = codes;
          p.scales.absmax = absmax;
          p.numel = n;
          p.quant_type = type;
          p.output = y;
          p.output_dtype = bf16;
          check(cuda::dequantize_4bit(p, Stream{}));
        });
  }
  row("quantize_4bit nf4 4096", n, n * 2.5, 85, [&] {
    check(cuda::quantize_4bit({x, bf16, n, 4096, QuantType::kNF4, codes, absmax}, Stream{}));
  });
  for (int64_t blocksize : {256, 64, 4096}) {
    char name[64];
    std::snprintf(name, sizeof name, "quantize_blockwise %lld", static_cast<long long>(blocksize));
    row(name, n, n * (3.0 + 4.0 / blocksize), 80, [&] {
      check(cuda::quantize_blockwise({x, bf16, n, blocksize, map, codes, absmax}, Stream{}));
    });
    std::snprintf(name, sizeof name, "dequantize_blockwise %lld",
                  static_cast<long long>(blocksize));
    row(name, n, n * (3.0 + 4.0 / blocksize), 90, [&] {
      check(cuda::dequantize_blockwise({codes, absmax, map, n, blocksize, y, bf16}, Stream{}));
    });
  }
  for (float threshold : {0.0f, 6.0f}) {
    // The flags are set by the kernel and never cleared: the outliers are the same in every round.
    QuantizeRowwiseParams p{threshold > 0 ? with_outliers : x, cols,  bf16, rows, cols, threshold,
                            reinterpret_cast<int8_t*>(codes),  stats, flags};
    row(threshold > 0 ? "int8_vectorwise_quant t=6, outliers" : "int8_vectorwise_quant t=0", small,
        small * 3.0, threshold > 0 ? 60 : 80, [&] {
          check(cuda::quantize_rowwise(p, Stream{}));
          if (threshold > 0) check(cuda::zero_outlier_columns(p, Stream{}));
        });
  }
  if (argc > 2) std::ofstream(argv[2]) << table;
}
