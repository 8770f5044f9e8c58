// Matrices between memory, where a row's numbers are neighbours, and registers that hold a column of several rows.
#pragma once

#include <seqmix/core/view.hpp>
#include <seqmix/simd/batch.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// Matrices [rows, N] between memory and lanes: element (i, n) of `width` rows, at most, is in lane i of vector n.
template <class T>
struct LanesOfRows {
  static constexpr Index width = lanes<T>;

  /// Rows beyond `rows` become zeros.
  static void load_rows(const T* from, Index stride, Index rows, Index columns, T* to) {
    Index n = 0;
    for (; rows == width && n + width <= columns; n += width) {
      Batch<T> tile[width];
      unroll<width>([&](auto i) SEQMIX_INLINE_LAMBDA { tile[i] = load(from + i * stride + n); });
      transpose(tile);
      unroll<width>([&](auto i) SEQMIX_INLINE_LAMBDA { store(to + (n + i) * width, tile[i]); });
    }
    for (; n < columns; ++n) {
      for (Index i = 0; i < width; ++i) to[n * width + i] = i < rows ? from[i * stride + n] : T(0);
    }
  }
  static void store_rows(const T* from, T* to, Index stride, Index rows, Index columns) {
    Index n = 0;
    for (; rows == width && n + width <= columns; n += width) {
      Batch<T> tile[width];
      unroll<width>([&](auto i) SEQMIX_INLINE_LAMBDA { tile[i] = load(from + (n + i) * width); });
      transpose(tile);
      unroll<width>([&](auto i) SEQMIX_INLINE_LAMBDA { store(to + i * stride + n, tile[i]); });
    }
    for (; n < columns; ++n) {
      for (Index i = 0; i < rows; ++i) to[i * stride + n] = from[n * width + i];
    }
  }
};

}  // namespace detail

}  // namespace seqmix::inline SEQMIX_ARCH
