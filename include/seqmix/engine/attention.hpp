// Exact attention with online softmax: any mask, any score, keys and values in any number of segments.
//
//   y[i, h] = sum over the keys j that row i of head h sees of p_j value[j, h / (heads / kv_heads)]
//   p_j     = 2^logit_j / (sum 2^logit + sink term),   logit_j = score(<query[i, h], key[j, ..]>) in the log2 domain
//
// Masks are in attention_mask.hpp, scores in attention_score.hpp; both are open: a new one is a type with the members
// listed there. Two kernels compute the same: attention_tile.hpp for many rows, attention_decode.hpp for few.
// No array of [rows, keys] exists; masked tiles cost nothing.
#pragma once

#include <algorithm>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/attention_decode.hpp>
#include <seqmix/engine/attention_mask.hpp>
#include <seqmix/engine/attention_pack.hpp>
#include <seqmix/engine/attention_score.hpp>
#include <seqmix/engine/attention_tile.hpp>
#include <span>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// Packing the keys costs more than it saves up to so many rows, or, of at least so many keys, up to so many rows of all the
/// heads that share them.
inline constexpr Index most_decode_rows = 4, least_decode_keys = 384, most_sharing_rows = 12;

/// Bytes of packed heads for each thread, as far as one barrier for several heads is worth more than a small cache footprint.
inline constexpr Index packed_bytes_per_thread = Index(1) << 20;

/// Numbers of a cache from which on it is worth waking other threads for one token.
inline constexpr Index parallel_decode_numbers = Index(1) << 18;

/// Keys that one task packs, a multiple of every panel width.
inline constexpr Index pack_keys_per_task = 256;

template <class T, class Mask, class Score>
void attend_few(HeadSequence<const T> query, std::span<const KeyValueSegment<T>> segments, const Mask& mask,
                const Score& score, ConstToken<T> sink, HeadSequence<T> output, Workspace& workspace) {
  const Index kv_heads = segments.front().key.heads(), group = query.heads() / kv_heads, rows = query.length();
  const Index keys = total_length(segments), piece = decode_piece(keys), pieces = (keys + piece - 1) / piece;
  const auto attend_piece = [&](Index kv_head, Index index, DecodeSums<T>& result, Workspace& local) {
    result.clear();
    DecodeKernel<T, Mask, Score>(mask, score, segments, kv_head, query, kv_head * group, group)
        .run({index * piece, std::min((index + 1) * piece, keys)}, result, local);
  };
  const auto take_sums = [&] { return DecodeSums<T>::take(group * rows, output.head_dim(), workspace); };
  DecodeSums<T> total = take_sums();
  // The pieces of one head are put together in order, wherever they were computed.
  const auto finish_head = [&](Index kv_head, const auto& sums_of_piece) {
    total.clear();
    for (Index r = 0; r < group * rows && sink.channels() > 0; ++r) {
      total.softmax[std::size_t(r)] = RowSoftmax<T>(to_log2_domain(sink[kv_head * group + r / rows]));
    }
    for (Index index = 0; index < pieces; ++index) total.add(sums_of_piece(index));
    for (Index r = 0; r < group * rows; ++r) {
      store_scaled(total.mixed + r * total.stride, total.softmax[std::size_t(r)].inverse_sum(),
                   output.row(r % rows, kv_head * group + r / rows), output.head_dim());
    }
  };
  const Index numbers = keys * kv_heads * (query.head_dim() + output.head_dim());
  if (workspace.concurrency() == 1 || numbers < parallel_decode_numbers) {
    DecodeSums<T> sums = take_sums();
    for (Index kv_head = 0; kv_head < kv_heads; ++kv_head) {
      finish_head(kv_head, [&](Index index) -> const DecodeSums<T>& {
        attend_piece(kv_head, index, sums, workspace);
        return sums;
      });
    }
    return;
  }
  const auto sums = workspace.take<DecodeSums<T>>(kv_heads * pieces);
  for (auto& of_piece : sums) of_piece = take_sums();
  workspace.parallel_for(kv_heads * pieces, [&](Index task, Workspace& local) {
    attend_piece(task / pieces, task % pieces, sums[std::size_t(task)], local);
  });
  for (Index kv_head = 0; kv_head < kv_heads; ++kv_head) {
    finish_head(kv_head,
                [&](Index index) -> const DecodeSums<T>& { return sums[std::size_t(kv_head * pieces + index)]; });
  }
}

/// Packs the heads first_head .. of those keys and values that some row sees into `packed`, in parallel over the keys.
template <class T>
void pack_heads(std::span<const KeyValueSegment<T>> segments, Index first_head, const std::uint8_t* excluded,
                IndexRange seen, std::span<PackedHead<T>> packed, Workspace& workspace) {
  constexpr Index panels_per_task = pack_keys_per_task / panel_width<T>;
  const Index first = seen.begin / panel_width<T>;
  const Index last = std::min((seen.end + panel_width<T> - 1) / panel_width<T>, packed[0].panels());
  if (first >= last) return;
  workspace.parallel_for((last - first + panels_per_task - 1) / panels_per_task, [&](Index task, Workspace&) {
    const Index begin = first + task * panels_per_task;
    pack_panels<T>(segments, first_head, excluded, {begin, std::min(begin + panels_per_task, last)}, packed);
  });
}

/// The keys that some of `rows` rows of the heads first .. last - 1 see, of `keys`; it may be too many.
template <class Mask>
IndexRange seen_keys(const Mask& mask, Index first, Index last, Index rows, Index keys) {
  IndexRange seen = mask.head(first).range({0, rows});
  for (Index h = first + 1; h < last; ++h) {
    const IndexRange range = mask.head(h).range({0, rows});
    seen = {std::min(seen.begin, range.begin), std::max(seen.end, range.end)};
  }
  return seen.intersect({0, keys});
}

