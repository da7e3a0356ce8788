// Random 4-bit matmul problems with their exact answer and a bound on the error of every output.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "lowbit/kernels/fourbit.h"
#include "random_buffers.h"
#include "scales.h"

namespace lowbit::kernels::testing {

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
  FourbitProblem(const FourbitSpec& spec, std::mt19937& rng)
      : spec_(spec),
        input_stride_(spec.k + spec.extra_stride),
        packed_(ceil_div(spec.n * spec.k, 2), 1, spec.misalignment),
        absmax_(blocks(spec), 4, spec.misalignment * 4),
        codes_(blocks(spec), 1, spec.misalignment),
        input_((spec.m - 1) * input_stride_ + spec.k, itemsize(spec.dtype),
               spec.misalignment * itemsize(spec.dtype)),
        bias_(spec.n, itemsize(spec.bias_dtype)),
        output_(spec.m * spec.n, itemsize(spec.dtype), spec.misalignment * itemsize(spec.dtype)),
        map_(256),
        absmax2_(static_cast<size_t>(ceil_div(blocks(spec), kNestedBlocksize))) {
    std::normal_distribution<float> normal;
    std::uniform_int_distribution<int> byte(0, 255);
    for (size_t i = 0; i < packed_.bytes(); ++i) {
      packed_.as<uint8_t>()[i] = static_cast<uint8_t>(byte(rng));
    }
    for (int64_t b = 0; b < blocks(spec); ++b) {
      absmax_.as<float>()[b] = 0.02f + 0.1f * std::fabs(normal(rng));
      codes_.as<uint8_t>()[b] = static_cast<uint8_t>(byte(rng));
    }
    for (int i = 0; i < 256; ++i) map_[i] = static_cast<float>(i - 127) / 128.0f;
    for (auto& a : absmax2_) a = 0.03f + 0.01f * std::fabs(normal(rng));
    for (auto& v : table_) v = 3.0f * normal(rng);
    for (int64_t i = 0; i < (spec.m - 1) * input_stride_ + spec.k; ++i) {
      store_element(input_.data(), spec.dtype, i, normal(rng) * (byte(rng) < 4 ? 20.0f : 1.0f));
    }
    for (int64_t i = 0; i < spec.n; ++i)
      store_element(bias_.data(), spec.bias_dtype, i, normal(rng));
    poison_output();
  }

  Matmul4bitParams params() {
    Matmul4bitParams p;
    p.input = input_.data();
    p.input_stride = input_stride_;
    p.dtype = spec_.dtype;
    p.m = spec_.m, p.n = spec_.n, p.k = spec_.k;
    p.packed = packed_.as<uint8_t>();
    if (spec_.nested) {
      p.scales = {nullptr, codes_.as<uint8_t>(), map_.data(), absmax2_.data(), &offset_};
    } else {
      p.scales.absmax = absmax_.as<float>();
    }
    p.blocksize = spec_.blocksize;
    p.quant_type = spec_.quant_type;
    p.code = spec_.custom_table ? table_ : nullptr;
    p.bias = spec_.bias ? bias_.data() : nullptr;
    p.bias_dtype = spec_.bias_dtype;
    p.output = output_.data();
    p.accuracy = spec_.accuracy;
    return p;
  }

  GuardedBuffer& output() { return output_; }
  /// NaN in every element type.
  void poison_output() { std::memset(output_.data(), 0xff, output_.bytes()); }
  void set_input(int64_t m, int64_t k, float value) {
    store_element(input_.data(), spec_.dtype, m * input_stride_ + k, value);
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
        x[m * spec_.k + k] = load_element(input_.data(), spec_.dtype, m * input_stride_ + k);
      }
    }
    return x;
  }
  double bias(int64_t n) {
    return spec_.bias ? load_element(bias_.data(), spec_.bias_dtype, n) : 0.0;
  }
  double result(int64_t m, int64_t n) {
    return load_element(output_.data(), spec_.dtype, m * spec_.n + n);
  }

 private:
  static int64_t blocks(const FourbitSpec& s) { return ceil_div(s.n * s.k, s.blocksize); }

  FourbitSpec spec_;
  int64_t input_stride_;
  GuardedBuffer packed_, absmax_, codes_, input_, bias_, output_;
  std::vector<float> map_, absmax2_;
  float offset_ = 0.06f;
  float table_[16];
};

/// What kFast may lose in an output, from first principles.
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
