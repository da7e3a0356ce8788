// Any bytes are a valid GGUF file or a FormatError; a valid file is decoded, and its model
// configuration survives JSON.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "fuzz/require.h"
#include "lowbit/error.h"
#include "lowbit/io/gguf.h"
#include "lowbit/io/hf_config.h"

using lowbit::fuzz::require;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lowbit::io;
  std::optional<GgufFile> file;
  try {
    file = GgufFile::parse(nullptr, reinterpret_cast<const std::byte*>(data), size, "fuzz");
  } catch (const lowbit::FormatError&) {
    return 0;
  }
  for (const GgufTensor& tensor : file->tensors()) {
    require(file->find(tensor.name) == &tensor, "tensors by name");
    require(tensor.nbytes <= size, "data inside the file");
    std::vector<float> output(static_cast<size_t>(tensor.numel));  // at most two elements a byte
    file->dequantize(tensor, 0, tensor.numel, output.data());
  }
  std::optional<ModelConfig> config;
  try {
    config = model_config_from_gguf(*file);
  } catch (const lowbit::FormatError&) {
    return 0;
  }
  const ModelConfig again = parse_model_config(model_config_to_json(*config), "written");
  require(again.rope == config->rope, "rope after JSON");
  require(again.hidden_size == config->hidden_size && again.head_dim == config->head_dim,
          "sizes after JSON");
  require(again.rms_norm_eps == config->rms_norm_eps, "numbers after JSON");
  require(again.sliding_window == config->sliding_window, "window after JSON");
  return 0;
}
