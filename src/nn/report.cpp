// The report of quantize_ as a table.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <ostream>

#include "lowbit/quantize.h"
#include "ops/check.h"

namespace lowbit {
namespace {

using Row = std::vector<std::string>;

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "" : " x ") + std::to_string(size);
  return text;
}

std::string bytes_text(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024.0 && unit + 1 < std::size(kUnits); ++unit) value /= 1024.0;
  char text[48];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f %s" : "%.2f %s", value, kUnits[unit]);
  return text;
}

std::string error_text(double error) {
  if (std::isnan(error)) return "-";
  char text[32];
  std::snprintf(text, sizeof(text), "%.4f", error);
  return text;
}

/// First two columns to the left, sizes and errors to the right.
void write_table(std::ostream& stream, const std::vector<Row>& rows) {
  constexpr size_t kFirstNumber = 3;
  std::vector<size_t> widths(rows.front().size(), 0);
  for (const Row& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const Row& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - row[i].size(), ' ');
      line += (i == 0 ? "" : "  ") + (i < kFirstNumber ? row[i] + padding : padding + row[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    stream << line << '\n';
  }
}

template <class Items, class Member>
int64_t sum_of(const Items& items, Member member) {
  int64_t sum = 0;
  for (const auto& item : items) sum += item.*member;
  return sum;
}

}  // namespace

int64_t QuantizationReport::bytes_before() const noexcept {
  return sum_of(layers, &Layer::bytes_before) + sum_of(left_alone, &LeftAlone::bytes);
}

int64_t QuantizationReport::bytes_after() const noexcept {
  return sum_of(layers, &Layer::bytes_after) + sum_of(left_alone, &LeftAlone::bytes);
}

std::ostream& operator<<(std::ostream& stream, const QuantizationReport& report) {
  std::vector<Row> rows{{"weight", "shape", "scheme", "before", "after", "relative error"}};
  for (const auto& layer : report.layers) {
    std::string name = layer.name;
    for (const std::string& other : layer.tied) name += " = " + other;
    rows.push_back({name, shape_text(layer.shape),
                    ops::dtype_name(layer.dtype) + " -> " + layer.scheme,
                    bytes_text(layer.bytes_before), bytes_text(layer.bytes_after),
                    error_text(layer.relative_error)});
  }
  const size_t count = report.layers.size();
  rows.push_back({c10::str(count, count == 1 ? " weight" : " weights"), "", "",
                  bytes_text(sum_of(report.layers, &QuantizationReport::Layer::bytes_before)),
                  bytes_text(sum_of(report.layers, &QuantizationReport::Layer::bytes_after)), ""});
  write_table(stream, rows);

  std::map<std::string, std::vector<const QuantizationReport::LeftAlone*>> by_reason;
  for (const auto& left : report.left_alone) by_reason[left.reason].push_back(&left);
  if (!by_reason.empty()) stream << "left alone:\n";
  for (const auto& [reason, items] : by_reason) {
    constexpr size_t kNamed = 3;
    int64_t bytes = 0;
    std::string names;
    for (size_t i = 0; i < items.size(); ++i) {
      bytes += items[i]->bytes;
      if (i < kNamed) names += (i == 0 ? "" : ", ") + items[i]->name;
    }
    if (items.size() > kNamed) names += c10::str(" and ", items.size() - kNamed, " more");
    stream << "  " << names << " (" << bytes_text(bytes) << "): " << reason << '\n';
  }
  return stream << "all parameters: " << bytes_text(report.bytes_before()) << " -> "
                << bytes_text(report.bytes_after()) << (report.dry_run ? " (dry run)\n" : "\n");
}

}  // namespace lowbit
