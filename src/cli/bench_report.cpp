#include "cli/bench_report.h"

#include <ATen/Parallel.h>

#include <array>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "cli/commit.h"
#include "cli/device.h"
#include "lowbit/functional.h"
#include "lowbit/version.h"

namespace lowbit::cli {
namespace {

/// "md", "csv" or "json", by the end of a file's name; empty for another one.
std::string form_of(const std::string& path) {
  for (const char* form : {"md", "csv", "json"}) {
    const std::string end = std::string(".") + form;
    if (path.size() > end.size() && path.compare(path.size() - end.size(), end.size(), end) == 0) {
      return form;
    }
  }
  return "";
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::array<char, 16> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%d", &utc);
  return text.data();
}

}  // namespace

Shape parse_shape(const std::string& text) {
  Shape shape{};
  char x = 0, rest = 0;
  std::istringstream in(text);
  if (!(in >> shape.n >> x >> shape.k) || x != 'x' || shape.n < 1 || shape.k < 1 || in >> rest) {
    throw CLI::ValidationError("--shapes", "expected NxK such as 4096x4096, got '" + text + "'");
  }
  return shape;
}

std::string rate_text(double per_second, const std::string& what) {
  const bool large = per_second >= 1e12;
  const double value = per_second / (large ? 1e12 : 1e9);
  return fixed(value, value < 10 ? 2 : (value < 100 ? 1 : 0)) + (large ? " T" : " G") + what + "/s";
}

void BenchOptions::add_to(CLI::App& command) {
  command.add_option("--device", device, "auto (the first GPU, else the CPU), cpu, cuda or cuda:N")
      ->capture_default_str();
  command.add_option("--format", format, "md or csv")
      ->capture_default_str()
      ->check(CLI::IsMember({"md", "csv"}));
  command.add_flag("--json", json, "Print as JSON");
  command
      .add_option("-o,--output", outputs,
                  "Also write to this file, as its name ends: .md, .csv or .json (may repeat)")
      ->check([](const std::string& path) {
        return form_of(path).empty() ? "must end with .md, .csv or .json: " + path : "";
      });
  command.add_option("--threads", threads, "CPU threads (default: all cores)")
      ->check(CLI::PositiveNumber);
  command
      .add_option("--seconds", seconds,
                  "Time spent on each measurement, at least (GPU: 21 samples, CPU: 5)")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
}

at::Device BenchOptions::begin() const {
  for (const std::string& path : outputs) {
    const auto folder = std::filesystem::absolute(path).parent_path();
    if (!std::filesystem::is_directory(folder)) {
      throw std::runtime_error("--output " + path + " cannot be written: there is no folder " +
                               folder.string());
    }
  }
  if (threads > 0) at::set_num_threads(threads);
  return parse_device(device);
}

BenchReport::BenchReport(std::string name, at::Device device, std::vector<std::string> columns,
                         nlohmann::ordered_json settings)
    : table_(std::move(columns)) {
  const std::string hash = commit(), machine = describe_device(device), date = today();
  heading_ = machine + ", lowbit " + LOWBIT_VERSION + (hash.empty() ? "" : " (" + hash + ")") +
             ", " + date + "\n";
  json_ = {{"bench", std::move(name)}, {"library", "lowbit"}, {"version", LOWBIT_VERSION},
           {"commit", hash},           {"date", date},        {"device", device.str()},
           {"machine", machine},       {"isa", cpu_isa()},    {"threads", at::get_num_threads()}};
  json_.update(settings);
  json_["ceilings"] = nlohmann::ordered_json::object();
  json_["rows"] = nlohmann::ordered_json::array();
}

void BenchReport::add_ceiling(const std::string& name, double per_second, const std::string& what) {
  ceilings_ += (ceilings_.empty() ? "Ceilings of this run: " : ", ") + name + " " +
               rate_text(per_second, what);
  json_["ceilings"][name] = per_second;
}

void BenchReport::add(std::vector<std::string> cells, nlohmann::ordered_json row) {
  table_.add(std::move(cells));
  json_["rows"].push_back(std::move(row));
}

std::string BenchReport::text(const std::string& form) const {
  if (form == "json") return json_.dump(2) + "\n";
  if (form == "csv") return table_.text(Table::Format::kCsv);
  return heading_ + ceilings_ + (ceilings_.empty() ? "" : ".\n") + notes_ + "\n" + table_.text();
}

void BenchReport::print(const BenchOptions& options) const {
  std::cout << text(options.json ? "json" : options.format);
  for (const std::string& path : options.outputs) {
    std::ofstream file(path);
    file << text(form_of(path));
    file.close();
    if (!file) throw std::runtime_error("--output " + path + " cannot be written");
  }
}

}  // namespace lowbit::cli
