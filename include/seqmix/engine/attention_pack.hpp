// Keys and values as the attention engine reads them: segments of rows, and the panels that they are packed into.
#pragma once

#include <cstdint>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
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

  /// Packs the panels begin .. end - 1 of one head. The values of excluded keys are taken as zeros; `excluded` has a
  /// number for each key, non-zero where it is, or is null.
  void pack(std::span<const KeyValueSegment<T>> segments, Index kv_head, const std::uint8_t* excluded, Index begin,
            Index end) {
    Rows rows(segments, kv_head, length), ahead = rows;
    ahead.seek(begin * P);
    rows.seek(begin * P);
    for (Index j = begin * P; j < (begin + prefetch_panels) * P; ++j) ahead.prefetch_next();
    for (Index panel = begin; panel < end; ++panel) {
      const T* key_rows[std::size_t(P)];
      const T* value_rows[std::size_t(P)];
      for (Index lane = 0; lane < P; ++lane) {
        ahead.prefetch_next();
        const Index j = panel * P + lane;
        const auto row = rows.next();
        key_rows[lane] = row.key;
        value_rows[lane] = j < length && excluded != nullptr && excluded[j] != 0 ? nullptr : row.value;
      }
      pack_keys(key_rows, keys + panel * head_dim * P);
      nonfinite[panel] = pack_values(value_rows, panel);
    }
  }

 private:
  static constexpr Index W = lanes<T>;
  static constexpr Index prefetch_panels = 2;

  /// Walks over the rows of all segments; null pointers follow the last.
  class Rows {
   public:
    struct Row {
      const T* key = nullptr;
      const T* value = nullptr;
    };

    Rows(std::span<const KeyValueSegment<T>> segments, Index kv_head, Index length)
        : segments_(segments), kv_head_(kv_head), left_(length) {}

    void seek(Index j) {
      left_ -= j;
      if (left_ <= 0) return;
      row_ = j;
      while (row_ >= segments_[segment_].length()) row_ -= segments_[segment_++].length();
    }

    Row next() {
      if (left_ <= 0) return {};
      --left_;
      while (row_ == segments_[segment_].length()) {
        row_ = 0;
        ++segment_;
      }
      const auto& segment = segments_[segment_];
      const Row result{segment.key.row(row_, kv_head_), segment.value.row(row_, kv_head_)};
      ++row_;
      return result;
    }

    void prefetch_next() {
      const Row row = next();
      if (row.key == nullptr) return;
      prefetch_row(row.key, segments_[segment_].key.head_dim());
      prefetch_row(row.value, segments_[segment_].value.head_dim());
    }

   private:
    std::span<const KeyValueSegment<T>> segments_;
    Index kv_head_ = 0;
    Index left_ = 0;
    std::size_t segment_ = 0;
    Index row_ = 0;  // in the segment
  };

  static SEQMIX_ALWAYS_INLINE Batch<T> load_columns(const T* row, Index begin, Index end) {
    if (row == nullptr || begin >= end) return broadcast(T(0));
    return end - begin >= W ? load(row + begin) : load_partial(row + begin, end - begin);
  }

  void pack_keys(const T* const (&rows)[std::size_t(P)], T* panel) const {
    for (Index group = 0; group < P; group += W) {
      for (Index d = 0; d < head_dim; d += W) {
        Batch<T> tile[std::size_t(W)];
        unroll<W>([&](auto lane) SEQMIX_INLINE_LAMBDA { tile[lane] = load_columns(rows[group + lane], d, head_dim); });
        transpose(tile);
        T* place = panel + d * P + group;
        if (d + W <= head_dim) {
          unroll<W>([&](auto i) SEQMIX_INLINE_LAMBDA { store(place + i * P, tile[i]); });
        } else {
          for (Index i = 0; i < head_dim - d; ++i) store(place + i * P, tile[i]);
        }
      }
    }
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

}  // namespace detail

}  // namespace seqmix::inline SEQMIX_ARCH
