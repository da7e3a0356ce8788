// What the commands of `lowbit bench` share: contestants timed in turns, and where tables go.
#pragma once

#include <ATen/Parallel.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/console.h"
#include "lowbit/functional.h"

namespace lowbit::cli {

struct Timing {
  double median = 0, spread = 0;  // seconds; (p90 - p10) / median
};

/// Runs the contestants in turns, each for about `seconds` in all, and returns their medians.
inline std::vector<Timing> time_in_turns(const std::vector<std::function<void()>>& contestants,
                                         double seconds) {
  using clock = std::chrono::steady_clock;
  std::vector<std::vector<double>> times(contestants.size());
  for (const auto& run : contestants) run();  // warm
  double spent = 0;
  const double budget = seconds * static_cast<double>(contestants.size());
  while (spent < budget || times.front().size() < 5) {
    for (size_t i = 0; i < contestants.size(); ++i) {
      const auto start = clock::now();
      contestants[i]();
      times[i].push_back(std::chrono::duration<double>(clock::now() - start).count());
      spent += times[i].back();
    }
  }
  std::vector<Timing> result;
  for (auto& t : times) {
    std::sort(t.begin(), t.end());
    const double median = t[t.size() / 2];
    result.push_back({median, (t[t.size() * 9 / 10] - t[t.size() / 10]) / median});
  }
  return result;
}

struct Output {
  std::string format = "md";
  bool json = false;
  int threads = 0;
  double seconds = 0.3;

  void add_to(CLI::App& command) {
    command.add_option("--format", format, "md or csv")
        ->capture_default_str()
        ->check(CLI::IsMember({"md", "csv"}));
    command.add_flag("--json", json, "Print as JSON");
    command.add_option("--threads", threads, "CPU threads (default: all cores)")
        ->check(CLI::PositiveNumber);
    command.add_option("--seconds", seconds, "Time spent on each measurement")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
  }
  void begin() const {
    if (threads > 0) at::set_num_threads(threads);
  }
  /// `device`: what the rows were measured on, when it is not the CPU.
  void print(const Table& table, const nlohmann::ordered_json& rows,
             const std::string& device = {}) const {
    if (json) {
      nlohmann::ordered_json all{{"isa", cpu_isa()}, {"threads", at::get_num_threads()}};
      if (!device.empty()) all = {{"device", device}};
      all["rows"] = rows;
      std::cout << all.dump(2) << '\n';
      return;
    }
    if (format == "csv") {
      std::cout << table.text(Table::Format::kCsv);
      return;
    }
    std::cout << table.text();
    if (!device.empty()) {
      std::cout << device << '\n';
    } else {
      std::cout << "CPU, " << cpu_isa() << ", " << at::get_num_threads() << " threads\n";
    }
  }
};

}  // namespace lowbit::cli
