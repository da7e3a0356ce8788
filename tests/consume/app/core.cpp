// What needs no libtorch: a kernel, and a file.
#include <lowbit/io/safetensors.h>
#include <lowbit/kernels/fourbit.h>
#include <lowbit/version.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <vector>

int main() {
  // 0.7, -0.3, 0.1 in NF4: codes 15, 3, 9, and 7 (zero) for the missing fourth element.
  namespace kernels = lowbit::kernels;
  const float values[] = {0.7f, -0.3f, 0.1f};
  uint8_t packed[2] = {};
  float absmax = 0.0f;
  kernels::Quantize4bitParams params;
  params.input = values;
  params.numel = 3;
  params.packed = packed;
  params.absmax = &absmax;
  if (!kernels::cpu::quantize_4bit(params, 0, 1).ok()) return 1;
  if (packed[0] != 0xf3 || packed[1] != 0x97 || absmax != 0.7f) return 2;

  namespace io = lowbit::io;
  const std::string path = "consumer_core.safetensors";
  io::TensorView view;
  view.shape = {3};
  view.data = reinterpret_cast<const std::byte*>(values);
  view.nbytes = sizeof(values);
  io::write_safetensors(path, {{"values", view}});
  const io::TensorView read = io::SafetensorsFile::open(path).tensor("values");
  const bool equal =
      read.shape == view.shape && std::memcmp(read.data, values, sizeof(values)) == 0;
  std::filesystem::remove(path);
  if (!equal) return 3;
  std::printf("lowbit %s without libtorch\n", LOWBIT_VERSION);
  return 0;
}
