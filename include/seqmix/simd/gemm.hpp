// Products with a packed matrix: C [rows, outputs] = C0 + A [rows, inputs] B^T, B [outputs, inputs] packed once.
//
// Glossary: M rows, N outputs, K inputs (the depth).
//
// Cost 2 M N K operations. Every element of C is summed one product after the other in the order of k, starting from C0,
// with one fused multiply-add each, whatever the number of rows and of threads: row t of a product has the same bits when
// it is computed alone.
#pragma once

#include <algorithm>
#include <cassert>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/simd/arch.hpp>
#include <seqmix/simd/batch.hpp>
#include <seqmix/simd/microkernel.hpp>
#include <type_traits>

namespace seqmix::inline SEQMIX_ARCH {

/// A matrix B [outputs, inputs] laid out for products with B^T.
///
///   values_  [panels][inputs][panel_width]: panel p, row k holds B[p * panel_width .. , k], that is one vector pair of
///            columns of B^T; the last panel is filled up with zeros.
///
/// So the register tile reads memory in order, and so does a product with a single row.
template <class T>
class PackedMatrix {
 public:
  /// No outputs, no inputs.
  PackedMatrix() = default;

  /// All zeros. Allocates.
  PackedMatrix(Index outputs, Index inputs)
      : outputs_(outputs),
        inputs_(inputs),
        values_(std::size_t((outputs + panel_width<T> - 1) / panel_width<T> * panel_width<T> * inputs)) {
    assert(outputs >= 0 && inputs >= 0);
  }

  /// Packs weight [outputs, inputs]. Allocates.
  explicit PackedMatrix(ConstSequence<T> weight) : PackedMatrix(weight.length(), weight.channels()) { set(0, weight); }

  /// Packs rows [count, inputs] as the outputs begin .. begin + count - 1.
  void set(Index begin, ConstSequence<T> rows) {
    assert(rows.channels() == inputs_ && begin >= 0 && begin + rows.length() <= outputs_);
    for (Index r = 0; r < rows.length(); ++r) {
      const Index output = begin + r;
      T* column = values_.data() + output / panel_width<T> * panel_stride() + output % panel_width<T>;
      for (Index k = 0; k < inputs_; ++k) column[k * panel_width<T>] = rows.row(r)[k];
    }
  }

  Index outputs() const { return outputs_; }
  Index inputs() const { return inputs_; }
  Index panels() const { return (outputs_ + panel_width<T> - 1) / panel_width<T>; }

  /// Numbers from one panel to the next.
  Index panel_stride() const { return inputs_ * panel_width<T>; }
  const T* panel(Index index) const { return values_.data() + index * panel_stride(); }

 private:
  Index outputs_ = 0;
  Index inputs_ = 0;
  Buffer<T> values_;
};

/// Where the sums of a product start.
struct FromZero {};  ///< C = A B^T

/// C[t, n] = bias[n] + (A B^T)[t, n], bias [outputs].
template <class T>
struct FromBias {
  Token<const T> bias;
};

struct FromOutput {};  ///< C += A B^T

namespace detail {

/// The widest tile, in panels.
inline constexpr Index most_panels = 4;

template <class T>
inline constexpr T zero_row[std::size_t(most_panels * panel_width<T>)] = {};

/// C0: element (t, n) at data[t * row_step + n * column_step]. Steps of 0 repeat a row, or let `data` be wide enough for
/// a tile only.
template <class T>
struct Start {
  const T* data;
  Index row_step, column_step;

