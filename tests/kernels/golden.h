// Recorded outputs of the reference implementation, and the count of what differs from them.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "lowbit/io/safetensors.h"
#include "scalar.h"
#include "support/golden_dir.h"

namespace lowbit::kernels::testing {

class Golden {
 public:
  explicit Golden(const std::string& file)
      : file_(io::SafetensorsFile::open(lowbit::test::golden_dir() + "/" + file)) {}

  template <typename T>
  std::vector<T> get(const std::string& name) const {
    const io::TensorView view = file_.tensor(name);
    EXPECT_EQ(view.nbytes % sizeof(T), 0u) << name;
    std::vector<T> values(view.nbytes / sizeof(T));
    std::memcpy(values.data(), view.data, values.size() * sizeof(T));
    return values;
  }
  /// Names "<prefix><stem><suffix>", as the stems between; in the order of the file.
  std::vector<std::string> stems(const std::string& prefix, const std::string& suffix) const {
    std::vector<std::string> found;
    for (const std::string& name : file_.names()) {
      if (name.starts_with(prefix) && name.ends_with(suffix) &&
          name.size() > prefix.size() + suffix.size()) {
        found.push_back(name.substr(prefix.size(), name.size() - prefix.size() - suffix.size()));
      }
    }
    EXPECT_FALSE(found.empty()) << prefix << "*" << suffix;
    return found;
  }
  bool contains(const std::string& name) const { return file_.contains(name); }

 private:
  io::SafetensorsFile file_;
};

/// Counts and, at its end, prints one row: family, cases, elements, mismatches.
class Tally {
 public:
  explicit Tally(std::string family) : family_(std::move(family)) {}
  ~Tally() {
    std::printf("[ golden ] %-34s cases %4d  elements %8lld  mismatches %lld\n", family_.c_str(),
                cases_, static_cast<long long>(elements_), static_cast<long long>(mismatches_));
    EXPECT_GT(elements_, 0) << family_;
  }
  Tally(const Tally&) = delete;
  Tally& operator=(const Tally&) = delete;

  /// Bits of two arrays, element by element; `expected_mismatches` are those that the case is known
  /// to have.
  template <typename T>
  void compare(const std::string& name, const std::vector<T>& ours, const std::vector<T>& recorded,
               int64_t expected_mismatches = 0) {
    ASSERT_EQ(ours.size(), recorded.size()) << name;
    int64_t differing = 0;
    std::string first;
    for (size_t i = 0; i < ours.size(); ++i) {
      if (std::memcmp(&ours[i], &recorded[i], sizeof(T)) == 0) continue;
      if (differing++ == 0) first = " first at " + std::to_string(i);
    }
    EXPECT_EQ(differing, expected_mismatches) << name << first;
    ++cases_;
    elements_ += static_cast<int64_t>(ours.size());
    mismatches_ += differing;
  }

 private:
  std::string family_;
  int cases_ = 0;
  int64_t elements_ = 0, mismatches_ = 0;
};

/// All NaNs are one: their bits are the business of the machine.
inline std::vector<float> floats_of(const std::vector<uint8_t>& bytes, DType dtype) {
  std::vector<float> values(bytes.size() / static_cast<size_t>(itemsize(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = load_element(bytes.data(), dtype, static_cast<int64_t>(i));
    if (std::isnan(values[i])) values[i] = NAN;
  }
  return values;
}

/// Parts of "a.b.c".
inline std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts(1);
  for (char c : text) {
    if (c == '.') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

/// "a.b.c". (g++ 12 warns, wrongly, about sums of strings that begin with a literal.)
inline std::string joined(std::initializer_list<std::string_view> parts) {
  std::string text;
  for (std::string_view part : parts) {
    if (!text.empty()) text += '.';
    text += part;
  }
  return text;
}

inline DType dtype_named(const std::string& name) {
  EXPECT_TRUE(name == "fp32" || name == "fp16" || name == "bf16") << name;
  return name == "fp32" ? DType::kFloat32 : name == "fp16" ? DType::kFloat16 : DType::kBFloat16;
}

/// Values as elements of `dtype`, rounded to nearest even.
inline std::vector<uint8_t> cast(const std::vector<float>& values, DType dtype) {
  std::vector<uint8_t> bytes(values.size() * static_cast<size_t>(itemsize(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    store_element(bytes.data(), dtype, static_cast<int64_t>(i), values[i]);
  }
  return bytes;
}

}  // namespace lowbit::kernels::testing
