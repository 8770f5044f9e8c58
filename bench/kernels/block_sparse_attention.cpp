#include <algorithm>
#include <cstdint>
#include <memory>
#include <seqmix/sparse/block_sparse_attention.hpp>
#include <string>
#include <vector>

#include "support/attentions.hpp"

namespace seqmix::bench {
namespace {

/// Square blocks of 64: the diagonal, the three before it, the first block column, and one block in eight of the rest.
Case block_sparse(Index length, int threads) {
  constexpr Index block = 64;
  const Index blocks = (length + block - 1) / block;
  const auto set = std::make_shared<std::vector<std::uint8_t>>(std::size_t(blocks * blocks));
  double pairs = 0;
  for (Index row = 0; row < blocks; ++row) {
    for (Index column = 0; column <= row; ++column) {
      const bool kept = row - column < 4 || column == 0 || (row * 5 + column * 3) % 8 == 0;
      (*set)[std::size_t(row * blocks + column)] = kept;
      if (kept) pairs += column < row ? double(block * block) : double(block * (block + 1) / 2);
    }
  }
  return attention(
      {.rows = length, .keys = length}, pairs, threads,
      [=](const AttentionStreams& s, Workspace& workspace) {
        const Sequence<const std::uint8_t> mask(set->data(), blocks, blocks);
        block_sparse_attention<float>(s.query, s.key, s.value, mask,
                                      {.block_rows = block, .block_columns = block, .causal = true}, s.output,
                                      workspace);
      },
      [=](Index t, Index j) { return j <= t && (*set)[std::size_t(t / block * blocks + j / block)] != 0; });
}

const bool registered = [] {
  for (const Index length : {Index(2048), Index(8192)}) {
    if (length > effort().longest_core) continue;
    add_benchmark("core/block_sparse_attention/length:" + std::to_string(length),
                  [=](int threads) { return block_sparse(length, threads); });
  }
  return true;
}();

}  // namespace
}  // namespace seqmix::bench
