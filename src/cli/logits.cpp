// lowbit logits: logits in a file, for comparing implementations.
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/load.h"
#include "lowbit/io/safetensors.h"

namespace lowbit::cli {
namespace {

io::TensorView view_of(const at::Tensor& tensor, io::DType dtype) {
  return {dtype, tensor.sizes().vec(), static_cast<const std::byte*>(tensor.data_ptr()),
          tensor.nbytes(), std::make_shared<at::Tensor>(tensor)};
}

struct Logits {
  std::string model, text, output;
  std::vector<int64_t> ids;
  LoadFlags load;
  bool json = false;

  void operator()() {
    if (ids.empty()) ids = llm::AutoTokenizer::from_pretrained(model).encode(text);
    const auto logits = load.load(model).logits(ids).contiguous();
    const auto id_tensor = at::tensor(ids, at::kLong);
    io::write_safetensors(output, {{"ids", view_of(id_tensor, io::DType::kI64)},
                                   {"logits", view_of(logits, io::DType::kF32)}});
    if (json) {
      std::cout << nlohmann::ordered_json{{"output", output},
                                          {"tokens", logits.size(0)},
                                          {"vocab", logits.size(1)}}
                       .dump(2)
                << '\n';
    } else {
      std::cout << output << ": ids [" << ids.size() << "], logits [" << logits.size(0) << ", "
                << logits.size(1) << "] float32\n";
    }
  }
};

}  // namespace

void add_logits(CLI::App& app) {
  auto* command = app.add_subcommand(
      "logits", "Write the logits of a text or of token ids to a safetensors file");
  auto logits = std::make_shared<Logits>();
  command->add_option("MODEL", logits->model, "Model directory or GGUF file")->required();
  auto* input = command->add_option_group("input")->require_option(1);
  input->add_option("--ids", logits->ids, "Token ids, e.g. 1,2,3")
      ->delimiter(',')
      ->check(CLI::NonNegativeNumber);
  input->add_option("--text", logits->text, "A text");
  command->add_option("-o,--output", logits->output, "File to write")->required();
  command->add_flag("--json", logits->json, "Print the facts as JSON");
  logits->load.add_to(*command);
  command->footer("Example:\n  lowbit logits smollm2-nf4 --text \"Hello\" -o logits.safetensors");
  command->callback([logits] { (*logits)(); });
}

}  // namespace lowbit::cli
