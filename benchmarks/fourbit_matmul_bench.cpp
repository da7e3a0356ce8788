// The 4-bit matmul on the CPU: single shapes with cold weights, and all linear layers of a small
// language model (SmolLM2-135M) for one token and for a prompt.
// Percentages are of ceilings measured in the same run: sequential reads, and float32 FMA.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <random>

#include "lowbit/kernels/cpu.h"
#include "lowbit/kernels/fourbit.h"
#include "lowbit/kernels/int8.h"
#include "team.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lowbit::bench {
namespace {

using namespace lowbit::kernels;

double now() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

struct Time {
  double median, tenth;  ///< seconds; a tenth of the runs were faster than `tenth`
};

/// For at least `least` runs and 0.15 s.
template <typename F>
Time time_of(F&& f, int least = 7) {
  f();
  std::vector<double> times;
  for (double total = 0.0; static_cast<int>(times.size()) < least || total < 0.15;) {
    const double start = now();
    f();
    times.push_back(now() - start);
    total += times.back();
  }
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times[times.size() / 10]};
}

struct Aligned {
  explicit Aligned(size_t bytes)
      : data(static_cast<char*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64))) {
    std::fill(data.get(), data.get() + bytes, 1);
  }
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> data;
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data.get());
  }
};

/// A random NF4 weight of blocksize 64 with nested statistics.
struct Weight {
  int64_t n, k;
  Aligned packed, codes, absmax2;
  Weight(int64_t rows, int64_t columns, std::mt19937_64& rng)
      : n(rows),
        k(columns),
        packed(static_cast<size_t>(rows * columns / 2)),
        codes(static_cast<size_t>(rows * columns / 64)),
        absmax2(static_cast<size_t>(rows * columns / 64 / 256 + 1) * 4) {
    for (int64_t i = 0; i < n * k / 16; ++i) packed.as<uint64_t>()[i] = rng();
    for (int64_t i = 0; i < n * k / 64; ++i) codes.as<uint8_t>()[i] = static_cast<uint8_t>(rng());
    std::fill_n(absmax2.as<float>(), n * k / 64 / 256 + 1, 0.05f);
  }
  int64_t bytes() const { return n * k / 2 + n * k / 64; }
};

struct Runner {
  static constexpr int32_t kMostMembers = 3;
  Team& team;
  DType dtype;
  MatmulAccuracy accuracy;
  std::vector<float> map = std::vector<float>(256);
  float offset = 0.06f;
  Aligned input{512 * 16384 * 4}, output{512 * 50000 * 4}, workspace{512 * 16384 * 4};

  Runner(Team& t, DType type, MatmulAccuracy a) : team(t), dtype(type), accuracy(a) {
    for (int i = 0; i < 256; ++i) map[i] = static_cast<float>(i - 127) / 128.0f;
    std::mt19937 rng(7);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < 512 * 4096; ++i) {
      if (dtype == DType::kFloat32) {
        input.as<float>()[i] = normal(rng);
      } else {
        input.as<uint16_t>()[i] = static_cast<uint16_t>(0x3c00 + (rng() & 0x81ff));
      }
    }
  }
  Matmul4bitParams params(Weight& w, int64_t m) {
    Matmul4bitParams p;
    p.input = input.data.get();
    p.input_stride = w.k;
    p.dtype = dtype;
    p.m = m, p.n = w.n, p.k = w.k;
    p.packed = w.packed.as<uint8_t>();
    p.scales = {nullptr, w.codes.as<uint8_t>(), map.data(), w.absmax2.as<float>(), &offset};
    p.output = output.data.get();
    p.workspace = workspace.data.get();
    p.accuracy = accuracy;
    return p;
  }
  void check(const Status& s) {
    if (!s.ok()) std::fprintf(stderr, "%s\n", s.reason);
  }
  /// Weights of one input: prepared once, one fork.
  const char* matmul(Weight* weights, int32_t count, int64_t m) {
    Matmul4bitParams p[kMostMembers];
    int64_t columns = 0;
    for (int32_t i = 0; i < count; ++i) {
      p[i] = params(weights[i], m);
      p[i].output = output.data.get() + columns * m * itemsize(dtype);
      columns += weights[i].n;
    }
    const Matmul4bitPlan plan = cpu::plan_matmul_4bit_group(p, count);
    if (plan.prepare_units < 2 * plan.prepare_grain) {
      check(cpu::matmul_4bit_prepare(plan, p[0], 0, plan.prepare_units));
    } else {
      team.split(plan.prepare_units, [&](int64_t begin, int64_t end) {
        check(cpu::matmul_4bit_prepare(plan, p[0], begin, end));
      });
    }
    team.split(plan.units, [&](int64_t begin, int64_t end) {
      check(cpu::matmul_4bit_group(plan, p, count, begin, end));
    });
    return plan.kernel;
  }
  void backward(Weight& w, int64_t m) {
    Matmul4bitParams p = params(w, m);
    p.input_stride = w.n;
    team.split(ceil_div(w.k, 64), [&](int64_t begin, int64_t end) {
      check(cpu::matmul_4bit_backward_input(p, begin, end));
    });
  }
};

