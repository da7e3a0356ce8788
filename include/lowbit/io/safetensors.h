// The safetensors container: https://github.com/huggingface/safetensors (8-byte header length, JSON
// header, data).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lowbit/io/mapped_file.h"
#include "lowbit/io/tensor_view.h"

namespace lowbit::io {

/// "__metadata__" of a file: strings only. Absent and empty are different bytes in a file.
using SafetensorsMetadata = std::map<std::string, std::string>;

/// One file. Every number of the header is checked when it is opened: sizes, offsets, overlaps,
/// gaps, duplicates.
class SafetensorsFile {
 public:
  /// Throws IoError or FormatError.
  static SafetensorsFile open(const std::string& path);
  /// Reads from memory (tests, fuzzing); `name` stands for the path in errors.
  static SafetensorsFile parse(std::shared_ptr<const void> owner, const std::byte* data,
                               size_t size, const std::string& name);

  const std::string& path() const noexcept { return path_; }
  /// Names in the order of their data.
  const std::vector<std::string>& names() const noexcept { return names_; }
  bool contains(const std::string& name) const { return tensors_.count(name) != 0; }
  /// Zero-copy view that keeps the mapping alive. Throws FormatError when there is no such tensor.
  TensorView tensor(const std::string& name) const;
  /// Empty when the file has none; has_metadata() tells an empty "__metadata__" from a missing one.
  const SafetensorsMetadata& metadata() const noexcept { return metadata_; }
  bool has_metadata() const noexcept { return has_metadata_; }
  /// Lets the system drop the tensor's pages (after it was copied or quantized).
  void release(const std::string& name) const noexcept;

 private:
  std::string path_;
  std::shared_ptr<const MappedFile> mapping_;
  std::vector<std::string> names_;
  std::map<std::string, TensorView> tensors_;
  SafetensorsMetadata metadata_;
  bool has_metadata_ = false;
};

/// A model directory: `model.safetensors`, or `model.safetensors.index.json` and its shards (or one
/// .safetensors file).
class Checkpoint {
 public:
  /// Throws IoError or FormatError (missing shards, keys in two shards, shard names that leave the
  /// directory).
  static Checkpoint open(const std::string& directory_or_file);
  /// All names, sorted.
  std::vector<std::string> names() const;
  bool contains(const std::string& name) const;
  TensorView tensor(const std::string& name) const;
  void release(const std::string& name) const noexcept;
  /// Names that start with `prefix`, sorted (so "model.layers.1." does not find layer 10).
  std::vector<std::string> names_with_prefix(const std::string& prefix) const;
  const std::string& path() const noexcept { return path_; }
  size_t total_bytes() const noexcept;

 private:
  std::string path_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, size_t> where_;
};

/// Writes one file, atomically (temporary name in the same folder, fsync, rename); nothing remains
/// when it fails. The bytes are those of the reference writer: tensors by descending alignment of
/// the dtype, then by name. Throws IoError, or FormatError for a view whose bytes do not fit its
/// shape.
void write_safetensors(const std::string& path, const std::map<std::string, TensorView>& tensors,
                       const std::optional<SafetensorsMetadata>& metadata = SafetensorsMetadata{
                           {"format", "pt"}});

/// Writes a model directory's weights tensor by tensor: add() streams the bytes to a temporary file
/// at once, so nothing but names is kept in memory; a shard that would grow beyond
/// `max_shard_bytes` is closed and the next one begun. finish() renames everything into place
/// (model.safetensors, or shards and their index) and removes the weights that were in the
/// directory before. The destructor removes what was not finished.
class CheckpointWriter {
 public:
  /// Creates the directory when it does not exist.
  explicit CheckpointWriter(std::string directory, size_t max_shard_bytes = size_t{5} << 30,
                            SafetensorsMetadata metadata = {{"format", "pt"}});
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;
  /// Throws IoError, or FormatError for a name that was added before or a view whose bytes do not
  /// fit its shape.
  void add(const std::string& name, const TensorView& tensor);
  /// Nothing is visible under a final name before this call. Throws IoError.
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Writes a small text file atomically. Throws IoError.
void write_text_file(const std::string& path, const std::string& text);
/// Reads a text file of at most `limit` bytes. Throws IoError or FormatError.
std::string read_text_file(const std::string& path, size_t limit = size_t{64} << 20);

}  // namespace lowbit::io
