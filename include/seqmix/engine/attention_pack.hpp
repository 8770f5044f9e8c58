// Keys and values as the attention engine reads them: segments of rows, and the panels that they are packed into.
#pragma once

#include <algorithm>
#include <cstdint>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/attention_mask.hpp>
#include <seqmix/simd/batch.hpp>
#include <seqmix/simd/microkernel.hpp>
#include <span>

namespace seqmix::inline SEQMIX_ARCH {

/// Some of the keys and values of a sequence, in order: key [length, kv_heads, head_dim], value [length, kv_heads,
/// value_dim]. The keys of an attention are a list of segments, one after the other: parts of a cache, then new tokens.
template <class T>
struct KeyValueSegment {
  HeadSequence<const T> key;
  HeadSequence<const T> value;

  Index length() const { return key.length(); }
};

/// Number of keys in all segments.
template <class T>
Index total_length(std::span<const KeyValueSegment<T>> segments) {
  Index total = 0;
  for (const auto& segment : segments) total += segment.length();
  return total;
}

namespace detail {

constexpr Index round_up(Index value, Index multiple) { return (value + multiple - 1) / multiple * multiple; }

/// Asks for the cache lines of one row.
template <class T>
SEQMIX_ALWAYS_INLINE void prefetch_row(const T* row, Index width) {
  for (Index i = 0; i < width; i += Index(memory_alignment / sizeof(T))) prefetch_read(row + i);
}

/// row[begin .. end), at most a vector, and zeros in the other lanes; only zeros where there is no row.
template <class T>
SEQMIX_ALWAYS_INLINE Batch<T> load_columns(const T* row, Index begin, Index end) {
  if (row == nullptr || begin >= end) return broadcast(T(0));
  return end - begin >= lanes<T> ? load(row + begin) : load_partial(row + begin, end - begin);
}

/// transposed[d * stride + i] = factor * rows[i][d] for i < lanes and d < width; null pointers stand for rows of zeros.
template <class T>
void transpose_rows(const T* const* rows, Index width, T factor, T* transposed, Index stride) {
  constexpr Index W = lanes<T>;
  const bool all = std::find(rows, rows + W, nullptr) == rows + W;
  for (Index d = 0; d < width; d += W) {
    const bool whole = d + W <= width;
    Batch<T> tile[std::size_t(W)];
    if (all && whole) {
      unroll<W>([&](auto i) SEQMIX_INLINE_LAMBDA { tile[i] = load(rows[i] + d); });
    } else {
      unroll<W>([&](auto i) SEQMIX_INLINE_LAMBDA { tile[i] = load_columns(rows[i], d, width); });
    }
    unroll<W>([&](auto i) SEQMIX_INLINE_LAMBDA { tile[i] = tile[i] * broadcast(factor); });
    transpose(tile);
    T* place = transposed + d * stride;
    if (whole) {
      unroll<W>([&](auto i) SEQMIX_INLINE_LAMBDA { store(place + i * stride, tile[i]); });
    } else {
      for (Index i = 0; i < width - d; ++i) store(place + i * stride, tile[i]);
    }
  }
}

/// One head's keys and values in the order in which register tiles read them, P = panel_width:
///   keys       [panels][head_dim][P]: panel p holds keys p * P .., transposed
///   values     [value_dim / P][panels * P][P]
///   nonfinite  [panels]: whether a value of the panel's keys is infinite or NaN
/// Tails are filled up with zeros.
template <class T>
struct PackedHead {
  static constexpr Index P = panel_width<T>;

  T* keys = nullptr;
  T* values = nullptr;
  std::uint8_t* nonfinite = nullptr;
  Index length = 0;
  Index head_dim = 0;
  Index value_dim = 0;

  Index panels() const { return (length + P - 1) / P; }
  Index value_panels() const { return (value_dim + P - 1) / P; }
  const T* key_panel(Index panel) const { return keys + panel * head_dim * P; }
  const T* value_panel(Index column_panel, Index panel) const {
    return values + (column_panel * panels() + panel) * P * P;
  }

  static PackedHead take(Index length, Index head_dim, Index value_dim, Workspace& workspace) {
    PackedHead head{nullptr, nullptr, nullptr, length, head_dim, value_dim};
    head.keys = workspace.take<T>(head.panels() * P * head_dim).data();
    head.values = workspace.take<T>(head.panels() * P * head.value_panels() * P).data();
    head.nonfinite = workspace.take<std::uint8_t>(head.panels()).data();
    return head;
  }

