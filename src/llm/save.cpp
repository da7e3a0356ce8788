// save_pretrained: the files that Transformers writes for the same model.
#include <array>
#include <filesystem>

#include "llm/tensor_io.h"
#include "lowbit/error.h"
#include "lowbit/io/gguf.h"
#include "lowbit/io/safetensors.h"
#include "lowbit/llm/model.h"
#include "lowbit/quantized_tensor.h"
#include "lowbit/text/tokenizer.h"
#include "ops/check.h"

namespace lowbit::llm {
namespace {

namespace fs = std::filesystem;

/// What else belongs to a model: its tokenizer in all the forms that are there, and how it likes to
/// generate.
constexpr std::array kCompanions = {"tokenizer.json",
                                    "tokenizer_config.json",
                                    "special_tokens_map.json",
                                    "added_tokens.json",
                                    "vocab.json",
                                    "merges.txt",
                                    "chat_template.jinja",
                                    "generation_config.json"};

void copy_companions(const fs::path& source, const fs::path& directory) {
  std::error_code ignored;
  if (source.empty() || fs::equivalent(source, directory, ignored)) return;
  if (fs::is_directory(source)) {
    for (const char* name : kCompanions) {
      if (fs::exists(source / name)) {
        io::write_text_file((directory / name).string(),
                            io::read_text_file((source / name).string()));
      }
    }
    return;
  }
  const auto tokenizer = text::Tokenizer::from_gguf(io::GgufFile::open(source.string()));
  io::write_text_file((directory / "tokenizer.json").string(), tokenizer.to_json());
  io::write_text_file((directory / "tokenizer_config.json").string(), tokenizer.config_to_json());
}

}  // namespace

void CausalLM::save_pretrained(const std::string& directory,
                               const SavePretrainedOptions& options) const {
  LOWBIT_CHECK(options.max_shard_bytes > 0, "save_pretrained", "max_shard_bytes", "positive",
               options.max_shard_bytes);
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) throw IoError(directory, "create the directory", error.value());

  io::CheckpointWriter writer(directory, static_cast<size_t>(options.max_shard_bytes));
  for (const auto& entry : module()->named_parameters()) {
    if (!is_quantized(entry.value())) {
      writer.add(entry.key(), to_view(entry.value()));
      continue;
    }
    for (const auto& [key, tensor] : quantized_entries(entry.key(), entry.value())) {
      writer.add(key, to_view(tensor));
    }
  }
  io::ModelConfig config = this->config();
  config.dtype = dtype_to_name(dtype());
  writer.finish();
  io::write_text_file((fs::path(directory) / "config.json").string(), model_config_to_json(config));
  copy_companions(source(), directory);
}

}  // namespace lowbit::llm
