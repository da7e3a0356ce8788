#include <filesystem>
#include <set>
#include <utility>

#include "io/json.h"
#include "io/quote.h"
#include "lowbit/error.h"
#include "lowbit/io/safetensors.h"

namespace lowbit::io {

namespace {

namespace fs = std::filesystem;
constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

/// A shard is named by a path below the directory of the index. (Links are followed: download
/// caches are made of them.)
bool stays_inside(const std::string& shard) {
  if (shard.empty() || shard.find('\0') != std::string::npos) return false;
  const fs::path path(shard);
  if (path.is_absolute() || !path.has_filename()) return false;
  for (const fs::path& part : path) {
    if (part == "..") return false;
  }
  return true;
}

/// weight_map of an index: tensor name to shard.
std::map<std::string, std::string> read_index(const std::string& path) {
  const nlohmann::json json = parse_json(read_text_file(path, size_t{256} << 20), path);
  if (!json.is_object()) throw FormatError(path, "JSON", "an object", json_kind(json));
  const auto weights = json.find("weight_map");
  if (weights == json.end() || !weights->is_object() || weights->empty()) {
    throw FormatError(path, "`weight_map`", "an object that names at least one tensor",
                      weights == json.end() ? "none" : json_kind(*weights));
  }
  std::map<std::string, std::string> map;
  for (const auto& [name, shard] : weights->items()) {
    const std::string where = "`weight_map`, key " + quote(name);
    if (!shard.is_string()) throw FormatError(path, where, "a file name", json_kind(shard));
    if (!stays_inside(shard.get_ref<const std::string&>())) {
      throw FormatError(path, where, "a file inside the directory",
                        quote(shard.get_ref<const std::string&>()));
    }
    map.emplace(name, shard.get<std::string>());
  }
  return map;
}

}  // namespace

Checkpoint Checkpoint::open(const std::string& directory_or_file) {
  Checkpoint checkpoint;
  checkpoint.path_ = directory_or_file;
  const fs::path path(directory_or_file);
  std::error_code ignored;
  std::map<std::string, std::string> index;
  std::vector<std::string> shards;
  if (!fs::is_directory(path, ignored)) {
    checkpoint.files_.push_back(SafetensorsFile::open(directory_or_file));
  } else if (fs::exists(path / kSingle, ignored)) {
    checkpoint.files_.push_back(SafetensorsFile::open((path / kSingle).string()));
  } else if (fs::exists(path / kIndex, ignored)) {
    index = read_index((path / kIndex).string());
    std::set<std::string> names;
    for (const auto& [name, shard] : index) names.insert(shard);
    shards.assign(names.begin(), names.end());
    for (const std::string& shard : shards) {
      const std::string file = (path / shard).string();
      if (!fs::exists(file, ignored)) {
        throw FormatError((path / kIndex).string(), "`weight_map`", "shard " + quote(shard),
                          "no such file");
      }
      checkpoint.files_.push_back(SafetensorsFile::open(file));
    }
  } else {
    throw FormatError(directory_or_file, "directory", std::string(kSingle) + " or " + kIndex,
                      fs::exists(path / "pytorch_model.bin", ignored)
                          ? "pytorch_model.bin (a pickle; convert it to safetensors)"
                          : "neither");
  }
  for (size_t i = 0; i < checkpoint.files_.size(); ++i) {
    const SafetensorsFile& file = checkpoint.files_[i];
    for (const std::string& name : file.names()) {
      const auto [it, inserted] = checkpoint.where_.emplace(name, i);
      if (!inserted) {
        throw FormatError(file.path(), "tensor " + quote(name), "each name in one shard",
                          "it in " + checkpoint.files_[it->second].path() + " too");
      }
    }
  }
  for (const auto& [name, shard] : index) {
    const auto it = checkpoint.where_.find(name);
    if (it == checkpoint.where_.end() || shards[it->second] != shard) {
      throw FormatError(
          (path / kIndex).string(), "`weight_map`, key " + quote(name),
          "the tensor in " + quote(shard),
          it == checkpoint.where_.end() ? "none" : "it in " + quote(shards[it->second]));
    }
  }
  return checkpoint;
}

std::vector<std::string> Checkpoint::names() const { return names_with_prefix(""); }

bool Checkpoint::contains(const std::string& name) const { return where_.count(name) != 0; }

TensorView Checkpoint::tensor(const std::string& name) const {
  const auto it = where_.find(name);
  if (it == where_.end()) {
    throw FormatError(path_, "tensors", quote(name),
                      "none of that name among " + std::to_string(where_.size()));
  }
  return files_[it->second].tensor(name);
}

void Checkpoint::release(const std::string& name) const noexcept {
  const auto it = where_.find(name);
  if (it != where_.end()) files_[it->second].release(name);
}

std::vector<std::string> Checkpoint::names_with_prefix(const std::string& prefix) const {
  std::vector<std::string> names;
  for (auto it = where_.lower_bound(prefix); it != where_.end() && it->first.starts_with(prefix);
       ++it) {
    names.push_back(it->first);
  }
  return names;
}

size_t Checkpoint::total_bytes() const noexcept {
  size_t total = 0;
  for (const auto& [name, file] : where_) total += files_[file].tensor(name).nbytes;
  return total;
}

}  // namespace lowbit::io
