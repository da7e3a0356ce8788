// AutoModelForCausalLM: from files to a model, one parameter at a time.
#include <c10/util/Logging.h>

#include <algorithm>
#include <filesystem>

#include "llm/device.h"
#include "llm/parameter.h"
#include "llm/source.h"
#include "llm/weight.h"
#include "lowbit/error.h"
#include "lowbit/llm/auto.h"
#include "lowbit/llm/inspect.h"
#include "ops/check.h"

namespace lowbit::llm {
namespace {

constexpr const char* kOp = "from_pretrained";

at::ScalarType resolve_dtype(const WeightSource& source, const FromPretrainedOptions& options) {
  at::ScalarType dtype = at::kFloat;
  if (options.dtype) {
    dtype = *options.dtype;
  } else if (!source.config().dtype.empty()) {
    dtype = dtype_from_name(source.config().dtype);
  }
  LOWBIT_CHECK(ops::is_kernel_dtype(dtype), kOp, "dtype", "float32, float16 or bfloat16",
               dtype_to_name(dtype));
  return dtype;
}

/// What becomes of a slot; quantized checkpoints stay as they are.
Treatment treatment_of(const WeightSource& source, const Slot& slot,
                       const FromPretrainedOptions& options, bool prequantized) {
  if (!prequantized) return plan_treatment(slot, options);
  FromPretrainedOptions tables = options;
  tables.quantization_config.reset();
  return source.is_quantized(slot) ? Treatment::kFloat : plan_treatment(slot, tables);
}

void check_options(const WeightSource& source, const FromPretrainedOptions& options) {
  if (options.quantization_config) options.quantization_config->validate();
  LOWBIT_CHECK(is_valid_4bit_blocksize(options.blocksize), kOp, "blocksize",
               "a power of two in [32, 4096]", options.blocksize);
  if (!options.quantization_config || !source.config().quantization) return;
  const auto& stored = *source.config().quantization;
  LOWBIT_CHECK(stored.load_in_4bit == options.quantization_config->load_in_4bit, kOp,
               "quantization_config", "of the kind that the checkpoint was quantized with",
               options.quantization_config->load_in_4bit ? "4-bit for an 8-bit checkpoint"
                                                         : "8-bit for a 4-bit checkpoint",
               "Dequantize the checkpoint first");
  TORCH_WARN(
      "from_pretrained: the checkpoint is quantized already; its own quantization_config is "
      "used and the given one ignored.");
}

CheckpointDescription describe(const WeightSource& source, const std::vector<Slot>& slots,
                               const FromPretrainedOptions& options) {
  CheckpointDescription d{.config = source.config(), .format = source.format()};
  const at::ScalarType dtype = resolve_dtype(source, options);
  for (const Slot& slot : slots) {
    const Treatment treatment =
        treatment_of(source, slot, options, source.config().quantization.has_value());
    const bool stored = source.is_quantized(slot);
    WeightEntry entry{.name = slot.name,
                      .shape = slot.shape,
                      .scheme = source.scheme(slot),
                      .bytes = source.bytes(slot)};
    entry.planned_scheme = stored ? entry.scheme : planned_scheme(treatment, options, dtype);
    entry.planned_bytes =
        stored ? entry.bytes : planned_bytes(slot.shape, treatment, options, dtype);
    d.bytes += entry.bytes;
    d.planned_bytes += entry.planned_bytes;
    d.weights.push_back(std::move(entry));
  }
  return d;
}

/// The tables of tokens first: they are several layers large, and while they are quantized, little
/// else is there. The peak comes with the last layer.
std::vector<Slot> tables_first(std::vector<Slot> slots) {
  std::stable_partition(slots.begin(), slots.end(), [](const Slot& slot) {
    return slot.kind == SlotKind::kEmbedding || slot.kind == SlotKind::kHead;
  });
  return slots;
}

/// The model with the weights of `source`, one parameter at a time.
CausalLM load(WeightSource& source, const std::string& path, const FromPretrainedOptions& options) {
  io::ModelConfig config = source.config();
  const std::vector<Slot> slots = tables_first(decoder_slots(config));
  source.check(slots);
  check_options(source, options);
  const at::Device device = choose_device(options, describe(source, slots, options).planned_bytes);
  source.set_device(device);

  const at::ScalarType dtype = resolve_dtype(source, options);
  const bool prequantized = config.quantization.has_value();
  if (!prequantized && options.quantization_config) {
    config.quantization = options.quantization_config->to_json();
  }
  config.dtype = dtype_to_name(dtype);
  // A float32 that was asked for holds inside the quantized layers, too.
  const bool exact = options.dtype == at::kFloat;
  std::optional<at::ScalarType> compute_dtype;
  if (config.quantization && config.quantization->load_in_4bit && !exact) {
    compute_dtype = dtype_from_name(config.quantization->bnb_4bit_compute_dtype);
  }
  LlamaForCausalLM module(config);
  DeviceUploader upload(device);
  int64_t done = 0;
  for (const Slot& slot : slots) {
    if (options.progress) options.progress(done, source.total_bytes(), slot.name);
    const Treatment treatment = treatment_of(source, slot, options, prequantized);
    at::Tensor weight;
    if (source.is_quantized(slot)) {
      weight = upload(source.load_quantized(slot, dtype, compute_dtype));
    } else {
      // Quantized where it will live: the device holds one layer in floating point at a time.
      weight = upload(source.load_float(slot, dtype));
      if (treatment != Treatment::kFloat) {
        weight = quantize_weight(slot.name, weight, treatment, options);
        source.release(slot);
      }
    }
    set_parameter(*module, slot.name, std::move(weight));
    done += source.bytes(slot);
  }
  if (options.progress) options.progress(source.total_bytes(), source.total_bytes(), "");
  module->eval();
  return CausalLM(std::move(module), path, exact);
}

}  // namespace

std::unique_ptr<WeightSource> WeightSource::open(const std::string& path) {
  // What is not there, or cannot be read, is reported by whoever opens it.
  return std::filesystem::is_directory(path) ? open_safetensors_source(path)
                                             : open_gguf_source(path);
}

CheckpointDescription inspect(const std::string& path, const FromPretrainedOptions& options) {
  const auto source = WeightSource::open(path);
  const std::vector<Slot> slots = decoder_slots(source->config());
  source->check(slots);
  check_options(*source, options);
  CheckpointDescription description = describe(*source, slots, options);
  description.device = choose_device(options, description.planned_bytes).str();
  return description;
}

CausalLM AutoModelForCausalLM::from_pretrained(const std::string& path,
                                               const FromPretrainedOptions& options) {
  return load(*WeightSource::open(path), path, options);
}

CausalLM AutoModelForCausalLM::from_config(const io::ModelConfig& config,
                                           const FromPretrainedOptions& options) {
  return load(*random_source(config), "", options);
}

}  // namespace lowbit::llm
