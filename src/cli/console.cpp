#include "cli/console.h"

#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <sstream>

namespace lowbit::cli {
namespace {

bool is_number(const std::string& text) {
  return !text.empty() && text.find_first_not_of("0123456789.,+-%x") == std::string::npos;
}

/// Characters on screen: UTF-8 continuation bytes do not count.
size_t width(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  }));
}

/// Quoted when it must be.
std::string csv_cell(const std::string& text) {
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (char c : text) {
    if (c == '"') quoted += '"';
    quoted += c;
  }
  return quoted + '"';
}

}  // namespace

std::string fixed(double value, int digits) {
  std::array<char, 64> buffer;
  std::snprintf(buffer.data(), buffer.size(), "%.*f", digits, value);
  return buffer.data();
}

std::string human_bytes(int64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024.0 && unit + 1 < kUnits.size()) {
    value /= 1024.0;
    ++unit;
  }
  return fixed(value, unit == 0 || value >= 100 ? 0 : (value >= 10 ? 1 : 2)) + " " + kUnits[unit];
}

std::string Table::text(Format format) const {
  std::ostringstream out;
  if (format == Format::kCsv) {
    const auto line = [&](const std::vector<std::string>& cells) {
      for (size_t i = 0; i < cells.size(); ++i) {
        out << (i == 0 ? "" : ",") << csv_cell(cells[i]);
      }
      out << '\n';
    };
    line(header_);
    for (const auto& row : rows_) line(row);
    return out.str();
  }
  std::vector<size_t> widths(header_.size());
  std::vector<bool> right(header_.size(), !rows_.empty());
  for (size_t i = 0; i < header_.size(); ++i) {
    widths[i] = width(header_[i]);
    for (const auto& row : rows_) {
      widths[i] = std::max(widths[i], width(row[i]));
      if (!row[i].empty() && !is_number(row[i])) right[i] = false;
    }
  }
  const auto line = [&](const std::vector<std::string>& cells) {
    for (size_t i = 0; i < cells.size(); ++i) {
      const std::string pad(widths[i] - width(cells[i]), ' ');
      out << "| " << (right[i] ? pad + cells[i] : cells[i] + pad) << ' ';
    }
    out << "|\n";
  };
  line(header_);
  for (size_t i = 0; i < header_.size(); ++i) {
    out << "| " << std::string(std::max<size_t>(widths[i], 2) - (right[i] ? 1 : 0), '-')
        << (right[i] ? ":" : "") << ' ';
  }
  out << "|\n";
  for (const auto& row : rows_) line(row);
  return out.str();
}

ProgressBar::ProgressBar(std::string title)
    : title_(std::move(title)),
      terminal_(isatty(STDERR_FILENO) != 0),
      start_(std::chrono::steady_clock::now()) {}

ProgressBar::~ProgressBar() {
  if (drawn_) std::fputs("\r\033[K", stderr);
}

void ProgressBar::update(int64_t done, int64_t total, const std::string& what) {
  if (!terminal_ || total <= 0) return;
  const auto now = std::chrono::steady_clock::now();
  if (drawn_ && done < total && now - last_ < std::chrono::milliseconds(100)) return;
  last_ = now;
  drawn_ = true;
  constexpr int kWidth = 30;
  const double part = std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0);
  const int filled = static_cast<int>(part * kWidth);
  const double seconds = std::chrono::duration<double>(now - start_).count();
  std::string line = title_ + " [" + std::string(static_cast<size_t>(filled), '#') +
                     std::string(static_cast<size_t>(kWidth - filled), '.') + "] " +
                     fixed(100 * part, 0) + " %";
  if (part > 0.02 && seconds > 1) line += "  " + fixed(seconds / part - seconds, 0) + " s left";
  if (!what.empty()) line += "  " + what;
  winsize size{};
  const size_t columns =
      ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
  if (line.size() >= columns) line.resize(columns - 1);
  std::fprintf(stderr, "\r\033[K%s", line.c_str());
  std::fflush(stderr);
}

bool stdout_is_terminal() { return isatty(STDOUT_FILENO) != 0; }

std::string bold(const std::string& text) {
  return stdout_is_terminal() && std::getenv("NO_COLOR") == nullptr ? "\033[1m" + text + "\033[0m"
                                                                    : text;
}

int64_t peak_memory() {
  rusage usage{};
  return getrusage(RUSAGE_SELF, &usage) == 0 ? int64_t{usage.ru_maxrss} * 1024 : 0;
}

}  // namespace lowbit::cli
