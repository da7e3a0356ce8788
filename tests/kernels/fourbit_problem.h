// Random 4-bit matmul problems with their exact answer and a bound on the error of every output.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "lowbit/kernels/fourbit.h"
#include "scales.h"

namespace lowbit::kernels::testing {

/// Storage at a chosen misalignment, with a canary behind it. Unwritten bytes read as NaN in every
/// element type.
class Guarded {
 public:
  Guarded() = default;
  Guarded(int64_t bytes, int64_t misalignment)
      : bytes_(bytes), data_(static_cast<size_t>(bytes + 64 + 64 + misalignment), 0xff) {
    const auto at = reinterpret_cast<uintptr_t>(data_.data());
    offset_ = static_cast<int64_t>((64 - at % 64) % 64) + misalignment;
    for (int i = 0; i < 32; ++i) data_[canary() + i] = kCanary;
  }
  template <typename T = void>
  T* get() {
    return reinterpret_cast<T*>(data_.data() + offset_);
  }
  int64_t bytes() const { return bytes_; }
  bool intact() const {
    for (int i = 0; i < 32; ++i) {
      if (data_[canary() + i] != kCanary) return false;
    }
    return true;
  }

 private:
  static constexpr uint8_t kCanary = 0xa5;
  size_t canary() const { return static_cast<size_t>(offset_ + bytes_); }
  int64_t bytes_ = 0, offset_ = 0;
  std::vector<uint8_t> data_;
};

inline const char* name(DType t) {
  return t == DType::kFloat32 ? "float32" : t == DType::kFloat16 ? "float16" : "bfloat16";
}
/// Half a unit in the last place, relative.
inline double rounding(DType t) {
  return t == DType::kFloat32 ? 0x1p-24 : t == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
}

struct FourbitSpec {
  int64_t m = 1, n = 1, k = 1, blocksize = 64;
  DType dtype = DType::kFloat32;
  QuantType quant_type = QuantType::kNF4;
  bool nested = false, bias = false, custom_table = false;
  DType bias_dtype = DType::kFloat32;
  MatmulAccuracy accuracy = MatmulAccuracy::kAuto;
  int64_t misalignment = 0;  // in elements of the input, bytes of the weight, floats of the scales
  int64_t extra_stride = 0;

  std::string describe() const {
    return "m " + std::to_string(m) + " n " + std::to_string(n) + " k " + std::to_string(k) +
           " blocksize " + std::to_string(blocksize) + " " + name(dtype) +
           (quant_type == QuantType::kNF4 ? " nf4" : " fp4") + (nested ? " nested" : "") +
           (bias ? std::string(" bias ") + name(bias_dtype) : "") +
           (custom_table ? " custom table" : "") + " accuracy " +
           std::to_string(static_cast<int>(accuracy)) + " misalignment " +
           std::to_string(misalignment);
  }
};

class FourbitProblem {
 public:
  FourbitProblem(const FourbitSpec& spec, std::mt19937& rng) : spec_(spec) {
    const int64_t numel = spec.n * spec.k;
    const int64_t blocks = ceil_div(numel, spec.blocksize);
    std::normal_distribution<float> normal;
    std::uniform_int_distribution<int> byte(0, 255);
    packed_ = Guarded(ceil_div(numel, 2), spec.misalignment);
    for (int64_t i = 0; i < packed_.bytes(); ++i) {
      packed_.get<uint8_t>()[i] = static_cast<uint8_t>(byte(rng));
    }
    absmax_ = Guarded(blocks * 4, spec.misalignment * 4);
    codes_ = Guarded(blocks, spec.misalignment);
    for (int64_t b = 0; b < blocks; ++b) {
      absmax_.get<float>()[b] = 0.02f + 0.1f * std::fabs(normal(rng));
      codes_.get<uint8_t>()[b] = static_cast<uint8_t>(byte(rng));
    }
    map_.resize(256);
    for (int i = 0; i < 256; ++i) map_[i] = static_cast<float>(i - 127) / 128.0f;
    absmax2_.resize(static_cast<size_t>(ceil_div(blocks, kNestedBlocksize)));
    for (auto& a : absmax2_) a = 0.03f + 0.01f * std::fabs(normal(rng));
    for (auto& v : table_) v = 3.0f * normal(rng);
    input_stride_ = spec.k + spec.extra_stride;
    input_ =
        Guarded(std::max<int64_t>(0, (spec.m - 1) * input_stride_ + spec.k) * itemsize(spec.dtype),
                spec.misalignment * itemsize(spec.dtype));
    for (int64_t i = 0; i < input_.bytes() / itemsize(spec.dtype); ++i) {
      store_element(input_.get(), spec.dtype, i, normal(rng) * (byte(rng) < 4 ? 20.0f : 1.0f));
    }
    bias_ = Guarded(spec.n * itemsize(spec.bias_dtype), 0);
    for (int64_t i = 0; i < spec.n; ++i)
      store_element(bias_.get(), spec.bias_dtype, i, normal(rng));
    output_ =
        Guarded(spec.m * spec.n * itemsize(spec.dtype), spec.misalignment * itemsize(spec.dtype));
  }

