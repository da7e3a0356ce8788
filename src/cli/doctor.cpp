// lowbit doctor: versions, devices, instruction sets, and a self-test of every kernel family
// against known numbers.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <torch/version.h>
#include <unistd.h>

#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/commands.h"
#include "cli/console.h"
#include "lowbit/functional.h"
#include "lowbit/quantize.h"
#include "lowbit/version.h"

namespace lowbit::cli {
namespace {

struct Check {
  std::string family, what;
  std::function<double()> error;  ///< compared with `limit`
  double limit;
};

double relative_error(const at::Tensor& got, const at::Tensor& expected) {
  const auto e = expected.to(at::kDouble);
  return ((got.to(at::kDouble) - e).norm() / e.norm()).item<double>();
}

/// Differing elements; infinite for another shape.
double differing(const at::Tensor& got, const at::Tensor& expected) {
  if (got.numel() != expected.numel()) return std::numeric_limits<double>::infinity();
  return got.flatten().ne(expected.flatten()).sum().item<double>();
}

std::vector<Check> checks() {
  const auto type_check = [](const char* type) {
    return [type] {
      // Twice the table: every element is exactly a code, absmax is 2.
      const auto table = get_4bit_type(type);
      const auto [packed, state] = quantize_4bit(table * 2, {.quant_type = parse_quant_type(type)});
      return differing(dequantize_4bit(packed, state), table * 2);
    };
  };
  const auto linear_check = [](const QuantizationConfig& config) {
    return [config] {
      const auto w = at::randn({192, 320}), x = at::randn({5, 320}), b = at::randn({192});
      const auto qw = quantize(w, config);
      return relative_error(
          at::linear(x, qw, b),
          at::linear(x.to(at::kDouble), lowbit::dequantize(qw).to(at::kDouble), b.to(at::kDouble)));
    };
  };
  return {
      {"fourbit", "NF4 codes", type_check("nf4"), 0},
      {"fourbit", "FP4 codes", type_check("fp4"), 0},
      {"fourbit", "NF4 matmul", linear_check(QuantizationConfig::nf4().double_quant(true)), 1e-5},
      {"fourbit", "FP4 matmul", linear_check(QuantizationConfig::fp4()), 1e-5},
      {"blockwise", "dynamic map codes",
       [] {
         const auto map = create_dynamic_map();
         return differing(std::get<0>(quantize_blockwise(map, {.blocksize = 256})),
                          at::arange(256));
       },
       0},
      {"int8", "int32 matmul",
       [] {
         const auto a = at::randint(-127, 128, {7, 301}, at::kChar),
                    b = at::randint(-127, 128, {33, 301}, at::kChar);
         return differing(int8_linear_matmul(a, b),
                          at::matmul(a.to(at::kLong), b.to(at::kLong).t()));
       },
       0},
      {"int8", "LLM.int8() matmul", linear_check(QuantizationConfig::int8(6.0)), 2e-2},
      {"int8", "weight-only matmul", linear_check(QuantizationConfig::int8_weight_only()), 1e-3},
  };
}

int64_t physical_memory() {
  return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<int64_t>(sysconf(_SC_PAGE_SIZE));
}

void doctor(bool json) {
  c10::InferenceMode guard;
  std::vector<std::pair<std::string, std::string>> facts = {
      {"lowbit", LOWBIT_VERSION},
      {"libtorch", TORCH_VERSION},
      {"CPU kernels", cpu_isa()},
      {"cores", std::to_string(std::thread::hardware_concurrency())},
      {"threads", std::to_string(at::get_num_threads())},
      {"memory", human_bytes(physical_memory())},
      {"CUDA", at::hasCUDA() ? "yes" : "no: this is a CPU build"},
  };
  int failed = 0;
  auto results = nlohmann::ordered_json::array();
  Table table({"family", "self-test", "error", "limit", "result"});
  for (const auto& check : checks()) {
    std::string outcome = "ok";
    double error = std::numeric_limits<double>::quiet_NaN();
    try {
      error = check.error();
      if (!(error <= check.limit)) outcome = "FAILED";
    } catch (const std::exception& e) {
      outcome = std::string("FAILED: ") + e.what();
      outcome.resize(std::min(outcome.size(), outcome.find('\n')));
    }
    failed += outcome != "ok";
    std::ostringstream error_text, limit_text;
    error_text << error;
    limit_text << check.limit;
    table.add({check.family, check.what, error_text.str(), limit_text.str(), outcome});
    results.push_back({{"family", check.family},
                       {"test", check.what},
                       {"error", error},
                       {"limit", check.limit},
                       {"result", outcome}});
  }
  if (json) {
    nlohmann::ordered_json object;
    for (const auto& [name, value] : facts) object[name] = value;
    object["self_tests"] = results;
    std::cout << object.dump(2) << '\n';
  } else {
    for (const auto& [name, value] : facts) std::cout << bold(name) << ": " << value << '\n';
    std::cout << '\n' << table.text();
  }
  if (failed > 0) {
    throw std::runtime_error(std::to_string(failed) +
                             " self-tests failed. LOWBIT_CPU_ISA=scalar uses the plain kernels; "
                             "please report the table.");
  }
}

}  // namespace

void add_doctor(CLI::App& app) {
  auto* command = app.add_subcommand(
      "doctor", "Versions, devices, instruction sets, and a self-test of every kernel family");
  auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "Print as JSON");
  command->footer("Example:\n  lowbit doctor");
  command->callback([json] { doctor(*json); });
}

}  // namespace lowbit::cli
