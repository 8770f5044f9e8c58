// Masks of the attention engine: which keys a row of queries sees.
//
// A mask is a small value type. The engine cuts the [rows, keys] plane into tiles and asks the mask what is in a tile,
// first coarsely and then finely; an empty tile is skipped, in a full one nothing is tested, and only in a partial one
// single elements are. No [rows, keys] array exists. A mask has:
//
//   auto head(Index h) const                                  the mask of query head h: anything with the rest of this list
//   IndexRange range(IndexRange rows) const                   keys outside are seen by none of the rows; may be too wide
//   Coverage cover(IndexRange rows, IndexRange keys) const    of a non-empty tile; `partial` is always a legal answer
//   BatchMask<T> keep<T>(Index row, Index key) const          whether `row` sees the keys key .. key + lanes - 1; what it
//                                                             says of keys beyond the last doesn't matter
//
// and may have:
//
//   Index next_pattern(Index row) const                       the first row after `row` from which on other keys are kept,
//                                                             apart from bounds that move on with every row: strips of
//                                                             rows that are worked on together are cut there
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <seqmix/core/view.hpp>
#include <seqmix/simd/batch.hpp>
#include <span>

namespace seqmix::inline SEQMIX_ARCH {

/// The indices begin .. end - 1.
struct IndexRange {
  Index begin = 0, end = 0;

  constexpr Index size() const { return end > begin ? end - begin : 0; }
  constexpr bool empty() const { return end <= begin; }
  constexpr IndexRange intersect(IndexRange other) const {
    return {std::max(begin, other.begin), std::min(end, other.end)};
  }
};

/// How many of the elements of a tile are kept.
enum class Coverage { none, partial, full };

/// A mask of the attention engine; what its members mean stands at the top of this file.
template <class M>
concept AttentionMask = std::copyable<M> && requires(const M& mask, IndexRange range, Index index) {
  mask.head(index).range(range);
  { mask.head(index).range(range) } -> std::same_as<IndexRange>;
  { mask.head(index).cover(range, range) } -> std::same_as<Coverage>;
  { mask.head(index).template keep<float>(index, index) } -> std::same_as<BatchMask<float>>;
};

/// Keeps the keys  row + offset - left <= key <= row + offset + right: causal attention (right = 0), windows, and, without
/// bounds, everything. `offset` aligns rows with keys; N - M aligns the last of M rows with the last of N keys.
struct BandMask {
  /// A bound that never acts, and still can be added to an index.
  static constexpr Index unbounded = PTRDIFF_MAX / 4;

  Index offset = 0;
  Index left = unbounded;
  Index right = unbounded;

  constexpr Index first(Index row) const { return row + offset - left; }
  constexpr Index last(Index row) const { return row + offset + right; }

  constexpr const BandMask& head(Index) const { return *this; }

  constexpr IndexRange range(IndexRange rows) const { return {first(rows.begin), last(rows.end - 1) + 1}; }

  constexpr Coverage cover(IndexRange rows, IndexRange keys) const {
    if (keys.end <= first(rows.begin) || keys.begin > last(rows.end - 1)) return Coverage::none;
    const bool full = keys.begin >= first(rows.end - 1) && keys.end - 1 <= last(rows.begin);
    return full ? Coverage::full : Coverage::partial;
  }

  template <class T>
  SEQMIX_ALWAYS_INLINE BatchMask<T> keep(Index row, Index key) const {
    // Distances beyond 2^24 round, but never across the few lanes that they are compared with.
    const auto lane = lane_index<T>();
    return (lane >= broadcast(static_cast<T>(first(row) - key))) & (lane <= broadcast(static_cast<T>(last(row) - key)));
  }
};

/// Keeps the pairs (row, key) whose block is set: blocks[row / block_rows, key / block_columns] != 0. Rows and keys must
/// lie within the blocks. Looks at every block of a tile once per question.
struct BlockMask {
  Sequence<const std::uint8_t> blocks;  // [ceil(rows / block_rows), ceil(keys / block_columns)]
  Index block_rows = 1;
  Index block_columns = 1;

  const BlockMask& head(Index) const { return *this; }

  IndexRange range(IndexRange rows) const {
    Index begin = blocks.channels(), end = 0;
    for (Index i = rows.begin / block_rows; i * block_rows < rows.end; ++i) {
      const std::uint8_t* row = blocks.row(i);
      Index first = 0, last = blocks.channels();
      while (first < begin && row[first] == 0) ++first;
      begin = std::min(begin, first);
      while (last > end && row[last - 1] == 0) --last;
      end = std::max(end, last);
    }
    return {begin * block_columns, end * block_columns};
  }

