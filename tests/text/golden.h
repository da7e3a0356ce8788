// The committed tokenizers and what the reference gives for them.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "lowbit/text/tokenizer.h"
#include "support/golden_dir.h"

namespace lowbit::text::test {

inline const char* const kTokenizers[] = {"byte_level", "llama3_like", "qwen2_like",
                                          "sentencepiece_like", "metaspace_like"};

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline std::string golden_file(const std::string& name) {
  return read_file(std::filesystem::path(lowbit::test::golden_dir()) / "tokenizer" / name);
}

inline nlohmann::json golden_json(const std::string& name) {
  return nlohmann::json::parse(golden_file(name));
}

inline Tokenizer golden_tokenizer(const std::string& name) {
  return Tokenizer::from_json(golden_file(name + ".tokenizer.json"), "", name);
}

/// A generator with a fresh seed, which a failing test prints.
struct Random {
  uint64_t seed = std::random_device()();
  std::mt19937_64 engine{seed};
  size_t below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(engine); }
};

}  // namespace lowbit::text::test
