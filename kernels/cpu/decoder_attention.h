// Attention over a cache in blocks (FlashAttention's running softmax,
// https://arxiv.org/abs/2205.14135), for grouped query heads. All query rows of a unit (tokens
// times heads of the group) are the columns of one small matrix product, so that a single token
// with three heads and a prompt of hundreds run the same code and each key is read once for the
// group.
#pragma once

#include <algorithm>

#include "cpu/decoder_vec.h"
#include "decoder_check.h"

namespace lowbit::kernels {
namespace {

/// C[kRows, kCols * kLanes] (+)= A * B, A[i, k] at a[i * row + k * column], B and C row-major.
template <int kRows, int kCols>
void multiply_tile(const float* a, int64_t row, int64_t column, const float* b, int64_t b_stride,
                   float* c, int64_t c_stride, int64_t depth, bool accumulate) {
  Vec sums[kRows][kCols];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kCols; ++j) {
      sums[i][j] = accumulate ? load(c + i * c_stride + j * kLanes) : splat(0.0f);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec bs[kCols];
#pragma GCC unroll 2
    for (int j = 0; j < kCols; ++j) bs[j] = load(b + k * b_stride + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Vec x = splat(a[i * row + k * column]);
#pragma GCC unroll 2
      for (int j = 0; j < kCols; ++j) sums[i][j] = fma(x, bs[j], sums[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kCols; ++j) store(c + i * c_stride + j * kLanes, sums[i][j]);
  }
}

struct Product {
  const float* a;
  int64_t row, column;
  const float* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  int64_t rows, cols, depth;  ///< cols: a multiple of kLanes
  bool accumulate;
};

template <int kCols>
void multiply_columns(const Product& p, int64_t j) {
  const auto tile = [&]<int kRows>(int64_t i) {
    multiply_tile<kRows, kCols>(p.a + i * p.row, p.row, p.column, p.b + j, p.b_stride,
                                p.c + i * p.c_stride + j, p.c_stride, p.depth, p.accumulate);
  };
  int64_t i = 0;
  for (; i + 6 <= p.rows; i += 6) tile.template operator()<6>(i);
  switch (p.rows - i) {
    case 5:
      return tile.template operator()<5>(i);
    case 4:
      return tile.template operator()<4>(i);
    case 3:
      return tile.template operator()<3>(i);
    case 2:
      return tile.template operator()<2>(i);
    case 1:
      return tile.template operator()<1>(i);
    default:
      return;
  }
}

void multiply(const Product& p) {
  int64_t j = 0;
  for (; j + 2 * kLanes <= p.cols; j += 2 * kLanes) multiply_columns<2>(p, j);
  if (j < p.cols) multiply_columns<1>(p, j);
}

/// Where the parts of one caller's workspace are; `rows` is the number of query rows, padded to
/// whole vectors.
struct AttentionScratch {
  int64_t rows;
  float *query, *output, *keys, *values, *scores, *maximum, *total, *rescale;
  AttentionScratch(const AttentionParams& p, int64_t used_rows)
      : rows(ceil_div(used_rows, kLanes) * kLanes) {
    query = p.workspace;                 // [head_dim, rows], scaled
    output = query + rows * p.head_dim;  // [used_rows, head_dim]
    keys = output + rows * p.head_dim;   // [kAttentionKeys, head_dim]
    values = keys + kAttentionKeys * p.head_dim;
    scores = values + kAttentionKeys * p.head_dim;  // [kAttentionKeys, rows]
    maximum = scores + kAttentionKeys * rows;       // [rows] each
    total = maximum + rows;
    rescale = total + rows;
  }
};

/// Positions [first, first + count) of the cache as floats: the cache itself when it holds floats.
template <typename T>
const float* widened(const T* cache, int64_t elements, float* buffer) {
  if constexpr (std::is_same_v<T, float>) {
    return cache;
  } else {
    for (int64_t i = 0; i < elements; i += kLanes) store(buffer + i, load(cache + i));
    return buffer;
  }
}

/// Turns the scores of keys [first, first + count) into weights, and updates the running maximum
/// and total of each row. Row r belongs to token r / group. Returns whether any maximum changed.
bool soften(const AttentionParams& p, const AttentionUnit& unit, const AttentionScratch& s,
            int64_t group, int64_t first, int64_t count) {
  const int64_t oldest = p.past + unit.first_token;
  const int64_t newest = oldest + unit.tokens - 1;
  const bool all_visible =
      first + count - 1 <= oldest && (p.window == 0 || first > newest - p.window);
  bool changed = false;
  for (int64_t r = 0; r < s.rows; r += kLanes) {
    float* column = s.scores + r;
    if (!all_visible) {
      float last[kLanes], begin[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {  // relative to `first`, so that float32 is exact
        const int64_t position = oldest + std::min((r + i) / group, unit.tokens - 1) - first;
        last[i] = static_cast<float>(position);
        begin[i] = p.window > 0 ? static_cast<float>(position - p.window + 1) : -1.0f;
      }
      for (int64_t c = 0; c < count; ++c) {
        const Vec x = load(column + c * s.rows);
        store(column + c * s.rows, select_within(splat(static_cast<float>(c)), load(begin),
                                                 load(last), x, splat(-INFINITY)));
      }
    }
    const Vec before = load(s.maximum + r);
    Vec maximum = before;
    for (int64_t c = 0; c < count; ++c) maximum = max(load(column + c * s.rows), maximum);
    // A row that has seen no key yet keeps -inf; any finite number then serves as its maximum.
    const Vec floor = max(maximum, splat(-3.0e38f));
    const Vec rescale = exp(max(before, splat(-3.0e38f)) - floor);
    Vec total = load(s.total + r) * rescale;
    for (int64_t c = 0; c < count; ++c) {
      const Vec x = load(column + c * s.rows);
      const Vec hidden = splat(-INFINITY);
      const Vec weight = select_within(x, hidden, hidden, splat(0.0f), exp(x - floor));
      store(column + c * s.rows, weight);
      total = total + weight;
    }
    store(s.maximum + r, maximum);
    store(s.total + r, total);
    store(s.rescale + r, rescale);
    for (int64_t i = r; i < r + kLanes; ++i) changed |= s.rescale[i] != 1.0f;
  }
  return changed;
}

template <typename T>
void attend_unit(const AttentionParams& p, const AttentionUnit& unit) {
  const int64_t group = p.heads / p.kv_heads;
  const int64_t used = unit.tokens * group;
  const int64_t dim = p.head_dim;
  const AttentionScratch s(p, used);
  const auto row_of = [&](int64_t r) {  // of query and output, in floats
    return ((unit.first_token + r / group) * p.heads + unit.kv_head * group + r % group) * dim;
  };

  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t d = 0; d < dim; ++d) {
      s.query[d * s.rows + r] = r < used ? p.query[row_of(r) + d] * p.scale : 0.0f;
    }
  }
  std::fill_n(s.output, used * dim, 0.0f);
  std::fill_n(s.maximum, s.rows, -INFINITY);
  std::fill_n(s.total, s.rows, 0.0f);

  const int64_t oldest = p.past + unit.first_token;
  const int64_t stop = oldest + unit.tokens;
  const int64_t start = p.window > 0 ? std::max<int64_t>(0, oldest - p.window + 1) : 0;
  const int64_t base = unit.kv_head * p.capacity;
  for (int64_t first = start; first < stop; first += kAttentionKeys) {
    const int64_t count = std::min(kAttentionKeys, stop - first);
    const T* key = static_cast<const T*>(p.key_cache) + (base + first) * dim;
    const T* value = static_cast<const T*>(p.value_cache) + (base + first) * dim;
    multiply({.a = widened(key, count * dim, s.keys),
              .row = dim,
              .column = 1,
              .b = s.query,
              .b_stride = s.rows,
              .c = s.scores,
              .c_stride = s.rows,
              .rows = count,
              .cols = s.rows,
              .depth = dim,
              .accumulate = false});
    if (soften(p, unit, s, group, first, count) && first > start) {
      for (int64_t r = 0; r < used; ++r) {
        const Vec scale = splat(s.rescale[r]);
        for (int64_t d = 0; d < dim; d += kLanes) {
          store(s.output + r * dim + d, load(s.output + r * dim + d) * scale);
        }
      }
    }
    multiply({.a = s.scores,
              .row = 1,
              .column = s.rows,
              .b = widened(value, count * dim, s.values),
              .b_stride = dim,
              .c = s.output,
              .c_stride = dim,
              .rows = used,
              .cols = dim,
              .depth = count,
              .accumulate = true});
  }
  for (int64_t r = 0; r < used; ++r) {
    const Vec scale = splat(1.0f / s.total[r]);
    float* output = p.output + row_of(r);
    for (int64_t d = 0; d < dim; d += kLanes)
      store(output + d, load(s.output + r * dim + d) * scale);
  }
}

template <typename T>
void attention_range(const AttentionParams& p, int64_t begin, int64_t end) {
  for (int64_t u = begin; u < end; ++u) attend_unit<T>(p, attention_unit(p, u));
}

}  // namespace
}  // namespace lowbit::kernels
