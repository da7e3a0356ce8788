#include "cli/load.h"

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <iostream>
#include <iterator>

#include "cli/console.h"
#include "lowbit/io/safetensors.h"
#include "lowbit/llm/inspect.h"

namespace lowbit::cli {
namespace {

void show_progress(llm::FromPretrainedOptions& options, ProgressBar& bar) {
  options.progress = [&bar](int64_t done, int64_t total, const std::string& what) {
    bar.update(done, total, what);
  };
}

}  // namespace

void QuantizeFlags::add_to(CLI::App& command, bool required) {
  auto* option = command.add_option("--type", type, "Quantize weights to nf4, fp4 or int8")
                     ->check(CLI::IsMember({"nf4", "fp4", "int8"}));
  if (required) option->required();
  command.add_flag("--double-quant", double_quant,
                   "4-bit: quantize the scales too (0.4 bits a weight less)");
  command.add_option("--blocksize", blocksize, "4-bit: weights that share a scale")
      ->capture_default_str()
      ->check(CLI::IsMember({32, 64, 128, 256, 512, 1024, 2048, 4096}));
  command
      .add_option("--threshold", threshold,
                  "int8: activations of at least this magnitude stay in floating point")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  command
      .add_option(
          "--skip", skip,
          "Modules to leave in floating point (default: the output head and what is tied to it)")
      ->delimiter(',');
  command.add_flag(
      "--quantize-embeddings", quantize_embeddings,
      "Also store embedding and output head, in 8 bits (Transformers does not read such a file)");
  command.add_option("--compute-dtype", compute_dtype,
                     "4-bit: dtype of the products (default: the model's)");
}

std::optional<BitsAndBytesConfig> QuantizeFlags::config(std::optional<at::ScalarType> dtype) const {
  if (type.empty()) return std::nullopt;
  BitsAndBytesConfig config;
  if (type == "int8") {
    config.load_in_8bit = true;
    config.llm_int8_threshold = threshold;
  } else {
    config.load_in_4bit = true;
    config.bnb_4bit_quant_type = type;
    config.bnb_4bit_use_double_quant = double_quant;
    config.bnb_4bit_compute_dtype =
        compute_dtype.empty() ? dtype.value_or(at::kFloat) : llm::dtype_from_name(compute_dtype);
  }
  if (!skip.empty()) config.llm_int8_skip_modules = skip;
  return config;
}

void LoadFlags::add_to(CLI::App& command, bool with_quantize) {
  command
      .add_option("--device", device,
                  "auto (the first GPU when the model fits there), cpu, cuda or cuda:N")
      ->capture_default_str();
  command
      .add_option("--dtype", dtype,
                  "Of what is not quantized: auto (the file's), float32, bfloat16 or float16")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "float32", "bfloat16", "float16"}));
  command.add_option("--threads", threads, "CPU threads (default: all cores)")
      ->check(CLI::PositiveNumber);
  if (with_quantize) quantize.add_to(command, false);
}

llm::FromPretrainedOptions LoadFlags::options(const std::string& model_dtype) const {
  llm::FromPretrainedOptions options;
  options.device_map = device;
  if (dtype != "auto") options.dtype = llm::dtype_from_name(dtype);
  std::optional<at::ScalarType> compute = options.dtype;
  if (!compute && !model_dtype.empty()) compute = llm::dtype_from_name(model_dtype);
  options.quantization_config = quantize.config(compute);
  options.blocksize = quantize.blocksize;
  options.quantize_embeddings = quantize.quantize_embeddings;
  return options;
}

void LoadFlags::apply_threads() const {
  if (threads > 0) at::set_num_threads(threads);
}

llm::CausalLM LoadFlags::load(const std::string& model) const {
  apply_threads();
  // A model that is quantized already takes no config.
  const std::string own = quantize.type.empty() ? "" : llm::inspect(model).config.dtype;
  auto options = this->options(own);
  ProgressBar bar("Loading");
  show_progress(options, bar);
  return llm::AutoModelForCausalLM::from_pretrained(model, options);
}

llm::CausalLM LoadFlags::load_random(const io::ModelConfig& config) const {
  apply_threads();
  auto options = this->options(config.dtype);
  ProgressBar bar("Making");
  show_progress(options, bar);
  return llm::AutoModelForCausalLM::from_config(config, options);
}

std::string read_text(const std::string& path) {
  if (path == "-") return {std::istreambuf_iterator<char>(std::cin), {}};
  return io::read_text_file(path, size_t{1} << 30);
}

}  // namespace lowbit::cli
