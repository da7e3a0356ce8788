#include <algorithm>
#include <cctype>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "io/atomic_file.h"
#include "io/quote.h"
#include "io/safetensors_header.h"
#include "lowbit/error.h"

namespace lowbit::io {

namespace {

namespace fs = std::filesystem;
constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

std::string shard_name(size_t number, size_t count) {
  char name[64];
  std::snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", number, count);
  return name;
}

/// model.safetensors, its index and shards, whatever their number: the names this writer gives.
bool is_weights_name(const std::string& name) {
  if (name == kSingle || name == kIndex) return true;
  const std::string pattern = "model-#####-of-#####.safetensors";
  return std::equal(name.begin(), name.end(), pattern.begin(), pattern.end(), [](char c, char p) {
    return p == '#' ? std::isdigit(static_cast<unsigned char>(c)) != 0 : c == p;
  });
}

}  // namespace

struct CheckpointWriter::Impl {
  struct Shard {
    AtomicFile file;
    std::vector<std::string> names;
  };

  std::string directory;
  size_t max_shard_bytes;
  SafetensorsMetadata metadata;
  bool created_directory = false;
  bool finished = false;
  size_t total_bytes = 0;
  std::set<std::string> seen;
  std::vector<Shard> shards;              // closed: complete files under temporary names
  std::optional<AtomicFile> data;         // the open shard's bytes, in the order of add()
  std::vector<SafetensorsEntry> entries;  // ... and where they are in it

  std::string path(const std::string& name) const { return (fs::path(directory) / name).string(); }

  /// The header is known only now, and the reference order is not the order of add(): copies the
  /// open shard's bytes into place behind its header.
  void close_shard() {
    sort_safetensors_entries(entries);
    const std::string name = path(kSingle);
    Shard shard{AtomicFile(name), {}};
    shard.file.write(build_safetensors_header(entries, metadata, name));
    for (const SafetensorsEntry& entry : entries) {
      if (data) shard.file.append(*data, entry.offset, entry.nbytes);
      shard.names.push_back(entry.name);
    }
    shard.file.seal();
    shards.push_back(std::move(shard));
    data.reset();
    entries.clear();
  }

  std::string index_text() const {
    nlohmann::json weights = nlohmann::json::object();
    for (size_t i = 0; i < shards.size(); ++i) {
      for (const std::string& name : shards[i].names)
        weights[name] = shard_name(i + 1, shards.size());
    }
    const nlohmann::json index = {{"metadata", {{"total_size", total_bytes}}},
                                  {"weight_map", std::move(weights)}};
    return index.dump(2, ' ', true) + "\n";
  }
};

CheckpointWriter::CheckpointWriter(std::string directory, size_t max_shard_bytes,
                                   SafetensorsMetadata metadata)
    : impl_(std::make_unique<Impl>()) {
  impl_->directory = std::move(directory);
  impl_->max_shard_bytes = max_shard_bytes;
  impl_->metadata = std::move(metadata);
  std::error_code error;
  impl_->created_directory = fs::create_directories(impl_->directory, error);
  if (error) throw IoError(impl_->directory, "create directory", error.value());
}

CheckpointWriter::~CheckpointWriter() {
  if (impl_->finished) return;
  impl_->data.reset();
  impl_->shards.clear();
  std::error_code ignored;
  if (impl_->created_directory) fs::remove(impl_->directory, ignored);  // only when it is empty
}

void CheckpointWriter::add(const std::string& name, const TensorView& tensor) {
  Impl& self = *impl_;
  SafetensorsEntry entry = safetensors_entry(name, tensor, self.directory);
  if (!self.seen.insert(name).second) {
    throw FormatError(self.directory, "tensor " + quote(name), "each name once",
                      "it a second time");
  }
  if (self.data && self.data->size() + entry.nbytes > self.max_shard_bytes) self.close_shard();
  if (!self.data) self.data.emplace(self.path(kSingle));
  entry.offset = self.data->size();
  self.data->write(tensor.data, entry.nbytes);
  self.total_bytes += entry.nbytes;
  self.entries.push_back(std::move(entry));
}

void CheckpointWriter::finish() {
  Impl& self = *impl_;
  if (self.data || self.shards.empty()) self.close_shard();
  std::set<std::string> written;
  if (self.shards.size() == 1) {
    self.shards.front().file.commit(self.path(kSingle));
    written.insert(kSingle);
  } else {
    // All bytes are on the disk before the first name changes; the index, which makes them a model,
    // comes last.
    AtomicFile index(self.path(kIndex));
    index.write(self.index_text());
    index.seal();
    for (size_t i = 0; i < self.shards.size(); ++i) {
      const std::string name = shard_name(i + 1, self.shards.size());
      self.shards[i].file.commit(self.path(name));
      written.insert(name);
    }
    index.commit(self.path(kIndex));
    written.insert(kIndex);
  }
  self.finished = true;
  // Weights of an earlier save would be read instead of (or beside) these. Whoever has them mapped
  // keeps them.
  std::error_code ignored;
  std::vector<fs::path> stale;
  for (const fs::directory_entry& entry : fs::directory_iterator(self.directory, ignored)) {
    const std::string name = entry.path().filename().string();
    if (is_weights_name(name) && written.count(name) == 0) stale.push_back(entry.path());
  }
  for (const fs::path& path : stale) fs::remove(path, ignored);
}

}  // namespace lowbit::io
