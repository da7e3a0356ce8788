// Stacks of 4-bit weights: memory and devices around the kernels.
#include "ops/grouped_mm.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "ops/device.h"
#include "ops/direct.h"
#include "ops/dispatch.h"
#include "ops/fourbit_cuda.h"
#include "ops/operands.h"
#include "ops/rows.h"
#include "ops/weight.h"

namespace lowbit::ops {
namespace direct {
namespace {

/// The ends on the CPU, checked.
at::Tensor checked_ends(const char* op, const at::Tensor& offs, int64_t m) {
  at::Tensor dense = offs.contiguous();
  const auto* ends = static_cast<const int32_t*>(dense.const_data_ptr());
  int64_t begin = 0;
  for (int64_t e = 0; e < dense.numel(); ++e) {
    LOWBIT_CHECK(begin <= ends[e] && ends[e] <= m, op, "offs",
                 c10::str("ascending and in [0, ", m, "], the number of rows"),
                 c10::str(ends[e], " behind ", begin));
    begin = ends[e];
  }
  return dense;
}

/// An expert's weight in the stack's memory.
class Expert {
 public:
  explicit Expert(const Stack4bit& stack) : stack_(stack) {
    const Weight4bit& w = stack.weight;
    const int64_t numel = stack.rows() * w.cols, blocks = numel / w.blocksize;
    separable_ = numel % w.blocksize == 0;
    scales_ = w.absmax;
    nested_ = w.nested() && blocks % kernels::kNestedBlocksize == 0;
    if (separable_ && w.nested() && !nested_) {
      // A scale of the second level spans two experts: four bytes a block in place of one.
      scales_ = dispatch::dequantize_blockwise(w.absmax_8bit, w.absmax, w.absmax_code,
                                               kernels::kNestedBlocksize, at::kFloat) +
                w.absmax_offset;
    }
    if (!separable_) dense_ = direct::dequantize_4bit(w, at::kFloat);
  }

  /// Experts begin where blocks do.
  bool separable() const { return separable_; }

  Weight4bit at(int64_t e) const {
    const Weight4bit& w = stack_.weight;
    const int64_t numel = stack_.rows() * w.cols, blocks = numel / w.blocksize;
    const auto part = [&](const at::Tensor& whole, int64_t length) {
      return whole.narrow(0, e * length, length);
    };
    Weight4bit one = w;
    one.rows = stack_.rows();
    // Whole blocks are whole bytes, of any storage.
    one.packed = at::from_blob(const_cast<uint8_t*>(packed_bytes(w)) + e * numel / 2, {numel / 2},
                               at::kByte);
    if (nested_) {
      one.absmax_8bit = part(w.absmax_8bit.view(-1), blocks);
      one.absmax = part(scales_.view(-1), blocks / kernels::kNestedBlocksize);
    } else {
      one.absmax_8bit = at::Tensor();
      one.absmax = part(scales_.view(-1), blocks);
    }
    return one;
  }

  /// [N, K], float32, where the expert is not separable.
  at::Tensor dense(int64_t e) const { return dense_.narrow(0, e * stack_.rows(), stack_.rows()); }

