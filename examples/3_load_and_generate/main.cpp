// A language model: quantized while it loads, then an answer, piece by piece.
//   load_and_generate MODEL [PROMPT]    MODEL: a directory of Hugging Face files, or a GGUF file
#include <lowbit/lowbit.h>

#include <iostream>

namespace llm = lowbit::llm;

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: load_and_generate MODEL [PROMPT]\n";
    return 2;
  }
  const std::string path = argv[1], prompt = argc > 2 ? argv[2] : "Why is the sky blue?";

  auto tokenizer = llm::AutoTokenizer::from_pretrained(path);
  lowbit::BitsAndBytesConfig nf4{.load_in_4bit = true,
                                 .bnb_4bit_quant_type = "nf4",
                                 .bnb_4bit_use_double_quant = true,
                                 .bnb_4bit_compute_dtype = at::kBFloat16};
  auto model = llm::AutoModelForCausalLM::from_pretrained(path, {.quantization_config = nf4});
  std::cout << model.memory_report();

  const std::vector<llm::Message> messages{{"user", prompt}};
  auto ids = tokenizer.apply_chat_template(messages);
  for (auto id : model.stream(ids, {.max_new_tokens = 100})) {
    std::cout << tokenizer.decode(id) << std::flush;
  }
  std::cout << "\n";
}