  Matmul4bitParams params() {
    Matmul4bitParams p;
    p.input = input_.get();
    p.input_stride = input_stride_;
    p.dtype = spec_.dtype;
    p.m = spec_.m, p.n = spec_.n, p.k = spec_.k;
    p.packed = packed_.get<uint8_t>();
    if (spec_.nested) {
      p.scales = {nullptr, codes_.get<uint8_t>(), map_.data(), absmax2_.data(), &offset_};
    } else {
      p.scales.absmax = absmax_.get<float>();
    }
    p.blocksize = spec_.blocksize;
    p.quant_type = spec_.quant_type;
    p.code = spec_.custom_table ? table_ : nullptr;
    p.bias = spec_.bias ? bias_.get() : nullptr;
    p.bias_dtype = spec_.bias_dtype;
    p.output = output_.get();
    p.accuracy = spec_.accuracy;
    return p;
  }

  Guarded& output() { return output_; }
  float* table() { return table_; }
  void set_input(int64_t m, int64_t k, float value) {
    store_element(input_.get(), spec_.dtype, m * input_stride_ + k, value);
  }

  std::vector<double> weights() {
    const Matmul4bitParams p = params();
    const float* table = code_table(p.quant_type, p.code);
    std::vector<double> w(static_cast<size_t>(spec_.n * spec_.k));
    for (int64_t i = 0; i < spec_.n * spec_.k; ++i) {
      w[i] =
          static_cast<double>(table[code_at(p.packed, i)]) * block_scale(p.scales, i / p.blocksize);
    }
    return w;
  }
  std::vector<double> inputs() {
    std::vector<double> x(static_cast<size_t>(spec_.m * spec_.k));
    for (int64_t m = 0; m < spec_.m; ++m) {
      for (int64_t k = 0; k < spec_.k; ++k) {
        x[m * spec_.k + k] = load_element(input_.get(), spec_.dtype, m * input_stride_ + k);
      }
    }
    return x;
  }
  double bias(int64_t n) {
    return spec_.bias ? load_element(bias_.get(), spec_.bias_dtype, n) : 0.0;
  }
  double result(int64_t m, int64_t n) {
    return load_element(output_.get(), spec_.dtype, m * spec_.n + n);
  }

 private:
  FourbitSpec spec_;
  int64_t input_stride_ = 0;
  Guarded packed_, absmax_, codes_, input_, bias_, output_;
  std::vector<float> map_, absmax2_;
  float offset_ = 0.06f;
  float table_[16];
};

/// Largest sums of integer products: what kFast may lose, per output, from first principles.
/// x_levels, w_levels: the largest integers that stand for a chunk's and a table's maximum.
inline double fast_bound(const double* x, const double* w, int64_t k, double x_levels,
                         double w_levels, double table_max, const float* block_scales) {
  double bound = 0.0;
  for (int64_t c = 0; c < k; c += 64) {
    double x_max = 0.0;
    for (int64_t i = c; i < c + 64; ++i) x_max = std::max(x_max, std::fabs(x[i]));
    for (int64_t i = c; i < c + 64; ++i) {
      const double dx = 0.5 * x_max / x_levels;
      const double dw = 0.5 * table_max * std::fabs(block_scales[i / 32]) / w_levels;
      bound += dx * (std::fabs(w[i]) + dw) + dw * std::fabs(x[i]);
    }
  }
  return bound;
}

}  // namespace lowbit::kernels::testing
