// What `bench linear` and `bench quantize` share: their options, and how results are printed and
// saved: Markdown, CSV, and the JSON that benchmarks/compare.py and benchmarks/plot.py read.
#pragma once

#include <c10/core/Device.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/console.h"

namespace lowbit::cli {

struct Shape {
  int64_t n, k;
  std::string text() const { return std::to_string(n) + "x" + std::to_string(k); }
};
/// "NxK". Throws CLI::ValidationError.
Shape parse_shape(const std::string& text);

struct BenchOptions {
  std::string device = "auto", format = "md";
  std::vector<std::string> outputs;
  bool json = false;
  int threads = 0;
  double seconds = 0.3;

  void add_to(CLI::App& command);
  /// Applies --threads and finds the device; refuses outputs before time is spent on them.
  at::Device begin() const;
};

/// The results of one command.
class BenchReport {
 public:
  /// `name`: "linear"; `settings` go to the JSON, as they are.
  BenchReport(std::string name, at::Device device, std::vector<std::string> columns,
              nlohmann::ordered_json settings);

  /// A limit of the hardware, measured in this run: "copy", 4.16e12, "TB/s".
  void add_ceiling(const std::string& name, double per_second, const std::string& unit);
  void add_note(const std::string& note) { notes_ += note + "\n"; }
  void add(std::vector<std::string> cells, nlohmann::ordered_json row);
  /// To standard output, and to the files of --output.
  void print(const BenchOptions& options) const;

 private:
  std::string text(const std::string& form) const;

  std::string heading_, notes_, ceilings_;
  Table table_;
  nlohmann::ordered_json json_;
};

/// "2.48 TB/s", "650 TFLOP/s": a rate in the unit of its size; `what` is "B" or "FLOP".
std::string rate_text(double per_second, const std::string& what);

}  // namespace lowbit::cli
