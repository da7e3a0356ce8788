// What the tool prints: tables, progress bars, sizes. Bars and colours only on a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace lowbit::cli {

/// "1.23 GiB", "417 B".
std::string human_bytes(int64_t bytes);
/// Fixed-point text of a number.
std::string fixed(double value, int digits);

/// A table in one of three forms. Numbers are right-aligned in Markdown.
class Table {
 public:
  enum class Format { kMarkdown, kCsv };
  explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string text(Format format = Format::kMarkdown) const;

 private:
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

/// A bar on stderr, redrawn at most ten times a second; silent when stderr is no terminal.
class ProgressBar {
 public:
  explicit ProgressBar(std::string title);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  void update(int64_t done, int64_t total, const std::string& what = "");

 private:
  std::string title_;
  bool terminal_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point start_, last_;
};

/// Whether standard output is a terminal.
bool stdout_is_terminal();
/// Text in a terminal's bold face; unchanged elsewhere.
std::string bold(const std::string& text);

/// Peak resident memory of this process so far, in bytes; 0 where the system does not tell.
int64_t peak_memory();

}  // namespace lowbit::cli
