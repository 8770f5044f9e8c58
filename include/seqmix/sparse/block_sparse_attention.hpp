// Block-sparse attention: softmax attention in which a coarse mask of blocks says which queries see which keys.
//
//   kept     block_mask[i / block_rows, j / block_columns] = 1 and mask[j] = 1, and j <= i where causal
//   y[i,h] = sum over kept j of p_j value[j,h],   p = softmax over kept j of scale <query[i,h], key[j,kv(h)]>
//   y[i]   = 0 where mask[i] = 0 or no key is kept
//
//   Source    Dao et al. 2022 (arXiv:2205.14135), section 3.3
//   Glossary  L length   H query heads   Hk heads of keys and values   d head_dim   dv value_dim
//   Engine    engine/attention.hpp with BlockMask, and PaddingMask and BandMask where asked for
//   Differs   blocks of any size, cut off at L; grouped heads; may be combined with a causal mask
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <seqmix/core/error.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/attention.hpp>
#include <span>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

/// What block_sparse_attention may be told beside its streams and its blocks.
template <std::floating_point T>
struct BlockSparseAttentionOptions {
  Index block_rows = 16;
  Index block_columns = 256;
  bool causal = false;
  std::optional<T> scale{};             ///< d^-0.5 where absent
  Token<const std::uint8_t> padding{};  ///< [L], 0 where a token is padding; no channels: none is
};

/// Attention of query [L, H, d] over key [L, Hk, d] and value [L, Hk, dv] into y [L, H, dv], with block_mask
/// [ceil(L / block_rows), ceil(L / block_columns)] of zeros and ones, the same for all heads. Hk must divide H. Any strides;
/// y must not overlap the inputs.
///
/// O(H (d + dv)) time per pair in a block that is set; blocks that are not set cost nothing, in those that are no element
/// is tested. Allocates nothing once `workspace` is warm. Throws std::invalid_argument on arguments that don't fit each
/// other, with y untouched.
template <std::floating_point T>
void block_sparse_attention(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
                            Sequence<const std::uint8_t> block_mask,
                            const std::type_identity_t<BlockSparseAttentionOptions<T>>& options, HeadSequence<T> y,
                            Workspace& workspace) {
  constexpr std::string_view name = "block_sparse_attention";
  const Index length = query.length();
  expect_shape(name, "key", {length, key.heads(), query.head_dim()}, key);
  expect_shape(name, "value", {length, key.heads(), value.head_dim()}, value);
  expect_shape(name, "y", {length, query.heads(), value.head_dim()}, y);
  expect(key.heads() > 0 ? query.heads() % key.heads() == 0 : query.heads() == 0, name, "query",
         "its number of heads must be a multiple of the number of heads of key");
  expect(query.head_dim() > 0 || query.heads() == 0, name, "query", "heads must have channels");
  expect(options.block_rows > 0 && options.block_columns > 0, name, "block_rows, block_columns", "must be positive");
  const auto blocks = [length](Index size) { return length / size + (length % size != 0); };
  expect_shape(name, "block_mask", {blocks(options.block_rows), blocks(options.block_columns)}, block_mask);
  if (options.padding.channels() > 0) expect_shape(name, "padding", {length}, options.padding);
  expect_disjoint(name, "y", y, "query", query);
  expect_disjoint(name, "y", y, "key", key);
  expect_disjoint(name, "y", y, "value", value);
  if (length == 0) return;

  const auto frame = workspace.frame();
  const DotScore<T> score{options.scale.value_or(T(1) / std::sqrt(static_cast<T>(query.head_dim())))};
  const KeyValueSegment<T> segments[] = {{key, value}};
  const BlockMask mask{block_mask, options.block_rows, options.block_columns};
  const BandMask band{0, BandMask::unbounded, options.causal ? 0 : BandMask::unbounded};
  const auto run = [&](const auto& kept) {
    attend<T>(query, std::span<const KeyValueSegment<T>>(segments), kept, score, {}, y, workspace);
  };
  if (options.padding.channels() == 0) return run(BothMasks{band, mask});
  const auto count_before = workspace.take<Index>(length + 1);
  PaddingMask::count(options.padding, count_before);
  run(BothMasks{band, BothMasks{mask, PaddingMask(count_before)}});
  for (Index i = 0; i < length; ++i) {
    if (options.padding[i] != 0) continue;
    for (Index h = 0; h < y.heads(); ++h) std::fill_n(y.row(i, h), y.head_dim(), T(0));
  }
}

}  // namespace seqmix::inline SEQMIX_ARCH