double read_ceiling(Team& team) {
  constexpr int64_t kWords = 24 << 20;
  static Aligned buffer(kWords * 8);
  const auto* words = buffer.as<uint64_t>();
  std::vector<uint64_t> sums(static_cast<size_t>(team.size()) * 8);
  const Time t = time_of([&] {
    team.run([&](int i) {
      const int64_t begin = kWords * i / team.size(), end = kWords * (i + 1) / team.size();
      uint64_t s[4] = {};
      for (int64_t j = begin; j + 4 <= end; j += 4) {
        for (int u = 0; u < 4; ++u) s[u] ^= words[j + u];
      }
      sums[static_cast<size_t>(i) * 8] += s[0] ^ s[1] ^ s[2] ^ s[3];
    });
  });
  return kWords * 8 / t.tenth;
}

#if defined(__x86_64__)
template <typename T>
__attribute__((target("avx512f"))) float fma_loop_512(int64_t steps, T) {
  __m512 a[12];
  for (int i = 0; i < 12; ++i) a[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f);
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) a[i] = _mm512_fmadd_ps(a[i], x, y);
  }
  for (int i = 1; i < 12; ++i) a[0] = _mm512_add_ps(a[0], a[i]);
  return _mm512_cvtss_f32(a[0]);
}
__attribute__((target("avx2,fma"))) float fma_loop_256(int64_t steps) {
  __m256 a[12];
  for (int i = 0; i < 12; ++i) a[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(0.001f);
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) a[i] = _mm256_fmadd_ps(a[i], x, y);
  }
  for (int i = 1; i < 12; ++i) a[0] = _mm256_add_ps(a[0], a[i]);
  return _mm256_cvtss_f32(a[0]);
}
#endif

double fma_ceiling(Team& team) {
#if defined(__x86_64__)
  constexpr int64_t kSteps = 400000;
  const bool wide = cpu::active_isa() == cpu::Isa::kAVX512;
  std::vector<float> sums(static_cast<size_t>(team.size()) * 16);
  const Time t = time_of([&] {
    team.run([&](int i) {
      sums[static_cast<size_t>(i) * 16] = wide ? fma_loop_512(kSteps, 0) : fma_loop_256(kSteps);
    });
  });
  return kSteps * 12.0 * (wide ? 32 : 16) * team.size() / t.tenth;
#else
  return 0.0;
#endif
}

struct Ceilings {
  double read, fma;
};

void report(const char* what, int64_t n, int64_t k, int64_t m, const Time& t, double bytes,
            const Ceilings& c, const char* note) {
  const double flops = 2.0 * static_cast<double>(n * k * m);
  std::printf(
      "%-8s %6lld x %-5lld m %-4lld %10.1f us [%10.1f] %6.1f GB/s (%3.0f %%) %7.1f GFLOP/s "
      "(%3.0f %%)  %s\n",
      what, static_cast<long long>(n), static_cast<long long>(k), static_cast<long long>(m),
      t.median * 1e6, t.tenth * 1e6, bytes / t.median * 1e-9, 100.0 * bytes / t.median / c.read,
      flops / t.median * 1e-9, 100.0 * flops / t.median / c.fma, note);
  std::fflush(stdout);
}

void bench_shapes(Runner& r, const std::vector<int64_t>& rows, const Ceilings& c, bool backward) {
  std::mt19937_64 rng(1);
  const int64_t shapes[][2] = {{576, 576}, {1536, 576}, {576, 1536}, {4096, 4096}};
  for (const auto& [n, k] : shapes) {
    std::vector<Weight> copies;  // more than the caches hold
    const int64_t count = std::max<int64_t>(2, (int64_t{80} << 20) / (n * k / 2));
    for (int64_t i = 0; i < count; ++i) copies.emplace_back(n, k, rng);
    size_t next = 0;
    for (const int64_t m : rows) {
      const char* kernel = "";
      const auto weight = [&]() -> Weight& { return copies[next++ % copies.size()]; };
      Time t = time_of([&] { kernel = r.matmul(&weight(), 1, m); }, 15);
      report("forward", n, k, m, t, static_cast<double>(copies[0].bytes()), c, kernel);
      if (!backward) continue;
      t = time_of([&] { r.backward(weight(), m); }, 15);
      report("backward", n, k, m, t, static_cast<double>(copies[0].bytes()), c, "");
    }
  }
}