  Coverage cover(IndexRange rows, IndexRange keys) const {
    bool some = false, all = true;
    for (Index i = rows.begin / block_rows; i * block_rows < rows.end; ++i) {
      for (Index j = keys.begin / block_columns; j * block_columns < keys.end; ++j) {
        const bool set = blocks(i, j) != 0;
        some |= set;
        all &= set;
        if (some && !all) return Coverage::partial;
      }
    }
    return some ? Coverage::full : Coverage::none;
  }

  template <class T>
  BatchMask<T> keep(Index row, Index key) const {
    const std::uint8_t* block = blocks.row(row / block_rows);
    // Panels end after the last key: what is said of the lanes there does not matter, but no column must be read there.
    Index column = std::min(key / block_columns, blocks.channels() - 1);
    Index left =
        key % block_columns == 0 ? block_columns : block_columns - key % block_columns;  // until the next column
    if (left >= lanes<T>) return broadcast(static_cast<T>(block[column])) != broadcast(T(0));
    T kept[static_cast<std::size_t>(lanes<T>)];
    for (Index lane = 0; lane < lanes<T>; ++lane, --left) {
      if (left == 0) {
        column = std::min(column + 1, blocks.channels() - 1);
        left = block_columns;
      }
      kept[lane] = static_cast<T>(block[column]);
    }
    return load(kept) != broadcast(T(0));
  }

  Index next_pattern(Index row) const { return (row / block_rows + 1) * block_rows; }
};

/// Keeps the keys that aren't padding, for every row alike.
class PaddingMask {
 public:
  /// count_before[j] is the number of kept keys before key j; one entry more than there are keys.
  explicit PaddingMask(std::span<const Index> count_before) : count_before_(count_before) {}

  /// Fills count_before [keys + 1] from flags [keys], non-zero where a key is kept.
  static void count(ConstToken<std::uint8_t> flags, std::span<Index> count_before) {
    count_before[0] = 0;
    for (Index j = 0; j < flags.channels(); ++j) {
      count_before[static_cast<std::size_t>(j) + 1] = count_before[static_cast<std::size_t>(j)] + (flags[j] != 0);
    }
  }

  const PaddingMask& head(Index) const { return *this; }

  IndexRange range(IndexRange) const { return {0, static_cast<Index>(count_before_.size()) - 1}; }

  Coverage cover(IndexRange, IndexRange keys) const {
    const Index kept = before(keys.end) - before(keys.begin);
    return kept == 0 ? Coverage::none : kept == keys.size() ? Coverage::full : Coverage::partial;
  }

  template <class T>
  BatchMask<T> keep(Index, Index key) const {
    const Index last = static_cast<Index>(count_before_.size()) - 1;
    T kept[static_cast<std::size_t>(lanes<T>)];
    for (Index lane = 0; lane < lanes<T>; ++lane) {
      kept[lane] = static_cast<T>(before(std::min(key + lane + 1, last)) - before(std::min(key + lane, last)));
    }
    return load(kept) != broadcast(T(0));
  }

 private:
  Index before(Index key) const { return count_before_[static_cast<std::size_t>(key)]; }

  std::span<const Index> count_before_;
};

/// Whether a mask says from which row on it keeps other keys.
template <class M>
inline constexpr bool has_patterns = requires(const M& mask, Index row) { mask.next_pattern(row); };

/// Keeps what both masks keep.
template <class First, class Second>
struct BothMasks {
  First first;
  Second second;

  constexpr auto head(Index h) const {
    return BothMasks<std::decay_t<decltype(first.head(h))>, std::decay_t<decltype(second.head(h))>>{first.head(h),
                                                                                                    second.head(h)};
  }

  constexpr IndexRange range(IndexRange rows) const { return first.range(rows).intersect(second.range(rows)); }

  constexpr Coverage cover(IndexRange rows, IndexRange keys) const {
    const Coverage one = first.cover(rows, keys);
    if (one == Coverage::none) return Coverage::none;
    const Coverage other = second.cover(rows, keys);
    if (other == Coverage::none) return Coverage::none;
    return one == Coverage::full && other == Coverage::full ? Coverage::full : Coverage::partial;
  }

  template <class T>
  SEQMIX_ALWAYS_INLINE BatchMask<T> keep(Index row, Index key) const {
    return first.template keep<T>(row, key) & second.template keep<T>(row, key);
  }

  constexpr Index next_pattern(Index row) const
    requires(has_patterns<First> || has_patterns<Second>)
  {
    if constexpr (!has_patterns<Second>) {
      return first.next_pattern(row);
    } else if constexpr (!has_patterns<First>) {
      return second.next_pattern(row);
    } else {
      return std::min(first.next_pattern(row), second.next_pattern(row));
    }
  }
};

template <class First, class Second>
BothMasks(First, Second) -> BothMasks<First, Second>;

static_assert(AttentionMask<BandMask> && AttentionMask<BlockMask> && AttentionMask<PaddingMask>);
static_assert(AttentionMask<BothMasks<BandMask, BlockMask>>);

}  // namespace seqmix::inline SEQMIX_ARCH
