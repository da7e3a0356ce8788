// Speed of the CPU quantizers and dequantizers against memcpy in the same run, on data that does
// not fit the caches. Bytes are those that must move: input, codes, statistics, output; a copy
// reads and writes each byte.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "lowbit/kernels/blockwise.h"
#include "lowbit/kernels/cpu.h"
#include "lowbit/kernels/fourbit.h"
#include "lowbit/kernels/int8.h"
#include "lowbit/kernels/maps.h"
#include "scalar.h"
#include "team.h"

namespace lowbit::bench {
namespace {

using namespace lowbit::kernels;

double now() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

/// Median of 11 runs, seconds.
double median_time(const std::function<void()>& work) {
  work();
  std::vector<double> times(11);
  for (double& t : times) {
    const double start = now();
    work();
    t = now() - start;
  }
  std::nth_element(times.begin(), times.begin() + 5, times.end());
  return times[5];
}

class Report {
 public:
  explicit Report(double copy_bytes_per_second) : ceiling_(copy_bytes_per_second) {
    std::printf("| %-34s | %8s | %8s | %9s |\n| --- | --- | --- | --- |\n", "operation", "ms",
                "GB/s", "% of copy");
  }
  void row(const std::string& name, double bytes, const std::function<void()>& work) {
    const double t = median_time(work);
    std::printf("| %-34s | %8.2f | %8.1f | %9.0f |\n", name.c_str(), t * 1e3, bytes / t * 1e-9,
                100.0 * bytes / t / ceiling_);
  }

 private:
  double ceiling_;
};

void require(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.reason);
}

const char* name(DType t) {
  return t == DType::kFloat32 ? "float32" : t == DType::kFloat16 ? "float16" : "bfloat16";
}

int run(int64_t n, int threads) {
  constexpr int64_t kCols = 4096;
  n = n / kCols * kCols;
  const int64_t rows = n / kCols;
  Team team(threads);
  std::vector<float> wide(static_cast<size_t>(n)), copy(static_cast<size_t>(n));
  std::vector<uint8_t> codes(static_cast<size_t>(n)), columns(kCols);
  std::vector<float> absmax(static_cast<size_t>(n / 32));
  std::mt19937 random(1);
  std::vector<float> sample(1 << 16);
  std::normal_distribution<float> normal;
  for (float& v : sample) v = 0.02f * normal(random);

  const double copy_time = median_time([&] {
    team.split(n, [&](int64_t begin, int64_t end) {
      std::memcpy(copy.data() + begin, wide.data() + begin, static_cast<size_t>(end - begin) * 4);
    });
  });
  const double ceiling = 8.0 * static_cast<double>(n) / copy_time;
  std::printf("%s, %d threads, %lld elements; memcpy %.1f GB/s read and written\n",
              cpu::isa_name(cpu::active_isa()), threads, static_cast<long long>(n), ceiling * 1e-9);
  Report report(ceiling);
  const auto elements = static_cast<double>(n);
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    const auto item = static_cast<double>(itemsize(dtype));
    for (int64_t i = 0; i < n; ++i) {
      store_element(wide.data(), dtype, i, sample[static_cast<size_t>(i) % sample.size()]);
    }
    for (const QuantType type : {QuantType::kNF4, QuantType::kFP4}) {
      const std::string label =
          std::string(type == QuantType::kNF4 ? " nf4 64 " : " fp4 64 ") + name(dtype);
      const double bytes = elements * (item + 0.5 + 4.0 / 64);
      report.row("quantize_4bit" + label, bytes, [&] {
        team.split(n / 64, [&](int64_t begin, int64_t end) {
          require(cpu::quantize_4bit({wide.data(), dtype, n, 64, type, codes.data(), absmax.data()},
                                     begin, end));
        });
      });
      Dequantize4bitParams p;
      p.packed = codes.data();
      p.scales.absmax = absmax.data();
      p.numel = n;
      p.quant_type = type;
      p.output = copy.data();
      p.output_dtype = dtype;
      report.row("dequantize_4bit" + label, bytes, [&] {
        team.split(n / 64, [&](int64_t begin, int64_t end) {
          require(cpu::dequantize_4bit(p, begin, end));
        });
      });
    }
    const double bytes = elements * (item + 1.0 + 4.0 / 256);
    report.row(std::string("quantize_blockwise 256 ") + name(dtype), bytes, [&] {
      team.split(n / 256, [&](int64_t begin, int64_t end) {
        require(cpu::quantize_blockwise(
            {wide.data(), dtype, n, 256, dynamic_map(true), codes.data(), absmax.data()}, begin,
            end));
      });
    });
    report.row(std::string("dequantize_blockwise 256 ") + name(dtype), bytes, [&] {
      team.split(n / 256, [&](int64_t begin, int64_t end) {
        require(cpu::dequantize_blockwise(
            {codes.data(), absmax.data(), dynamic_map(true), n, 256, copy.data(), dtype}, begin,
            end));
      });
    });
    auto* q = reinterpret_cast<int8_t*>(codes.data());
    for (const float threshold : {0.0f, 6.0f}) {
      const std::string label =
          threshold > 0.0f ? "quantize_rowwise threshold 6 " : "quantize_rowwise ";
      report.row(label + name(dtype), elements * (item + 1.0), [&] {
        team.split(rows, [&](int64_t begin, int64_t end) {
          require(cpu::quantize_rowwise(
              {wide.data(), kCols, dtype, rows, kCols, threshold, q, absmax.data(), columns.data()},
              begin, end));
        });
      });
    }
    report.row(std::string("dequantize_rowwise ") + name(dtype), elements * (item + 1.0), [&] {
      team.split(rows, [&](int64_t begin, int64_t end) {
        require(cpu::dequantize_rowwise({q, absmax.data(), rows, kCols, copy.data(), dtype}, begin,
                                        end));
      });
    });
  }
  return 0;
}

}  // namespace
}  // namespace lowbit::bench

int main(int argc, char** argv) {
  CLI::App app("Quantize and dequantize on the CPU");
  int64_t elements = int64_t{1} << 26;
  int threads = 2;
  app.add_option("--elements", elements)->check(CLI::Range(int64_t{4096}, int64_t{1} << 40));
  app.add_option("--threads", threads)->check(CLI::Range(1, 4096));
  CLI11_PARSE(app, argc, argv);
  return lowbit::bench::run(elements, threads);
}