  const T* at(Index t, Index n) const { return data + t * row_step + n * column_step; }
};

template <class T>
Start<T> start_of(FromZero, const Sequence<T>&) {
  return {zero_row<T>, 0, 0};
}
template <class T>
Start<T> start_of(FromBias<T> from, [[maybe_unused]] const Sequence<T>& c) {
  assert(from.bias.channels() == c.channels());
  return {from.bias.data(), 0, 1};
}
template <class T>
Start<T> start_of(FromOutput, const Sequence<T>& c) {
  return {c.data(), c.stride(), 1};
}

/// Depth of the slices in which panels are worked off. The slice of a panel (48 KB on AVX2) streams from the second-level
/// cache, which costs nothing at 64 bytes for 6 cycles of multiply-adds; shallower slices that would stay in the first
/// level are slower, because every slice loads and stores all of C.
template <class T>
inline constexpr Index slice_depth = 3072 / Index(sizeof(T));

/// Numbers from one row of a copied slice to the next: a constant, so that a tile needs one address for all its rows, and
/// a cache line more than a slice, so that rows don't compete for the same places in the cache.
template <class T>
inline constexpr Index slice_stride = slice_depth<T> + Index(memory_alignment / sizeof(T));

/// Rows that go through all panels together: their slice (300 KB) and those of two panels fit the second-level cache.
inline constexpr Index block_rows = 96;
inline constexpr Index block_strips = block_rows / tall_tile_rows;

/// One tile: a [Rows, depth] rows a_stride apart, b the first of Panels panels, start and c its first elements. Only the
/// first `width` columns exist. a_stride is an Index or a std::integral_constant; `before` as in multiply_tile.
template <Index Rows, Index Panels, class T, class Stride, class Before = DoNothing>
void product_tile(const T* a, Stride a_stride, const T* b, Index panel_stride, Index depth, const T* start,
                  Index start_stride, T* c, Index c_stride, Index width, Before before = {}) {
  constexpr Index full = Panels * panel_width<T>;
  // The last panel may stick out of C: then the tile goes through the stack.
  T edge[std::size_t(Rows * full)];
  T* const target = c;
  const Index target_stride = c_stride;
  if (width < full) {
    std::fill_n(edge, Rows * full, T(0));
    for (Index row = 0; row < Rows; ++row) std::copy_n(start + row * start_stride, width, edge + row * full);
    start = c = edge;
    start_stride = c_stride = full;
  }
  multiply_tile<Rows, tile_vectors, Panels>(
      a, a_stride, 1, b, panel_width<T>, panel_stride, depth,
      [&](auto row, auto vector) SEQMIX_INLINE_LAMBDA { return load(start + row * start_stride + vector * lanes<T>); },
      [&](auto row, auto vector, const Batch<T>& sum)
          SEQMIX_INLINE_LAMBDA { store(c + row * c_stride + vector * lanes<T>, sum); },
      before);
  if (width < full) {
    for (Index row = 0; row < Rows; ++row) std::copy_n(edge + row * full, width, target + row * target_stride);
  }
}

/// Up to this many rows the panels are read straight through for a strip and, where a strip has 6 rows, again for up to 3
/// more, which side by side panels make cheap; two strips of 4 rows would have too few sums each.
inline constexpr Index few_rows = std::max<Index>(tall_tile_rows, 9);

/// At most tall_tile_rows rows: the panels stream by once, several side by side where a row alone has too few sums to hide the
/// latency of the multiply-adds.
template <Index Rows, class T>
void product_few_rows(ConstSequence<T> a, const PackedMatrix<T>& b, Index panel_begin, Index panel_end, Start<T> start,
                      Sequence<T> c) {
  constexpr Index together = Rows == 1 ? 4 : Rows <= 3 ? 2 : 1;
  Index panel = panel_begin;
  const auto run = [&]<Index Panels>(std::integral_constant<Index, Panels>) {
    const Index column = panel * panel_width<T>;
    product_tile<Rows, Panels>(a.data(), a.stride(), b.panel(panel), b.panel_stride(), b.inputs(), start.at(0, column),
                               start.row_step, c.data() + column, c.stride(),
                               std::min(Panels * panel_width<T>, b.outputs() - column));
    panel += Panels;
  };
  while (panel_end - panel >= together) run(std::integral_constant<Index, together>{});
  while (panel < panel_end) run(std::integral_constant<Index, 1>{});
}

/// A matrix of more than tall_tile_rows rows, dealt out evenly to strips: strips of 5 rows run at the full rate, one of 1
/// or 2 left over would not.
struct Strips {
  Index rows;

