// The matmul over packed 4-bit weights on the CPU: plan, checks and the choice of kernels.
#include "fourbit_matmul.h"

#include <algorithm>

#include "lowbit/kernels/cpu.h"
#include "scales.h"
#include "validate.h"

namespace lowbit::kernels::cpu {
namespace {

const char* path_name(MatmulPath path) {
  switch (path) {
    case MatmulPath::kScalar:
      return "scalar";
    case MatmulPath::kRowsFast:
      return "rows_int16";
    case MatmulPath::kRowsExact:
      return "rows_float32";
    case MatmulPath::kRowsAny:
      return "rows_any";
    case MatmulPath::kPanelFast:
      return "panel_int16";
    case MatmulPath::kPanelExact:
      return "panel_float32";
    case MatmulPath::kPanelAny:
      return "panel_any";
  }
  return "unknown";
}

bool is_fast(const Matmul4bitParams& p) {
  return p.accuracy == MatmulAccuracy::kFast ||
         (p.accuracy == MatmulAccuracy::kAuto && p.dtype != DType::kFloat32);
}

MatmulPath choose_path(const Matmul4bitParams& p, Isa isa) {
  if (isa == Isa::kScalar || p.m <= 0 || p.n <= 0 || p.k <= 0) return MatmulPath::kScalar;
  const bool rows = p.m <= kMaxRows;
  if (p.k % kChunk != 0 || p.blocksize % 32 != 0) {
    return rows ? MatmulPath::kRowsAny : MatmulPath::kPanelAny;
  }
  if (is_fast(p)) return rows ? MatmulPath::kRowsFast : MatmulPath::kPanelFast;
  return rows ? MatmulPath::kRowsExact : MatmulPath::kPanelExact;
}

// plan.id = path + kIsaStride * instruction set, so that a plan keeps its meaning after set_isa().
constexpr int32_t kIsaStride = 16;

const MatmulKernels* kernels_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAVX512) return &kMatmulAvx512;
  if (isa == Isa::kAVX2) return &kMatmulAvx2;
#endif
  return nullptr;
}

int64_t unit_count(MatmulPath path, const Matmul4bitParams& p, int64_t slices) {
  switch (path) {
    case MatmulPath::kScalar:
      return p.n;
    case MatmulPath::kRowsFast:
    case MatmulPath::kRowsExact:
    case MatmulPath::kRowsAny:
      return ceil_div(p.n, kRowsPerUnit);
    default:
      return ceil_div(p.n, kStripRows) * slices;
  }
}

struct Choice {
  MatmulPath path = MatmulPath::kScalar;
  const MatmulKernels* kernels = nullptr;
};

/// The plan must be the one of these sizes: a range or a workspace of another would be overrun.
Status resolve(const Matmul4bitPlan& plan, const Matmul4bitParams& p, Choice& choice) {
  const auto isa = static_cast<Isa>(plan.id / kIsaStride);
  choice.path = choose_path(p, isa);
  choice.kernels = kernels_of(isa);
  if (plan.id != static_cast<int32_t>(choice.path) + kIsaStride * static_cast<int32_t>(isa) ||
      plan.slices < 1 ||
      plan.workspace_bytes != matmul_workspace(choice.path, p.m, p.k, p.dtype).bytes) {
    return invalid_argument("the plan was made for another problem");
  }
  if (plan.workspace_bytes > 0 && p.workspace == nullptr) {
    return invalid_argument("workspace is null");
  }
  return ok_status();
}

Matmul4bitParams with_table(const Matmul4bitParams& p) {
  Matmul4bitParams q = p;
  q.code = code_table(p.quant_type, p.code);
  return q;
}

void backward_scalar(const Matmul4bitParams& p, int64_t begin, int64_t end) {
  for (int64_t slice = begin; slice < end; ++slice) {
    const int64_t first = slice * kBackwardSlice;
    const int64_t width = std::min(kBackwardSlice, p.k - first);
    for (int64_t m = 0; m < p.m; ++m) {
      double sums[kBackwardSlice] = {};
      for (int64_t n = 0; n < p.n; ++n) {
        const double gradient = load_element(p.input, p.dtype, m * p.input_stride + n);
        for (int64_t j = 0; j < width; ++j) {
          const int64_t i = n * p.k + first + j;
          sums[j] += gradient * multiply_flushed(p.code[code_at(p.packed, i)],
                                                 block_scale(p.scales, i / p.blocksize));
        }
      }
      for (int64_t j = 0; j < width; ++j) {
        store_element(p.output, p.dtype, m * p.k + first + j, static_cast<float>(sums[j]));
      }
    }
  }
}

}  // namespace

