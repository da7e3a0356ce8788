#include "llm/cpu_linear.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <array>

#include "llm/weight.h"
#include "lowbit/kernels/decoder.h"
#include "lowbit/kernels/int8.h"
#include "lowbit/quantized_tensor.h"
#include "ops/parallel.h"
#include "ops/weight.h"

namespace lowbit::llm {
namespace {

constexpr const char* kOp = "forward";
/// Up to here a dense weight is read once by dot products; with more rows of the input a GEMM is
/// faster.
constexpr int64_t kFewRows = 8;
/// Weight rows that are widened to float32 at a time for a GEMM.
constexpr int64_t kStripRows = 1024;

/// Where a weight's numbers are: Module::to() changes that and keeps the tensor.
const void* data_of(const at::Tensor& weight) {
  return is_quantized(weight) ? packed_weight(weight).const_data_ptr() : weight.const_data_ptr();
}

at::Tensor view(const float* data, int64_t rows, int64_t cols) {
  return at::from_blob(const_cast<float*>(data), {rows, cols}, at::kFloat);
}

}  // namespace

CpuLinear::CpuLinear(const at::Tensor& weight, const at::Tensor& bias, bool fast)
    : weight_(weight),
      data_(data_of(weight)),
      bias_(bias),
      fast_(fast),
      rows_(weight.size(0)),
      cols_(weight.size(1)) {
  if (bias.defined()) bias32_ = bias.detach().to(at::kFloat).contiguous();
  const WeightView quantized = view_weight(weight);
  if (quantized.is_4bit()) {
    kind_ = Kind::k4bit;
    w4_ = *quantized.weight_4bit;
  } else if (quantized.is_8bit()) {
    kind_ = quantized.weight_only ? Kind::k8bitWeightOnly : Kind::k8bit;
    w8_ = *quantized.weight_8bit;
    threshold_ = quantized.threshold;
  } else {
    ops::check_float(kOp, "weight", weight);
    LOWBIT_CHECK(weight.is_contiguous(), kOp, "weight", "contiguous", weight.strides());
  }
}

bool CpuLinear::reads(const at::Tensor& weight, const at::Tensor& bias) const {
  return weight_.is_same(weight) && bias_.is_same(bias) && data_ == data_of(weight);
}

kernels::Matmul4bitParams CpuLinear::params_4bit(const float* input, int64_t m,
                                                 float* output) const {
  return {.input = input,
          .input_stride = cols_,
          .dtype = kernels::DType::kFloat32,
          .m = m,
          .n = rows_,
          .k = cols_,
          .packed = ops::packed_bytes(w4_),
          .scales = ops::block_scales(w4_),
          .blocksize = w4_.blocksize,
          .quant_type = ops::kernel_type(w4_.quant_type),
          .bias = bias32_.defined() ? bias32_.const_data_ptr() : nullptr,
          .output = output,
          .accuracy = fast_ ? kernels::MatmulAccuracy::kFast : kernels::MatmulAccuracy::kAuto};
}

void CpuLinear::multiply_dense(const float* input, int64_t m, float* output) const {
  kernels::LinearDenseParams p{
      .input = input,
      .weight = weight_.const_data_ptr(),
      .weight_dtype = ops::kernel_dtype(weight_.scalar_type()),
      .bias = bias32_.defined() ? bias32_.const_data_ptr<float>() : nullptr,
      .output = output,
      .m = m,
      .n = rows_,
      .k = cols_};
  if (m <= kFewRows) {
    ops::for_units(kOp, rows_, ops::grain_of(cols_ * m), [&](int64_t begin, int64_t end) {
      return kernels::cpu::linear_dense(p, begin, end);
    });
    return;
  }
  const at::Tensor x = view(input, m, cols_), y = view(output, m, rows_);
  for (int64_t first = 0; first < rows_; first += kStripRows) {
    const int64_t count = std::min(kStripRows, rows_ - first);
    at::Tensor strip = weight_.detach().narrow(0, first, count);
    if (strip.scalar_type() != at::kFloat) {
      at::Tensor wide = at::empty({count, cols_}, at::kFloat);
      const kernels::WidenParams widen{.input = strip.const_data_ptr(),
                                       .input_dtype = p.weight_dtype,
                                       .output = wide.mutable_data_ptr<float>(),
                                       .count = count * cols_};
      ops::for_units(kOp, widen.count, ops::grain_of(1), [&](int64_t begin, int64_t end) {
        return kernels::cpu::widen(widen, begin, end);
      });
      strip = wide;
    }
    at::Tensor columns = y.narrow(1, first, count);
    at::mm_out(columns, x, strip.t());
  }
  if (bias32_.defined()) at::Tensor(y).add_(bias32_);
}

void CpuLinear::multiply(const float* input, int64_t m, float* output) const {
  switch (kind_) {
    case Kind::k4bit: {
      const LinearCall call{this, output};
      return multiply_together({&call, 1}, input, m);
    }
    case Kind::kDense:
      return multiply_dense(input, m, output);
    case Kind::k8bit: {
      const at::Tensor y = ops::linear_8bit(view(input, m, cols_), w8_, bias32_, threshold_);
      std::copy_n(y.const_data_ptr<float>(), m * rows_, output);
      return;
    }
    case Kind::k8bitWeightOnly: {
      const kernels::LinearInt8Params p{
          .input = input,
          .input_stride = cols_,
          .m = m,
          .n = rows_,
          .k = cols_,
          .q = w8_.q.const_data_ptr<int8_t>(),
          .stats = w8_.stats.const_data_ptr<float>(),
          .bias = bias32_.defined() ? bias32_.const_data_ptr() : nullptr,
          .output = output};
      ops::for_units(kOp, rows_, ops::grain_of(cols_ * m), [&](int64_t begin, int64_t end) {
        return kernels::cpu::linear_int8(p, begin, end);
      });
      return;
    }
  }
}

void multiply_together(std::span<const LinearCall> calls, const float* input, int64_t m) {
  constexpr size_t kMost = 4;
  std::array<kernels::Matmul4bitParams, kMost> params;
  std::array<kernels::Matmul4bitPlan, kMost> plans;
  bool together = calls.size() <= kMost;
  for (size_t i = 0; together && i < calls.size(); ++i) {
    const CpuLinear& linear = *calls[i].linear;
    together = linear.kind_ == CpuLinear::Kind::k4bit && linear.cols_ == calls[0].linear->cols_;
    if (!together) break;
    params[i] = linear.params_4bit(input, m, calls[i].output);
    plans[i] = kernels::cpu::plan_matmul_4bit(params[i]);
    // The same kernel reads the same prepared input.
    together = plans[i].id == plans[0].id && plans[i].workspace_bytes == plans[0].workspace_bytes;
  }
  if (!together) {
    for (const LinearCall& call : calls) call.linear->multiply(input, m, call.output);
    return;
  }

  const ops::Workspace workspace(plans[0].workspace_bytes);
  int64_t units = 0;
  for (size_t i = 0; i < calls.size(); ++i) {
    params[i].workspace = workspace.data();
    units += plans[i].units;
  }
  if (m == 1) {
    ops::check_status(
        kOp, kernels::cpu::matmul_4bit_prepare(plans[0], params[0], 0, plans[0].prepare_units));
  } else {
    ops::for_units(kOp, plans[0].prepare_units, ops::grain_of(params[0].k),
                   [&](int64_t begin, int64_t end) {
                     return kernels::cpu::matmul_4bit_prepare(plans[0], params[0], begin, end);
                   });
  }
  ops::for_units(kOp, units, plans[0].grain, [&](int64_t begin, int64_t end) {
    int64_t offset = 0;  // of the first unit of this weight
    for (size_t i = 0; i < calls.size(); offset += plans[i++].units) {
      const int64_t from = std::max(begin - offset, int64_t{0});
      const int64_t to = std::min(end - offset, plans[i].units);
      if (from >= to) continue;
      const kernels::Status status = kernels::cpu::matmul_4bit(plans[i], params[i], from, to);
      if (!status.ok()) return status;
    }
    return kernels::ok_status();
  });
}

void CpuLinear::gather(const int64_t* ids, int64_t count, float* output) const {
  const auto spread = [&](const auto& kernel) {
    ops::for_units(kOp, count, ops::grain_of(cols_), kernel);
  };
  switch (kind_) {
    case Kind::k4bit: {
      const kernels::Embedding4bitParams p{.ids = ids,
                                           .count = count,
                                           .rows = rows_,
                                           .dim = cols_,
                                           .packed = ops::packed_bytes(w4_),
                                           .scales = ops::block_scales(w4_),
                                           .blocksize = w4_.blocksize,
                                           .quant_type = ops::kernel_type(w4_.quant_type),
                                           .output = output};
      return spread(
          [&](int64_t begin, int64_t end) { return kernels::cpu::embedding_4bit(p, begin, end); });
    }
    case Kind::k8bit:
    case Kind::k8bitWeightOnly: {
      const kernels::EmbeddingInt8Params p{.ids = ids,
                                           .count = count,
                                           .rows = rows_,
                                           .dim = cols_,
                                           .q = w8_.q.const_data_ptr<int8_t>(),
                                           .stats = w8_.stats.const_data_ptr<float>(),
                                           .output = output};
      return spread(
          [&](int64_t begin, int64_t end) { return kernels::cpu::embedding_int8(p, begin, end); });
    }
    case Kind::kDense:
      return spread([&](int64_t begin, int64_t end) {
        const auto* rows = static_cast<const char*>(weight_.const_data_ptr());
        const auto size = static_cast<int64_t>(weight_.element_size());
        for (int64_t i = begin; i < end; ++i) {
          const kernels::Status status =
              kernels::cpu::widen({.input = rows + ids[i] * cols_ * size,
                                   .input_dtype = ops::kernel_dtype(weight_.scalar_type()),
                                   .output = output + i * cols_,
                                   .count = cols_},
                                  0, cols_);
          if (!status.ok()) return status;
        }
        return kernels::ok_status();
      });
  }
}

}  // namespace lowbit::llm
