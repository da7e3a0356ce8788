// lowbit bench: what can be measured. Each benchmark is in a file of its own.
#include "cli/commands.h"

namespace lowbit::cli {

void add_bench(CLI::App& app) {
  auto* bench = app.add_subcommand(
      "bench", "Measure layers, quantization, optimizers or generation on this machine");
  bench->require_subcommand(1);
  bench->footer("Example:\n  lowbit bench linear --shapes 4096x4096 --m 1,8,64 --type nf4");
  add_bench_linear(*bench);
  add_bench_quantize(*bench);
  add_bench_optimizer(*bench);
  add_bench_generate(*bench);
}

}  // namespace lowbit::cli
