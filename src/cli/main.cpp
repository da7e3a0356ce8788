// lowbit: quantize, run and measure language models. See `lowbit --help`.
#include <c10/util/Exception.h>

#include <iostream>

#include "cli/commands.h"
#include "lowbit/version.h"

namespace {

constexpr int kError = 1;
constexpr int kUsageError = 2;

int fail(const std::string& message) {
  std::cout.flush();
  std::cerr << "lowbit: error: " << message << '\n';
  return kError;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace lowbit::cli;
  CLI::App app(
      "Low-bit language models: quantize, run and measure them.\n"
      "Files are those of Transformers and bitsandbytes (safetensors), and GGUF.",
      "lowbit");
  app.set_version_flag("--version", std::string("lowbit ") + LOWBIT_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Example:\n"
      "  lowbit quantize SmolLM2.gguf smollm2-nf4 --type nf4 --double-quant\n"
      "  lowbit run smollm2-nf4 -p \"Why is the sky blue?\"\n"
      "Every command has its own --help.");
  add_quantize(app);
  add_dequantize(app);
  add_run(app);
  add_ppl(app);
  add_logits(app);
  add_tokenize(app);
  add_inspect(app);
  add_bench(app);
  add_doctor(app);
  try {
    app.parse(argc, argv);
    std::cout.flush();
    if (!std::cout) return fail("standard output cannot be written");
    return 0;
  } catch (const CLI::ParseError& error) {
    // --help and --version come this way too, with exit code 0.
    return app.exit(error, std::cout, std::cerr) == 0 ? 0 : kUsageError;
  } catch (const c10::Error& error) {
    return fail(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}