 private:
  const Stack4bit& stack_;
  bool separable_, nested_;
  at::Tensor scales_, dense_;
};

/// Each group of rows times its expert's weight, transposed or not.
at::Tensor run_on_cpu(const char* op, const char* argument, const at::Tensor& input,
                      const Stack4bit& stack, const at::Tensor& offs, bool backward) {
  const at::NoGradGuard no_grad;
  const at::Tensor dense = checked_ends(op, offs, input.size(0));
  const auto* ends = static_cast<const int32_t*>(dense.const_data_ptr());
  const int64_t width = backward ? stack.weight.cols : stack.rows();
  at::Tensor output = empty({input.size(0), width}, input.scalar_type(), input.device());
  const Expert experts(stack);
  int64_t begin = 0;
  for (int64_t e = 0; e < stack.experts; begin = ends[e++]) {
    if (begin == ends[e]) continue;
    const at::Tensor x = input.narrow(0, begin, ends[e] - begin);
    at::Tensor y;
    if (!experts.separable()) {
      const at::Tensor w = experts.dense(e);
      y = at::mm(x.to(at::kFloat), backward ? w : w.t());
    } else if (backward) {
      y = direct::linear_4bit_backward_input(x, experts.at(e));
    } else {
      y = direct::linear_4bit(op, argument, x, experts.at(e), {});
    }
    output.narrow(0, begin, ends[e] - begin).copy_(y);
  }
  output.narrow(0, begin, input.size(0) - begin).zero_();
  return output;
}

at::Tensor grouped_mm(const char* op, const char* argument, const at::Tensor& input,
                      const Stack4bit& stack, const at::Tensor& offs, bool backward) {
  const Weight4bit& w = stack.weight;
  const int64_t width = backward ? stack.rows() : w.cols;
  check_groups(op, argument, input, width, stack.experts, offs, w.packed.device());
  if constexpr (kHasCuda) {
    if (input.is_cuda()) {
      const Rows rows = as_rows(input, width);
      const at::Tensor ends = offs.contiguous();
      const kernels::Matmul4bitParams params{.input = rows.data,
                                             .input_stride = rows.stride,
                                             .dtype = kernel_dtype(input.scalar_type()),
                                             .m = rows.count,
                                             .n = w.rows,
                                             .k = w.cols,
                                             .packed = packed_bytes(w),
                                             .scales = block_scales(w),
                                             .blocksize = w.blocksize,
                                             .quant_type = kernel_type(w.quant_type)};
      const kernels::GroupedMatmul4bitParams grouped{
          params, stack.experts, static_cast<const int32_t*>(ends.const_data_ptr())};
      return backward ? cuda::grouped_mm_4bit_backward_input(op, grouped, rows, ends)
                      : cuda::grouped_mm_4bit(op, grouped, rows, ends);
    }
  }
  return run_on_cpu(op, argument, input, stack, offs, backward);
}

}  // namespace

at::Tensor grouped_mm_4bit(const at::Tensor& input, const Stack4bit& stack,
                           const at::Tensor& offs) {
  return grouped_mm("lowbit::grouped_mm_4bit", "input", input, stack, offs, false);
}

at::Tensor grouped_mm_4bit_backward_input(const at::Tensor& grad_output, const Stack4bit& stack,
                                          const at::Tensor& offs) {
  return grouped_mm("lowbit::grouped_mm_4bit_backward_input", "grad_output", grad_output, stack,
                    offs, true);
}

}  // namespace direct

namespace {
namespace entry {  // the dispatcher's: arguments to operands

using OptionalTensor = std::optional<at::Tensor>;

Stack4bit make_stack(const char* op, const at::Tensor& weight, at::IntArrayRef shape,
                     const at::Tensor& absmax, int64_t blocksize, std::string_view quant_type,
                     const OptionalTensor& absmax_8bit, const OptionalTensor& absmax_code,
                     const OptionalTensor& absmax_offset) {
  return {make_weight_4bit(op, "weight", weight, stack_shape(op, "shape", shape), absmax, blocksize,
                           check_quant_type(op, quant_type), value_or_undefined(absmax_8bit),
                           value_or_undefined(absmax_code), value_or_undefined(absmax_offset)),
          shape[0]};
}

at::Tensor grouped_mm_4bit(const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef shape,
                           const at::Tensor& absmax, int64_t blocksize, std::string_view quant_type,
                           const at::Tensor& offs, const OptionalTensor& absmax_8bit,
                           const OptionalTensor& absmax_code, const OptionalTensor& absmax_offset) {
  return direct::grouped_mm_4bit(
      input,
      make_stack("lowbit::grouped_mm_4bit", weight, shape, absmax, blocksize, quant_type,
                 absmax_8bit, absmax_code, absmax_offset),
      offs);
}

at::Tensor grouped_mm_4bit_backward_input(const at::Tensor& grad_output, const at::Tensor& weight,
                                          at::IntArrayRef shape, const at::Tensor& absmax,
                                          int64_t blocksize, std::string_view quant_type,
                                          const at::Tensor& offs, const OptionalTensor& absmax_8bit,
                                          const OptionalTensor& absmax_code,
                                          const OptionalTensor& absmax_offset) {
  return direct::grouped_mm_4bit_backward_input(
      grad_output,
      make_stack("lowbit::grouped_mm_4bit_backward_input", weight, shape, absmax, blocksize,
                 quant_type, absmax_8bit, absmax_code, absmax_offset),
      offs);
}

}  // namespace entry
}  // namespace
}  // namespace lowbit::ops

TORCH_LIBRARY_IMPL(lowbit, CPU, m) {
  namespace entry = lowbit::ops::entry;
  m.impl("grouped_mm_4bit", &entry::grouped_mm_4bit);
  m.impl("grouped_mm_4bit_backward_input", &entry::grouped_mm_4bit_backward_input);
}

#ifdef LOWBIT_HAS_CUDA
TORCH_LIBRARY_IMPL(lowbit, CUDA, m) {
  namespace entry = lowbit::ops::entry;
  m.impl("grouped_mm_4bit", &entry::grouped_mm_4bit);
  m.impl("grouped_mm_4bit_backward_input", &entry::grouped_mm_4bit_backward_input);
}
#endif
