#include "ops/plan_log.h"

#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <cstdlib>
#include <mutex>
#include <string>
#include <unordered_set>

#include "lowbit/kernels/cpu.h"

namespace lowbit::ops {
namespace {

const char* name_of(kernels::DType dtype) {
  return dtype == kernels::DType::kFloat32   ? "float32"
         : dtype == kernels::DType::kFloat16 ? "float16"
                                             : "bfloat16";
}

/// "lowbit::linear_4bit on cpu: M 4, N 64 + 64, K 128, bfloat16, nf4, blocksize 64, nested: "
std::string describe(std::string_view op, std::string_view device,
                     const kernels::Matmul4bitParams* members, int32_t count) {
  const kernels::Matmul4bitParams& p = members[0];
  std::string rows = std::to_string(p.n);
  for (int32_t i = 1; i < count; ++i) rows += " + " + std::to_string(members[i].n);
  return c10::str(op, " on ", device, ": M ", p.m, ", N ", rows, ", K ", p.k, ", ",
                  name_of(p.dtype), p.quant_type == kernels::QuantType::kNF4 ? ", nf4" : ", fp4",
                  ", blocksize ", p.blocksize, p.scales.nested() ? ", nested: " : ": ");
}

void say_once(const std::string& line) {
  static std::mutex mutex;
  static std::unordered_set<std::string> said;
  {
    const std::lock_guard lock(mutex);
    if (!said.insert(line).second) return;
  }
  TORCH_WARN(line);
}

}  // namespace

bool logs_plans() {
  static const bool asked = [] {
    const char* word = std::getenv("LOWBIT_VERBOSE");
    if (word == nullptr || *word == '\0') return false;
    if (std::string_view(word) == "dispatch") return true;
    TORCH_WARN("LOWBIT_VERBOSE must be dispatch, got \"", word, "\". It is ignored.");
    return false;
  }();
  return asked;
}

void log_plan(std::string_view op, c10::Device device, const kernels::Matmul4bitParams* members,
              int32_t count, const kernels::Matmul4bitCudaPlan& plan, bool library) {
  const std::string problem = describe(op, device.str(), members, count);
  if (library) return say_once(problem + "dequantize_4bit and cuBLAS");
  say_once(c10::str(problem, plan.kernel, ", grid ", plan.grid_x, " x ", plan.grid_y, ", ",
                    plan.threads, " threads, ", plan.shared_bytes, " bytes of shared memory, ",
                    plan.splits, plan.splits == 1 ? " slice of K, " : " slices of K, ",
                    plan.workspace_bytes, " bytes of workspace"));
}

void log_plan(std::string_view op, const kernels::Matmul4bitParams* members, int32_t count,
              const kernels::Matmul4bitPlan& plan) {
  say_once(c10::str(describe(op, "cpu", members, count), plan.kernel, ", ",
                    kernels::cpu::isa_name(kernels::cpu::active_isa()), ", ", plan.units,
                    " units, ", plan.workspace_bytes, " bytes of workspace"));
}

}  // namespace lowbit::ops
