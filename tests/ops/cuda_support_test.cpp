// Which GPUs are refused, and what is said about CUDA's errors: decided without a GPU.
#include "ops/cuda_support.h"

#include <gtest/gtest.h>

#include "lowbit/cuda_info.h"
#include "lowbit/version.h"
#include "support/error.h"

namespace lowbit::ops {
namespace {

using test::message_of;

TEST(CudaSupport, ArchitecturesBeforeTuringAreRefusedByName) {
  for (const int capability : {30, 52, 60, 61, 70, 72}) {
    const std::string text = c10::str(capability / 10, ".", capability % 10);
    EXPECT_EQ(message_of([&] { check_architecture("lowbit::quantize_4bit", 1, capability); }),
              "lowbit::quantize_4bit: `device` must be a GPU of compute capability 7.5 (Turing) or "
              "later, got cuda:1, which has " +
                  text + ". Move the tensors to the CPU.");
    EXPECT_EQ(architecture_problem(capability),
              "compute capability " + text + "; the kernels need 7.5 (Turing) or later");
  }
  for (const int capability : {75, 80, 86, 89, 90, 100, 120}) {
    EXPECT_EQ(message_of([&] { check_architecture("op", 0, capability); }), "(nothing was thrown)");
    EXPECT_EQ(architecture_problem(capability), "");
  }
}

TEST(CudaSupport, PlansMayBeMadeForAnOlderArchitecture) {
  for (const int capability : {75, 80, 86, 90, 120}) {
    EXPECT_EQ(planned_architecture(nullptr, capability), capability);
    EXPECT_EQ(planned_architecture("", capability), capability);
    EXPECT_EQ(planned_architecture("sm80", capability), capability < 80 ? capability : 80);
  }
  struct Recorder : c10::WarningHandler {
    void process(const c10::Warning& warning) override { text = warning.msg(); }
    std::string text;
  } recorder;
  const c10::WarningUtils::WarningHandlerGuard guard(&recorder);
  EXPECT_EQ(planned_architecture("sm_80", 90), 90);
  EXPECT_EQ(recorder.text, "LOWBIT_CUDA_ARCH_PATH must be sm80, got \"sm_80\". It is ignored.");
}

TEST(CudaSupport, AnOldDriverIsToldWhatIsNeeded) {
  EXPECT_EQ(cuda_advice(cuda_error::kInsufficientDriver, 12020, 13000),
            "The NVIDIA driver is too old: it runs CUDA 12.2, and this build needs 13.0. Install a "
            "newer driver, or build with an older CUDA.");
  EXPECT_EQ(cuda_advice(cuda_error::kInsufficientDriver, 0, 13000),
            "No NVIDIA driver is installed: nvidia-smi would show it.");
}

TEST(CudaSupport, OtherErrorsHaveTheirAdviceOrNone) {
  EXPECT_NE(cuda_advice(cuda_error::kNoDevice, 13000, 13000).find("CUDA_VISIBLE_DEVICES"),
            std::string::npos);
  for (const int error :
       {cuda_error::kNoKernelImageForDevice, cuda_error::kInvalidDeviceFunction}) {
    EXPECT_NE(cuda_advice(error, 13000, 13000).find("LOWBIT_CUDA_ARCHITECTURES"),
              std::string::npos);
  }
  EXPECT_NE(cuda_advice(cuda_error::kSystemDriverMismatch, 13000, 13000).find("restart"),
            std::string::npos);
  EXPECT_EQ(cuda_advice(700, 13000, 13000), "");  // an illegal address: a defect, not a setting
}

TEST(CudaSupport, InfoSaysWhatThisBuildAndMachineHave) {
  const CudaInfo info = cuda_info();
  EXPECT_EQ(info.problem.empty(), !info.gpus.empty()) << info.problem;
#ifdef LOWBIT_HAS_CUDA
  EXPECT_TRUE(info.built);
  EXPECT_GE(info.runtime_version, 12080);
  for (const GpuInfo& gpu : info.gpus) {
    EXPECT_FALSE(gpu.name.empty()) << gpu.problem;
    EXPECT_GT(gpu.memory_bytes, int64_t{1} << 30);
    EXPECT_EQ(gpu.problem.empty(), gpu.compute_capability >= kOldestArchitecture);
  }
#else
  EXPECT_FALSE(info.built);
  EXPECT_EQ(info.problem, "This build has no CUDA kernels: build it with LOWBIT_CUDA=ON.");
#endif
  EXPECT_EQ(cuda_version_text(12080), "12.8");
}

}  // namespace
}  // namespace lowbit::ops