template <class T, class Mask, class Score>
void attend_many(HeadSequence<const T> query, std::span<const KeyValueSegment<T>> segments, const Mask& mask,
                 const Score& score, ConstToken<T> sink, HeadSequence<T> output, Workspace& workspace) {
  const Index kv_heads = segments.front().key.heads(), group = query.heads() / kv_heads, rows = query.length();
  const Index length = total_length(segments);
  // Heads that are in packed form at a time: threads wait for each other twice for each lot.
  const Index threads = workspace.concurrency();
  const Index head_bytes = length * (query.head_dim() + output.head_dim()) * Index(sizeof(T));
  const Index fitting = threads == 1 ? 1 : threads * packed_bytes_per_thread / std::max<Index>(1, head_bytes);
  const Index together = std::min(kv_heads, std::max(threads, fitting));
  const auto packed = workspace.take<PackedHead<T>>(together);
  for (auto& head : packed) head = PackedHead<T>::take(length, query.head_dim(), output.head_dim(), workspace);

  const std::uint8_t* excluded = nullptr;
  if constexpr (Score::may_exclude) {
    const auto flags = workspace.take<std::uint8_t>(length);
    for (Index j = 0; j < length; ++j) flags[std::size_t(j)] = score.excludes(j);
    excluded = flags.data();
  }

  // Blocks of rows as large as their queries and sums may be in the second-level cache beside a tile of keys, which larger
  // sequences get from farther away once for each block; smaller ones where there would be too few to keep all threads
  // busy. The bits don't depend on them.
  constexpr Index half_cache = vector_registers >= 32 ? 256 * 1024 : 128 * 1024;
  const Index row_bytes = std::max<Index>(1, query.head_dim() + output.head_dim()) * Index(sizeof(T));
  Index block = std::clamp(half_cache / row_bytes, 8 * strip_rows, 32 * strip_rows);
  while (block > 2 * strip_rows && (rows + block - 1) / block * together * group < 4 * workspace.concurrency()) {
    block /= 2;
  }
  block = round_up(block, strip_rows);
  const Index blocks = (rows + block - 1) / block;

  for (Index first = 0; first < kv_heads; first += together) {
    const Index current = std::min(together, kv_heads - first);
    const IndexRange seen = seen_keys(mask, first * group, (first + current) * group, rows, length);
    pack_heads(segments, first, excluded, seen, packed.first(std::size_t(current)), workspace);
    // The last rows first: with a causal mask they see the most keys.
    workspace.parallel_for(blocks * current * group, [&](Index task, Workspace& local) {
      const Index b = blocks - 1 - task / (current * group), h = first * group + task % (current * group);
      const IndexRange range{b * block, std::min(b * block + block, rows)};
      const auto head_mask = mask.head(h);
      const auto head_score = score.head(h);
      const RowSoftmax<T> start = sink.channels() > 0 ? RowSoftmax<T>(to_log2_domain(sink[h])) : RowSoftmax<T>();
      TileKernel<Score::plain, T, decltype(head_mask), decltype(head_score)>(head_mask, head_score,
                                                                             packed[std::size_t(h / group - first)])
          .run(query.head(h).rows(range.begin, range.size()), score.query_factor(), range, start,
               output.head(h).rows(range.begin, range.size()), local);
    });
  }
}

}  // namespace detail

/// Attention of query [rows, heads, head_dim] over the keys and values of all segments, one after the other,
/// [keys, kv_heads, head_dim] and [keys, kv_heads, value_dim]; kv_heads must divide heads. output [rows, heads, value_dim]
/// is overwritten and must not overlap the inputs.
///
///   mask    which keys a row sees (attention_mask.hpp); a row that sees none gives 0
///   score   how logits are made from inner products (attention_score.hpp)
///   sink    [heads]: logits that enter the denominators only, or no channels
///
/// O(heads * (head_dim + value_dim)) time for each pair (row, key) in tiles that the mask keeps. Allocates nothing once
/// `workspace` is warm. What a row gives has the same bits whatever the keys and values that it doesn't see hold, NaN
/// included, and whatever the number of threads.
template <std::floating_point T, AttentionMask Mask, AttentionScore Score>
void attend(HeadSequence<const T> query, std::span<const KeyValueSegment<T>> segments, const Mask& mask,
            const Score& score, ConstToken<T> sink, HeadSequence<T> output, Workspace& workspace) {
  assert(query.length() == output.length() && query.heads() == output.heads());
  if (query.length() == 0 || query.heads() == 0) return;
  const Index keys = total_length(segments);
  if (keys == 0) {
    for (Index i = 0; i < output.length(); ++i) {
      for (Index h = 0; h < output.heads(); ++h) std::fill_n(output.row(i, h), output.head_dim(), T(0));
    }
    return;
  }
  assert(query.heads() % segments.front().key.heads() == 0);
  const auto frame = workspace.frame();
  const Index rows = query.length(), sharing_rows = rows * (query.heads() / segments.front().key.heads());
  const bool few = rows <= detail::most_decode_rows ||
                   (keys >= detail::least_decode_keys && sharing_rows <= detail::most_sharing_rows);
  if (few) {
    detail::attend_few(query, segments, mask, score, sink, output, workspace);
  } else {
    detail::attend_many(query, segments, mask, score, sink, output, workspace);
  }
}

}  // namespace seqmix::inline SEQMIX_ARCH