  /// Packs one panel of keys and values, null pointers standing for zeros.
  void pack(Index panel, const T* const (&key_rows)[std::size_t(P)], const T* const (&value_rows)[std::size_t(P)]) {
    pack_keys(key_rows, keys + panel * head_dim * P);
    nonfinite[panel] = pack_values(value_rows, panel);
  }

 private:
  static constexpr Index W = lanes<T>;

  void pack_keys(const T* const (&rows)[std::size_t(P)], T* panel) const {
    for (Index group = 0; group < P; group += W) transpose_rows(rows + group, head_dim, T(1), panel + group, P);
  }

  bool pack_values(const T* const (&rows)[std::size_t(P)], Index panel) const {
    Batch<T> poison = broadcast(T(0));  // stays 0 unless something is infinite or NaN
    for (Index c = 0; c < value_panels(); ++c) {
      T* place = values + (c * panels() + panel) * P * P;
      for (Index lane = 0; lane < P; ++lane) {
        unroll<tile_vectors>([&](auto vector) SEQMIX_INLINE_LAMBDA {
          const Batch<T> value = load_columns(rows[lane], c * P + vector * W, value_dim);
          poison = fma(value, broadcast(T(0)), poison);
          store(place + lane * P + vector * W, value);
        });
      }
    }
    return reduce_add(poison) != T(0);
  }
};

/// Walks over the tokens of all segments.
template <class T>
class TokenWalk {
 public:
  TokenWalk(std::span<const KeyValueSegment<T>> segments, Index begin) : segments_(segments), row_(begin) { settle(); }

  /// Whether there is a token here; there is none after the last.
  bool here() const { return segment_ < segments_.size(); }

  const T* key(Index head) const { return segments_[segment_].key.row(row_, head); }
  const T* value(Index head) const { return segments_[segment_].value.row(row_, head); }

  void prefetch(IndexRange heads) const {
    const auto& segment = segments_[segment_];
    for (Index h = heads.begin; h < heads.end; ++h) {
      prefetch_row(key(h), segment.key.head_dim());
      prefetch_row(value(h), segment.value.head_dim());
    }
  }

  void next() {
    ++row_;
    settle();
  }

 private:
  void settle() {
    while (here() && row_ >= segments_[segment_].length()) row_ -= segments_[segment_++].length();
  }

  std::span<const KeyValueSegment<T>> segments_;
  std::size_t segment_ = 0;
  Index row_ = 0;  // in the segment
};

/// Packs the panels `panels` of the heads first_head .. into `packed`: all heads of some tokens, whose rows are often side
/// by side, before the next tokens. The values of excluded keys are taken as zeros; `excluded` has a number for each key,
/// non-zero where it is, or is null.
template <class T>
void pack_panels(std::span<const KeyValueSegment<T>> segments, Index first_head, const std::uint8_t* excluded,
                 IndexRange panels, std::span<PackedHead<T>> packed) {
  constexpr Index P = panel_width<T>;
  const IndexRange heads{first_head, first_head + std::ssize(packed)};
  TokenWalk<T> ahead(segments, panels.begin * P);
  const auto prefetch_panel = [&] {
    for (Index lane = 0; lane < P && ahead.here(); ++lane, ahead.next()) ahead.prefetch(heads);
  };
  prefetch_panel();
  for (Index panel = panels.begin; panel < panels.end; ++panel) {
    prefetch_panel();
    for (Index h = heads.begin; h < heads.end; ++h) {
      const T* key_rows[std::size_t(P)] = {};
      const T* value_rows[std::size_t(P)] = {};
      TokenWalk<T> tokens(segments, panel * P);
      for (Index lane = 0; lane < P && tokens.here(); ++lane, tokens.next()) {
        key_rows[lane] = tokens.key(h);
        if (excluded == nullptr || excluded[panel * P + lane] == 0) value_rows[lane] = tokens.value(h);
      }
      packed[std::size_t(h - first_head)].pack(panel, key_rows, value_rows);
    }
  }
}

}  // namespace detail

}  // namespace seqmix::inline SEQMIX_ARCH
