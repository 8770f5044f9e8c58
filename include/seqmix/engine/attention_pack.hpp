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

  /// Packs the panels begin .. end - 1 of one head. Values of keys that the score excludes are taken as zeros.
  template <class HeadScore>
  void pack(std::span<const KeyValueSegment<T>> segments, Index kv_head, const HeadScore& score, Index begin,
            Index end) {
    std::size_t segment = 0;
    Index first = 0;  // of the current segment
    for (Index panel = begin; panel < end; ++panel) {
      const T* key_rows[std::size_t(P)] = {};
      const T* value_rows[std::size_t(P)] = {};
      for (Index lane = 0; lane < P && panel * P + lane < length; ++lane) {
        const Index j = panel * P + lane;
        while (j - first >= segments[segment].length()) first += segments[segment++].length();
        key_rows[lane] = segments[segment].key.row(j - first, kv_head);
        if (!score.excludes(j)) value_rows[lane] = segments[segment].value.row(j - first, kv_head);
      }
      pack_keys(key_rows, keys + panel * head_dim * P);
      nonfinite[panel] = pack_values(value_rows, panel);
    }
  }

 private:
  void pack_keys(const T* const (&rows)[std::size_t(P)], T* panel) const {
    constexpr Index W = lanes<T>;
    for (Index group = 0; group < P; group += W) {
      for (Index d = 0; d < head_dim; d += W) {
        const Index width = std::min(W, head_dim - d);
        Batch<T> tile[std::size_t(W)];
        for (Index lane = 0; lane < W; ++lane) {
          const T* row = rows[group + lane];
          tile[lane] = row == nullptr ? broadcast(T(0)) : width == W ? load(row + d) : load_partial(row + d, width);
        }
        transpose(tile);
        for (Index i = 0; i < width; ++i) store(panel + (d + i) * P + group, tile[i]);
      }
    }
  }

  bool pack_values(const T* const (&rows)[std::size_t(P)], Index panel) const {
    constexpr Index W = lanes<T>;
    Batch<T> poison = broadcast(T(0));  // stays 0 unless something is infinite or NaN
    for (Index lane = 0; lane < P; ++lane) {
      for (Index c = 0; c < value_panels() * P; c += W) {
        const Index width = std::min(W, value_dim - c);
        const T* row = rows[lane];
        const Batch<T> value = row == nullptr || width <= 0 ? broadcast(T(0))
                               : width == W                 ? load(row + c)
                                                            : load_partial(row + c, width);
        poison = fma(value, broadcast(T(0)), poison);
        store(values + ((c / P * panels() + panel) * P + lane) * P + c % P, value);
      }
    }
    return reduce_add(poison) != T(0);
  }
};

}  // namespace detail

}  // namespace seqmix::inline SEQMIX_ARCH