Matmul4bitPlan plan_matmul_4bit_group(const Matmul4bitParams* params, int32_t count) noexcept {
  Matmul4bitPlan plan;
  if (count <= 0) return plan;
  const Matmul4bitParams& p = params[0];
  const Isa isa = active_isa();
  const MatmulPath path = choose_path(p, isa);
  int64_t strips = 0;
  for (int32_t i = 0; i < count; ++i) {
    if (choose_path(params[i], isa) != path) return plan;
    strips += ceil_div(params[i].n, kStripRows);
  }
  plan.kernel = path_name(path);
  plan.id = static_cast<int32_t>(path) + kIsaStride * static_cast<int32_t>(isa);
  plan.workspace_bytes = matmul_workspace(path, p.m, p.k, p.dtype).bytes;
  plan.prepare_units = plan.workspace_bytes > 0 ? p.m : 0;
  // A thread is worth about 10 us: 2^15 elements to prepare, 2^17 multiplications in rows, 2^20 in
  // panels.
  plan.prepare_grain = std::max<int64_t>(1, (int64_t{1} << 15) / std::max<int64_t>(1, p.k));
  int64_t work = std::max<int64_t>(1, p.k) * std::max<int64_t>(1, p.m);
  int64_t worth = int64_t{1} << 17;
  switch (path) {
    case MatmulPath::kScalar:
      worth = int64_t{1} << 13;
      break;
    case MatmulPath::kRowsFast:
    case MatmulPath::kRowsExact:
    case MatmulPath::kRowsAny:
      work *= kRowsPerUnit;
      break;
    default:
      plan.slices = panel_slices(p.m, strips);
      work = p.k * kStripRows * slice_rows(p.m, plan.slices);
      worth = int64_t{1} << 20;
  }
  plan.grain = std::max<int64_t>(1, worth / work);
  for (int32_t i = 0; i < count; ++i) plan.units += unit_count(path, params[i], plan.slices);
  return plan;
}

Matmul4bitPlan plan_matmul_4bit(const Matmul4bitParams& p) noexcept {
  return plan_matmul_4bit_group(&p, 1);
}

Status matmul_4bit_prepare(const Matmul4bitPlan& plan, const Matmul4bitParams& p, int64_t begin,
                           int64_t end) noexcept {
  const Status status = check(p, begin, end, plan.prepare_units);
  if (!status.ok() || begin == end) return status;
  Choice choice;
  const Status resolved = resolve(plan, p, choice);
  if (!resolved.ok()) return resolved;
  if (choice.path != MatmulPath::kScalar) choice.kernels->prepare(choice.path, p, begin, end);
  return ok_status();
}

Status matmul_4bit_group(const Matmul4bitPlan& plan, const Matmul4bitParams* params, int32_t count,
                         int64_t begin, int64_t end) noexcept {
  // Everything is checked before anything is written.
  Choice choice;
  int64_t units = 0;
  for (int32_t i = 0; i < count; ++i) {
    const Status status = check(params[i]);
    if (!status.ok()) return status;
    const Status resolved = resolve(plan, params[i], choice);
    if (!resolved.ok()) return resolved;
    units += unit_count(choice.path, params[i], plan.slices);
  }
  const Status range = check_range(begin, end, units);
  if (!range.ok()) return range;
  int64_t first = 0;
  for (int32_t i = 0; i < count && first < end; ++i) {
    const Matmul4bitParams& p = params[i];
    const int64_t own = unit_count(choice.path, p, plan.slices);
    const int64_t from = std::max<int64_t>(begin - first, 0);
    const int64_t to = std::min(end - first, own);
    first += own;
    if (from >= to) continue;
    if (choice.path == MatmulPath::kScalar) {
      const Status status = ref::matmul_4bit(p, from, to);
      if (!status.ok()) return status;
    } else {
      choice.kernels->run(choice.path, with_table(p), plan.slices, from, to);
    }
  }
  return ok_status();
}

Status matmul_4bit(const Matmul4bitPlan& plan, const Matmul4bitParams& p, int64_t begin,
                   int64_t end) noexcept {
  return matmul_4bit_group(plan, &p, 1, begin, end);
}

Status matmul_4bit_backward_input(const Matmul4bitParams& p, int64_t begin, int64_t end) noexcept {
  const Status status = check(p, begin, end, ceil_div(p.k, kBackwardSlice));
  if (!status.ok()) return status;
  const MatmulKernels* kernels = kernels_of(active_isa());
  if (kernels == nullptr) {
    backward_scalar(with_table(p), begin, end);
  } else {
    kernels->backward(with_table(p), begin, end);
  }
  return ok_status();
}

}  // namespace lowbit::kernels::cpu
