// Every command of the tool. Each adds its subcommand, options and work to the application; errors
// are exceptions.
#pragma once

#include <CLI/CLI.hpp>

namespace lowbit::cli {

void add_quantize(CLI::App& app);
void add_dequantize(CLI::App& app);
void add_run(CLI::App& app);
void add_ppl(CLI::App& app);
void add_logits(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_inspect(CLI::App& app);
void add_bench(CLI::App& app);
void add_doctor(CLI::App& app);

/// What `bench` measures.
void add_bench_linear(CLI::App& bench);
void add_bench_quantize(CLI::App& bench);
void add_bench_generate(CLI::App& bench);
void add_bench_optimizer(CLI::App& bench);

}  // namespace lowbit::cli