/// An 8-bit head with float32 input: row-wise statistics, activations kept in float32.
Time time_int8_head(Runner& r, int64_t n, int64_t k) {
  Aligned q(static_cast<size_t>(n * k)), stats(static_cast<size_t>(n) * 4);
  std::fill_n(stats.as<float>(), n, 0.01f);
  LinearInt8Params p;
  p.input = r.input.data.get();
  p.input_stride = k;
  p.dtype = r.dtype;
  p.m = 1, p.n = n, p.k = k;
  p.q = q.as<int8_t>();
  p.stats = stats.as<float>();
  p.output = r.output.data.get();
  return time_of([&] {
    r.team.split(n, [&](int64_t begin, int64_t end) { r.check(cpu::linear_int8(p, begin, end)); });
  });
}

void bench_model(Runner& r, const std::vector<int64_t>& rows, const Ceilings& c) {
  std::mt19937_64 rng(2);
  std::vector<Weight> layers;  // q, k, v, o, gate, up, down of each layer
  int64_t bytes = 0, weights = 0;
  for (int layer = 0; layer < 30; ++layer) {
    const int64_t shapes[][2] = {{576, 576},  {192, 576},  {192, 576}, {576, 576},
                                 {1536, 576}, {1536, 576}, {576, 1536}};
    for (const auto& [n, k] : shapes) {
      layers.emplace_back(n, k, rng);
      bytes += layers.back().bytes();
      weights += n * k;
    }
  }
  Weight head(49152, 576, rng);
  const Time h4 = time_of([&] { r.matmul(&head, 1, 1); });
  report("head", head.n, head.k, 1, h4, static_cast<double>(head.bytes()), c, "NF4");
  const Time h8 = time_int8_head(r, head.n, head.k);
  report("head", head.n, head.k, 1, h8, static_cast<double>(head.n * head.k), c, "int8");
  for (const int64_t m : rows) {
    const Time t = time_of([&] {
      for (size_t i = 0; i < layers.size(); i += 7) {
        r.matmul(&layers[i], 3, m);
        r.matmul(&layers[i + 3], 1, m);
        r.matmul(&layers[i + 4], 2, m);
        r.matmul(&layers[i + 6], 1, m);
      }
    });
    report("layers", weights, 1, m, t, static_cast<double>(bytes), c, "all 30 of SmolLM2-135M");
    const auto rate = [&](double layer_time, double head_time) {
      return static_cast<double>(m) / (layer_time + head_time);
    };
    std::printf(
        "linear layers alone, m = %lld: %.0f tok/s [%.0f] with an NF4 head, %.0f [%.0f] with "
        "an int8 head\n",
        static_cast<long long>(m), rate(t.median, h4.median), rate(t.tenth, h4.tenth),
        rate(t.median, h8.median), rate(t.tenth, h8.tenth));
  }
}

}  // namespace
}  // namespace lowbit::bench

int main(int argc, char** argv) {
  using namespace lowbit::bench;
  CLI::App app{"4-bit matmul on the CPU"};
  std::vector<int> threads{1, 2};
  std::vector<int64_t> rows{1, 2, 4, 8, 64, 512};
  std::string accuracy = "both", dtype = "float32", isa = "best";
  bool shapes = true, backward = false;
  app.add_option("--threads", threads);
  app.add_option("--rows", rows);
  app.add_option("--accuracy", accuracy)->check(CLI::IsMember({"both", "exact", "fast"}));
  app.add_option("--dtype", dtype)->check(CLI::IsMember({"float32", "float16", "bfloat16"}));
  app.add_option("--isa", isa)->check(CLI::IsMember({"best", "avx2"}));
  app.add_flag("--shapes,!--no-shapes", shapes);
  app.add_flag("--backward", backward);
  CLI11_PARSE(app, argc, argv);
  if (isa == "avx2") cpu::set_isa(cpu::Isa::kAVX2);
  std::printf("%s\n", cpu::isa_name(cpu::active_isa()));
  const DType type = dtype == "float32"   ? DType::kFloat32
                     : dtype == "float16" ? DType::kFloat16
                                          : DType::kBFloat16;
  for (const int count : threads) {
    Team team(count);
    const Ceilings c{read_ceiling(team), fma_ceiling(team)};
    std::printf(
        "-- %d threads; ceilings: read %.1f GB/s, float32 FMA %.1f GFLOP/s; median [fastest "
        "tenth]\n",
        count, c.read * 1e-9, c.fma * 1e-9);
    for (const bool fast : {true, false}) {
      if (accuracy != "both" && (accuracy == "fast") != fast) continue;
      std::printf("%s, %s\n", dtype.c_str(), fast ? "fast" : "exact");
      Runner runner(team, type, fast ? MatmulAccuracy::kFast : MatmulAccuracy::kExact);
      if (shapes) bench_shapes(runner, rows, c, backward);
      bench_model(runner, rows, c);
    }
  }
  return 0;
}
