// Keys and values of the tokens a decoder has seen.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace lowbit::llm {

/// One model's cache for one batch of sequences of equal length. Grows by doubling up to the
/// model's context; copying it shares the tensors.
class KVCache {
 public:
  struct Layer {
    at::Tensor key,
        value;  ///< [batch, kv_heads, capacity, head_dim]; rows past length() are not initialized
  };

  KVCache() = default;
  /// `context`: the most tokens it may hold. Nothing is allocated before reserve().
  KVCache(int64_t layers, int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t context,
          at::ScalarType dtype, at::Device device = at::kCPU);

  int64_t length() const noexcept { return static_cast<int64_t>(ids_.size()); }
  int64_t capacity() const noexcept { return capacity_; }
  int64_t context() const noexcept { return context_; }
  int64_t batch() const noexcept { return batch_; }
  /// Bytes allocated now.
  int64_t bytes() const noexcept;

  /// Makes room for `length` tokens. Throws c10::Error past the context.
  void reserve(int64_t length);
  /// Forgets the tokens from `length` on.
  void truncate(int64_t length);
  /// Counts tokens that a forward has appended (ids of the first sequence, kept to recognize a
  /// common prefix).
  void append(const std::vector<int64_t>& ids);
  /// The tokens held, of the first sequence of the batch.
  const std::vector<int64_t>& ids() const noexcept { return ids_; }
  Layer& layer(int64_t index) { return layers_.at(static_cast<size_t>(index)); }

 private:
  std::vector<Layer> layers_;
  std::vector<int64_t> ids_;
  int64_t batch_ = 0, kv_heads_ = 0, head_dim_ = 0, context_ = 0, capacity_ = 0;
  at::ScalarType dtype_ = at::ScalarType::Float;
  at::Device device_ = at::kCPU;
};

}  // namespace lowbit::llm
