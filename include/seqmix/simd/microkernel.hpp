// The register tile of every matrix product: a few rows times a few vectors of columns, held in registers over the whole
// depth.
//
// A tile of 6 rows by 2 vectors keeps 12 accumulators, 2 vectors of B and one broadcast of A in 15 of the 16 registers
// of AVX2, and its 12 independent chains of fused multiply-adds hide the latency of 4 to 5 cycles at 2 per cycle. With 32
// registers 12 rows fit as well: no more operations at a time, but half as many reads of B.
// The tile is written out through index sequences: a compiler that leaves the loops over rows and vectors rolled keeps
// the accumulators in memory, at a third of the speed. The depth loop stays a loop; unrolling it gains nothing.
#pragma once

#include <cassert>
#include <seqmix/core/view.hpp>
#include <seqmix/simd/arch.hpp>
#include <seqmix/simd/batch.hpp>
#include <type_traits>

namespace seqmix::inline SEQMIX_ARCH {

/// Registers that hold a batch.
#if defined(__AVX512F__) || defined(__aarch64__) || defined(__riscv_vector)
inline constexpr Index vector_registers = 32;
#else
inline constexpr Index vector_registers = 16;
#endif

/// Rows and vectors of a tile that runs at the peak rate on every instruction set.
inline constexpr Index tile_rows = 6;
inline constexpr Index tile_vectors = 2;

/// Rows of the tallest tile that the registers hold.
inline constexpr Index tall_tile_rows = vector_registers >= 32 ? 12 : tile_rows;

/// Columns of the tile: the width of the panels that packed matrices consist of.
template <class T>
inline constexpr Index panel_width = tile_vectors * lanes<T>;

namespace detail {

struct DoNothing {
  SEQMIX_ALWAYS_INLINE void operator()(Index) const {}
};

}  // namespace detail

/// C = C0 + A B for one register tile, C [Rows, Panels * Vectors vectors], A [Rows, depth], B [depth, Panels * Vectors
/// vectors].
///
///   a        element (r, k) of A at a[r * a_row_stride + k * a_depth_stride]; either stride may be 1, so that A may be
///            a block of a row-major matrix or of its transpose
///   b        vector v of panel p of row k of B at b[p * panel_stride + k * b_row_stride + v * lanes<T>]
///   init     init(row, vector) -> Batch<T>: the value C0 that the sum starts from
///   finish   finish(row, vector, Batch<T> sum) stores the result
///   before   before(k) is called before the products of row k of B: to prefetch what is needed later
///
/// row and vector (0 .. Panels * Vectors - 1) come as std::integral_constant<Index, ..>. Mark the callables with
/// SEQMIX_INLINE_LAMBDA. Every element is summed one product after the other, with one fused multiply-add each, in the
/// order of k: the bits of a row depend neither on the tile's shape nor on how the depth is cut into several calls.
template <Index Rows, Index Vectors, Index Panels = 1, class T, class Init, class Finish,
          class Before = detail::DoNothing>
SEQMIX_ALWAYS_INLINE void multiply_tile(const T* a, Index a_row_stride, Index a_depth_stride, const T* b,
                                        Index b_row_stride, Index panel_stride, Index depth, Init&& init,
                                        Finish&& finish, Before&& before = {}) {
  constexpr Index columns = Panels * Vectors;
  Batch<T> sum[Rows][columns];
  unroll<Rows>([&](auto row) SEQMIX_INLINE_LAMBDA {
    unroll<columns>([&](auto vector) SEQMIX_INLINE_LAMBDA { sum[row][vector] = init(row, vector); });
  });
  for (Index k = 0; k < depth; ++k) {
    before(k);
    Batch<T> right[columns];
    unroll<columns>([&](auto vector) SEQMIX_INLINE_LAMBDA {
      right[vector] = load(b + (vector / Vectors) * panel_stride + (vector % Vectors) * lanes<T>);
    });
    unroll<Rows>([&](auto row) SEQMIX_INLINE_LAMBDA {
      const Batch<T> left = broadcast(a[row * a_row_stride]);
      unroll<columns>([&](auto vector)
                          SEQMIX_INLINE_LAMBDA { sum[row][vector] = fma(left, right[vector], sum[row][vector]); });
    });
    a += a_depth_stride;
    b += b_row_stride;
  }
  unroll<Rows>([&](auto row) SEQMIX_INLINE_LAMBDA {
    unroll<columns>([&](auto vector) SEQMIX_INLINE_LAMBDA { finish(row, vector, sum[row][vector]); });
  });
}

/// Calls f(std::integral_constant<Index, rows>{}) for rows in Least .. Most: from a number of rows that is known at run
/// time to the tile made for it.
template <Index Most = tile_rows, Index Least = 1, class F>
SEQMIX_ALWAYS_INLINE void with_rows(Index rows, F&& f) {
  assert(rows >= Least && rows <= Most);
  unroll<Most - Least + 1>([&](auto index) SEQMIX_INLINE_LAMBDA {
    if (rows == index + Least) f(std::integral_constant<Index, index + Least>{});
  });
}

}  // namespace seqmix::inline SEQMIX_ARCH
