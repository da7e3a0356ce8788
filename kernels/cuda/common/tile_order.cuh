// The order in which blocks go through the tiles of an output.
#pragma once

namespace lowbit::kernels::cuda {

struct Tile {
  int feature, token;  // in tiles of a cluster
};

/// Token tiles that share the weights in the L2 cache: tiles go through them first.
inline constexpr int kTokenGroup = 8;

__device__ __forceinline__ Tile tile_at(int feature_tiles, int token_tiles, int index) {
  const int group = index / (kTokenGroup * feature_tiles);
  const int inside = index - group * kTokenGroup * feature_tiles;
  const int tokens = min(kTokenGroup, token_tiles - group * kTokenGroup);
  const int feature = inside / tokens;
  return {feature, group * kTokenGroup + inside - feature * tokens};
}

}  // namespace lowbit::kernels::cuda
