// lowbit doctor: versions, devices, instruction sets, and a self-test of every kernel family on
// every device.
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <torch/version.h>
#include <unistd.h>

#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/commands.h"
#include "cli/commit.h"
#include "cli/console.h"
#include "cli/self_test.h"
#include "lowbit/cuda_info.h"
#include "lowbit/functional.h"
#include "lowbit/version.h"

namespace lowbit::cli {
namespace {

using nlohmann::ordered_json;

int64_t physical_memory() {
  return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<int64_t>(sysconf(_SC_PAGE_SIZE));
}

/// One line about CUDA: what there is, or why there is none.
std::string cuda_text(const CudaInfo& info) {
  if (!info.problem.empty()) return "no. " + info.problem;
  if (!at::hasCUDA()) return "no. This libtorch has no CUDA, or cannot use the driver.";
  return "CUDA " + cuda_version_text(info.runtime_version) + ", driver " +
         (info.driver.empty() ? "" : info.driver + ", ") + "for CUDA up to " +
         cuda_version_text(info.driver_version);
}

std::string gpu_text(const GpuInfo& gpu) {
  if (gpu.name.empty()) return "cannot be used: " + gpu.problem;
  return gpu.name + ", compute capability " + std::to_string(gpu.compute_capability / 10) + "." +
         std::to_string(gpu.compute_capability % 10) + ", " + human_bytes(gpu.memory_bytes) + ", " +
         std::to_string(gpu.multiprocessors) + " multiprocessors" +
         (gpu.problem.empty() ? "" : ". Cannot be used: " + gpu.problem);
}

class Doctor {
 public:
  void facts() {
    const std::string hash = commit();
    add("lowbit", std::string(LOWBIT_VERSION) + (hash.empty() ? "" : " (" + hash + ")"));
    add("libtorch", TORCH_VERSION);
    add("CPU kernels", cpu_isa());
    add("cores", std::to_string(std::thread::hardware_concurrency()));
    add("threads", std::to_string(at::get_num_threads()));
    add("memory", human_bytes(physical_memory()));
    const CudaInfo info = cuda_info();
    add("CUDA", cuda_text(info));
    for (size_t i = 0; i < info.gpus.size(); ++i) {
      add("GPU " + std::to_string(i), gpu_text(info.gpus[i]));
      if (at::hasCUDA() && info.gpus[i].problem.empty()) {
        devices_.emplace_back(at::kCUDA, static_cast<c10::DeviceIndex>(i));
      }
    }
  }

  void test() {
    for (const at::Device device : devices_) {
      for (const SelfTest& test : self_tests(device)) run(device, test);
    }
  }

  void print(bool json) const {
    if (json) {
      ordered_json object;
      for (const auto& [name, value] : facts_) object[name] = value;
      object["self_tests"] = results_;
      std::cout << object.dump(2) << '\n';
      return;
    }
    for (const auto& [name, value] : facts_) std::cout << bold(name) << ": " << value << '\n';
    std::cout << '\n' << table_.text();
  }

  /// Throws when a test failed.
  void conclude() const {
    if (failed_ == 0) return;
    throw std::runtime_error(std::to_string(failed_) +
                             " self-tests failed. LOWBIT_CPU_ISA=scalar uses the plain kernels of "
                             "the CPU, CUDA_VISIBLE_DEVICES= hides GPUs; please report the table.");
  }

 private:
  void add(const std::string& name, const std::string& value) { facts_.emplace_back(name, value); }

  void run(at::Device device, const SelfTest& test) {
    std::string outcome = "ok";
    double error = std::numeric_limits<double>::quiet_NaN();
    const auto start = std::chrono::steady_clock::now();
    try {
      error = test.error();
      if (!(error <= test.limit)) outcome = "FAILED";
    } catch (const std::exception& e) {
      outcome = std::string("FAILED: ") + e.what();
      outcome.resize(std::min(outcome.size(), outcome.find('\n')));
    }
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    failed_ += outcome != "ok";
    std::ostringstream error_text, limit_text;
    error_text << error;
    limit_text << test.limit;
    table_.add({device.str(), test.family, test.what, error_text.str(), limit_text.str(),
                fixed(seconds * 1e3, 1), outcome});
    results_.push_back({{"device", device.str()},
                        {"family", test.family},
                        {"test", test.what},
                        {"error", error},
                        {"limit", test.limit},
                        {"seconds", seconds},
                        {"result", outcome}});
  }

  std::vector<at::Device> devices_ = {at::kCPU};
  std::vector<std::pair<std::string, std::string>> facts_;
  ordered_json results_ = ordered_json::array();
  Table table_{{"device", "family", "self-test", "error", "limit", "ms", "result"}};
  int failed_ = 0;
};

}  // namespace

void add_doctor(CLI::App& app) {
  auto* command = app.add_subcommand(
      "doctor", "Versions, devices, instruction sets, and a self-test of every kernel family");
  auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "Print as JSON");
  command->footer("Example:\n  lowbit doctor");
  command->callback([json] {
    const at::NoGradGuard guard;
    Doctor doctor;
    doctor.facts();
    doctor.test();
    doctor.print(*json);
    doctor.conclude();
  });
}

}  // namespace lowbit::cli