  Index count() const { return (rows + tall_tile_rows - 1) / tall_tile_rows; }
  Index begin(Index strip) const { return strip * rows / count(); }
};

/// The rows of the strips first .. last - 1, at most block_strips of them. Each slice of the depth is copied from A, so
/// that the tiles read it without gaps whatever A's stride, and then taken through all panels. Meanwhile the next panel
/// is asked for: larger matrices come from the third-level cache, which would be waited for.
template <class T>
void product_block(ConstSequence<T> a, const PackedMatrix<T>& b, Strips strips, Index first, Index last,
                   Index panel_begin, Index panel_end, Start<T> start, Sequence<T> c, Workspace& workspace) {
  const auto frame = workspace.frame();
  const Index begin = strips.begin(first), rows = strips.begin(last) - begin, depth = b.inputs();
  constexpr std::integral_constant<Index, slice_stride<T>> stride{};
  constexpr Index line = Index(memory_alignment / sizeof(T)), lines_of_row = (panel_width<T> + line - 1) / line;
  T* const copy = workspace.take<T>(rows * stride).data();
  for (Index k = 0; k < depth || k == 0; k += slice_depth<T>) {
    const Index slice = std::min(slice_depth<T>, depth - k);
    for (Index t = 0; t < rows; ++t) std::copy_n(a.row(begin + t) + k, slice, copy + t * stride);
    for (Index panel = panel_begin; panel < panel_end; ++panel) {
      const Index column = panel * panel_width<T>;
      const Index width = std::min(panel_width<T>, b.outputs() - column);
      const T* next = panel + 1 < panel_end
                          ? b.panel(panel + 1) + k * panel_width<T>
                          : b.panel(panel_begin) + (k + slice < depth ? k + slice : 0) * panel_width<T>;
      for (Index strip = first, t = begin; strip < last; ++strip) {
        const Index next_begin = strips.begin(strip + 1), place = t - begin;
        // A line for each row of the panel in turn: two strips cover two vectors of AVX-512.
        const T* ahead = next + (strip - first) % lines_of_row * slice * line;
        with_rows<tall_tile_rows, tall_tile_rows / 2>(next_begin - t, [&](auto count) SEQMIX_INLINE_LAMBDA {
          product_tile<count, 1>(copy + place * stride, stride, b.panel(panel) + k * panel_width<T>, Index(0), slice,
                                 start.at(t, column), start.row_step, c.row(t) + column, c.stride(), width,
                                 [ahead](Index i) SEQMIX_INLINE_LAMBDA { prefetch_read(ahead + i * line); });
        });
        t = next_begin;
      }
    }
    start = start_of(FromOutput{}, c);
  }
}

}  // namespace detail

/// c = C0 + a b^T. a [rows, inputs], c [rows, outputs], any number of rows; `from` is FromZero, FromBias or FromOutput. c
/// must not overlap a. Runs on all of the workspace's threads where the product is large enough to share. Allocates
/// nothing once `workspace` is warm.
template <class T, class From>
void multiply(ConstSequence<T> a, const PackedMatrix<T>& b, From from, Sequence<T> c, Workspace& workspace) {
  assert(a.channels() == b.inputs() && c.channels() == b.outputs() && a.length() == c.length());
  const Index rows = a.length(), panels = b.panels();
  if (rows == 0 || panels == 0) return;
  const auto start = detail::start_of(from, c);
  // Pieces of the output: whole blocks of rows, and as many groups of panels as it takes to give every thread several
  // pieces that are still worth the hand-over.
  const bool few = rows <= detail::few_rows;
  const detail::Strips strips{rows};
  const Index row_blocks = few ? 1 : (strips.count() + detail::block_strips - 1) / detail::block_strips;
  constexpr Index least_work = 1 << 17;
  const Index work = rows * b.inputs() * b.outputs();
  const Index wanted = workspace.concurrency() == 1 ? 1 : std::min(8 * workspace.concurrency(), work / least_work);
  const Index groups = std::clamp<Index>((wanted + row_blocks - 1) / row_blocks, 1, panels);
  const auto piece = [&](Index index, Workspace& local) {
    const Index block = index / groups, group = index % groups;
    const Index panel_begin = group * panels / groups, panel_end = (group + 1) * panels / groups;
    if (!few) {
      const Index first = block * strips.count() / row_blocks, last = (block + 1) * strips.count() / row_blocks;
      detail::product_block<T>(a, b, strips, first, last, panel_begin, panel_end, start, c, local);
      return;
    }
    for (Index t = 0; t < rows; t += tall_tile_rows) {
      const Index some = std::min(tall_tile_rows, rows - t);
      const detail::Start<T> some_start{start.at(t, 0), start.row_step, start.column_step};
      with_rows<tall_tile_rows>(some, [&](auto count) {
        detail::product_few_rows<count, T>(a.rows(t, some), b, panel_begin, panel_end, some_start, c.rows(t, some));
      });
    }
  };
  if (row_blocks * groups == 1 || work < 4 * least_work) {
    for (Index index = 0; index < row_blocks * groups; ++index) piece(index, workspace);
  } else {
    workspace.parallel_for(row_blocks * groups, piece);
  }
}

}  // namespace seqmix::inline SEQMIX_ARCH
