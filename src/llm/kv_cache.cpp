#include "lowbit/llm/kv_cache.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "ops/check.h"

namespace lowbit::llm {
namespace {

/// The least that a growing cache allocates: short chats never copy it.
constexpr int64_t kFirstTokens = 256;

at::Tensor grown(const at::Tensor& old, at::IntArrayRef shape, int64_t keep,
                 const at::TensorOptions& options) {
  at::Tensor tensor = at::empty(shape, options);
  if (old.defined() && keep > 0) tensor.narrow(2, 0, keep).copy_(old.narrow(2, 0, keep));
  return tensor;
}

}  // namespace

KVCache::KVCache(int64_t layers, int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t context,
                 at::ScalarType dtype, at::Device device)
    : layers_(static_cast<size_t>(layers)),
      batch_(batch),
      kv_heads_(kv_heads),
      head_dim_(head_dim),
      context_(context),
      dtype_(dtype),
      device_(device) {
  LOWBIT_CHECK(batch >= 1, "KVCache", "batch", "at least 1", batch);
  LOWBIT_CHECK(context >= 1, "KVCache", "context", "at least 1", context);
}

int64_t KVCache::bytes() const noexcept {
  return 2 * static_cast<int64_t>(layers_.size()) * batch_ * kv_heads_ * capacity_ * head_dim_ *
         static_cast<int64_t>(c10::elementSize(dtype_));
}

void KVCache::reserve(int64_t length) {
  LOWBIT_CHECK(length <= context_, "KVCache", "length", c10::str("at most ", context_, " tokens"),
               length, "The prompt and the answer do not fit into the model's context");
  if (length <= capacity_) return;
  const int64_t capacity = std::min(context_, std::max({length, 2 * capacity_, kFirstTokens}));
  const std::vector<int64_t> shape{batch_, kv_heads_, capacity, head_dim_};
  const auto options = at::TensorOptions(dtype_).device(device_);
  for (Layer& layer : layers_) {
    layer.key = grown(layer.key, shape, this->length(), options);
    layer.value = grown(layer.value, shape, this->length(), options);
  }
  capacity_ = capacity;
}

void KVCache::truncate(int64_t length) {
  LOWBIT_CHECK(0 <= length && length <= this->length(), "KVCache", "length",
               c10::str("in [0, ", this->length(), "]"), length);
  ids_.resize(static_cast<size_t>(length));
}

void KVCache::append(const std::vector<int64_t>& ids) {
  LOWBIT_CHECK(length() + static_cast<int64_t>(ids.size()) <= capacity_, "KVCache", "ids",
               "tokens that were reserved", ids.size());
  ids_.insert(ids_.end(), ids.begin(), ids.end());
}

}  // namespace lowbit::llm
