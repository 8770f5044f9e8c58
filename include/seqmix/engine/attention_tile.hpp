// Many rows of queries against packed keys: the tiled kernel of the attention engine.
//
// Strips of 6 query rows meet tiles of keys that stay in the second-level cache. In a strip, a register tile gives the
// logits of 6 rows and one panel of keys, the maximum taken as they are stored; one pass turns them into weights; a
// register tile multiplies these with the values. Online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et
// al. 2022, arXiv:2205.14135), with a maximum that moves only when it grows by more than 8 binary orders, so that most
// tiles need no rescaling. Tiles lie on a fixed grid: what a row computes depends on nothing but its number.
#pragma once

#include <algorithm>
#include <limits>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/attention_mask.hpp>
#include <seqmix/engine/attention_pack.hpp>
#include <seqmix/engine/attention_score.hpp>
#include <seqmix/simd/batch.hpp>
#include <seqmix/simd/math.hpp>
#include <seqmix/simd/microkernel.hpp>
#include <span>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

template <class T>
inline constexpr T minus_infinity = -std::numeric_limits<T>::infinity();

/// The state of one row's online softmax: weights are 2^(logit - maximum). Starts from the sink, or from nothing: a finite
/// maximum, so that a row of masked logits has weights 0 and not 2^(-inf + inf).
template <class T>
struct RowSoftmax {
  T maximum = std::numeric_limits<T>::lowest();
  double sum = 0;  // of millions of weights

  RowSoftmax() = default;
  explicit RowSoftmax(T sink_logit) {
    if (sink_logit == minus_infinity<T>) return;
    maximum = sink_logit;
    sum = static_cast<double>(exp2_softmax(sink_logit - maximum));
  }

  /// Turns `count` logits, a multiple of the panel width, into weights. Returns the factor for everything that was
  /// accumulated before.
  T weigh(T* logits, Index count, T highest) {
    constexpr Index W = lanes<T>;
    T rescale = 1;
    if (highest > maximum + T(8)) {
      rescale = exp2_softmax(maximum - highest);
      maximum = highest;
    }
    const Batch<T> reference = broadcast(maximum);
    Batch<T> even = broadcast(T(0)), odd = broadcast(T(0));
    for (Index j = 0; j < count; j += 2 * W) {
      const Batch<T> first = exp2_softmax(load(logits + j) - reference);
      const Batch<T> second = exp2_softmax(load(logits + j + W) - reference);
      store(logits + j, first);
      store(logits + j + W, second);
      even += first;
      odd += second;
    }
    sum = sum * static_cast<double>(rescale) + static_cast<double>(reduce_add(even + odd));
    return rescale;
  }

  /// 1 / sum, or 0 for a row without keys.
  T inverse_sum() const { return sum == 0 ? T(0) : static_cast<T>(1 / sum); }
};

/// output[0 .. width) = factor * mixed. mixed is readable up to a whole vector.
template <class T>
void store_scaled(const T* mixed, T factor, T* output, Index width) {
  constexpr Index W = lanes<T>;
  Index c = 0;
  for (; c + W <= width; c += W) store(output + c, load(mixed + c) * broadcast(factor));
  if (c < width) store_partial(output + c, load(mixed + c) * broadcast(factor), width - c);
}

/// scaled[0 .. width) = factor * row; zeros follow up to `padded`.
template <class T>
void load_scaled(const T* row, T factor, T* scaled, Index width, Index padded) {
  for (Index d = 0; d < width; ++d) scaled[d] = row[d] * factor;
  std::fill(scaled + width, scaled + padded, T(0));
}

/// Asks for the cache lines of a row that will be written.
template <class T>
SEQMIX_ALWAYS_INLINE void prefetch_row_to_write(T* row, Index width) {
  for (Index i = 0; i < width; i += Index(memory_alignment / sizeof(T))) prefetch_write(row + i);
}

/// Panels first .. first + count - 1 of the keys.
struct PanelRun {
  Index first = 0;
  Index count = 0;
};

/// Logits of a strip and `count` panels of keys: logits[r * stride + ..] = <query r, keys>; with_maximum also takes
/// their maxima into maximum [tile_rows]. Not inlined, so that constants of the caller don't occupy the registers of the
/// tile; the maxima are kept in a local array, which the stores of logits can't alias.
template <bool with_maximum, class T>
[[gnu::noinline]] void multiply_keys(const T* query, Index head_dim, const T* panel, Index count, T* logits,
                                     Index stride, Batch<T>* maximum) {
  Batch<T> highest[static_cast<std::size_t>(tile_rows)];
  if constexpr (with_maximum) std::copy_n(maximum, tile_rows, highest);
  for (Index i = 0; i < count; ++i) {
    multiply_tile<tile_rows, tile_vectors>(
        query, head_dim, 1, panel, panel_width<T>, 0, head_dim,
        [](auto, auto) SEQMIX_INLINE_LAMBDA { return broadcast(T(0)); },
        [&](auto row, auto vector, Batch<T> sum) SEQMIX_INLINE_LAMBDA {
          store(logits + row * stride + vector * lanes<T>, sum);
          if constexpr (with_maximum) highest[row] = max_propagating(sum, highest[row]);
        });
    panel += head_dim * panel_width<T>;
    logits += panel_width<T>;
  }
  if constexpr (with_maximum) std::copy_n(highest, tile_rows, maximum);
}

/// mixed = rescale * mixed + weights * values for a strip and one panel of value columns. The sum of a tile is formed
/// apart and then added: in one long sum, rounding errors would grow with the number of keys.
template <class T>
void multiply_values(const T* weights, Index stride, const PackedHead<T>& packed, Index column_panel,
                     std::span<const PanelRun> runs, const T* rescale, T* mixed, Index mixed_stride) {
  constexpr Index P = panel_width<T>, W = lanes<T>;
  const auto add_to_mixed = [&](auto row, auto vector, Batch<T> sum) SEQMIX_INLINE_LAMBDA {
    T* place = mixed + row * mixed_stride + vector * W;
    store(place, fma(load(place), broadcast(rescale[row]), sum));
  };
  if (runs.size() == 1) {
    multiply_tile<tile_rows, tile_vectors>(
        weights, stride, 1, packed.value_panel(column_panel, runs[0].first), P, 0, runs[0].count * P,
        [](auto, auto) SEQMIX_INLINE_LAMBDA { return broadcast(T(0)); }, add_to_mixed);
    return;
  }
  T sums[static_cast<std::size_t>(tile_rows * P)] = {};
  for (const PanelRun& run : runs) {
    multiply_tile<tile_rows, tile_vectors>(
        weights, stride, 1, packed.value_panel(column_panel, run.first), P, 0, run.count * P,
        [&](auto row, auto vector) SEQMIX_INLINE_LAMBDA { return load(sums + row * P + vector * W); },
        [&](auto row, auto vector, Batch<T> sum) SEQMIX_INLINE_LAMBDA { store(sums + row * P + vector * W, sum); });
    weights += run.count * P;
  }
  unroll<tile_rows>([&](auto row) SEQMIX_INLINE_LAMBDA {
    unroll<tile_vectors>([&](auto vector)
                             SEQMIX_INLINE_LAMBDA { add_to_mixed(row, vector, load(sums + row * P + vector * W)); });
  });
}

/// As multiply_values for all columns of one row, but values of keys that the row doesn't see are never touched: weight 0
/// times an infinite or NaN value would be NaN. The same sums in the same order, hence the same bits.
template <class T, class HeadMask>
void multiply_seen_values(const HeadMask& mask, Index row, const T* weights, const PackedHead<T>& packed,
                          std::span<const PanelRun> runs, const std::uint8_t* partial, T rescale, T* mixed) {
  constexpr Index P = panel_width<T>, W = lanes<T>;
  for (Index c = 0; c < packed.value_panels() * P; c += W) {
    Batch<T> sum = broadcast(T(0));
    Index slot = 0;
    for (const PanelRun& run : runs) {
      for (Index panel = run.first; panel < run.first + run.count; ++panel, ++slot) {
        const T* values = packed.value_panel(c / P, panel) + c % P;
        for (Index lane = 0; lane < P && panel * P + lane < packed.length; ++lane) {
          const Index key = panel * P + lane;
          if (partial[slot] != 0 && !mask.template keep<T>(row, key).get(0)) continue;
          sum = fma(broadcast(weights[slot * P + lane]), load(values + lane * P), sum);
        }
      }
    }
    store(mixed + c, fma(load(mixed + c), broadcast(rescale), sum));
  }
}

/// Keys of a tile: with their values they fill half of a second-level cache of 512 KB, and the logits of a strip a
/// good part of the first-level cache.
template <class T>
constexpr Index tile_keys(Index head_dim, Index value_dim) {
  constexpr Index P = panel_width<T>, half_cache = 256 * 1024;
  const Index key_bytes = std::max<Index>(1, head_dim + value_dim) * Index(sizeof(T));
  return std::clamp<Index>(half_cache / key_bytes, 64, 512) / P * P;
}

/// Attention of rows of one query head against that head's packed keys and values.
template <bool plain, class T, class HeadMask, class HeadScore>
class TileKernel {
 public:
  TileKernel(const HeadMask& mask, const HeadScore& score, const PackedHead<T>& packed)
      : mask_(mask), score_(score), packed_(packed) {}

  /// output = attention of the rows `rows`; query, output [rows.size(), ..] are these rows of one head. Every row's
  /// softmax begins as `start`.
  void run(Sequence<const T> query, T query_factor, IndexRange rows, RowSoftmax<T> start, Sequence<T> output,
           Workspace& workspace) {
    const auto frame = workspace.frame();
    const Index head_dim = packed_.head_dim, padded_rows = round_up(rows.size(), R);
    mixed_stride_ = packed_.value_panels() * P;
    tile_ = tile_keys<T>(packed_.head_dim, packed_.value_dim);
    stride_ = tile_ + lanes<T>;  // not a power of two
    T* scaled = workspace.take<T>(padded_rows * head_dim).data();
    T* mixed = workspace.take<T>(padded_rows * mixed_stride_).data();
    RowSoftmax<T>* softmax = workspace.take<RowSoftmax<T>>(padded_rows).data();
    logits_ = workspace.take<T>(R * stride_).data();
    runs_ = workspace.take<PanelRun>(tile_ / P);
    partial_ = workspace.take<std::uint8_t>(tile_ / P);
    std::fill(scaled + rows.size() * head_dim, scaled + padded_rows * head_dim, T(0));
    std::fill(mixed, mixed + padded_rows * mixed_stride_, T(0));
    std::fill(softmax, softmax + padded_rows, start);

    // Queries are read, and outputs asked for, between the products: nothing waits for memory.
    const auto prefetch_queries = [&](Index begin) {
      for (Index r = begin; r < std::min(begin + R, rows.size()); ++r) prefetch_row(query.row(r), head_dim);
    };
    prefetch_queries(0);
    bool first = true;
    const IndexRange range = mask_.range(rows).intersect({0, packed_.length});
    for (Index tile = range.begin / tile_ * tile_; tile < range.end; tile += tile_) {
      // Whole panels: what they hold beyond the range the mask refuses, and beyond the keys this kernel does.
      const IndexRange panels{std::max(tile, range.begin) / P, (std::min(tile + tile_, range.end) + P - 1) / P};
      const Coverage coverage = mask_.cover(rows, keys_of(panels));
      if (coverage == Coverage::none) continue;
      const bool last = tile + tile_ >= range.end;
      for (Index begin = 0; begin < rows.size(); begin += R) {
        const Index end = std::min(begin + R, rows.size());
        if (first) {
          prefetch_queries(begin + R);
          for (Index r = begin; r < end; ++r) {
            load_scaled(query.row(r), query_factor, scaled + r * head_dim, head_dim, head_dim);
          }
        }
        if (last) {
          for (Index r = begin; r < end; ++r) prefetch_row_to_write(output.row(r), packed_.value_dim);
        }
        attend_strip({rows.begin + begin, rows.begin + end}, panels, coverage, scaled + begin * head_dim,
                     softmax + begin, mixed + begin * mixed_stride_);
      }
      first = false;
    }
    for (Index r = 0; r < rows.size(); ++r) {
      store_scaled(mixed + r * mixed_stride_, softmax[r].inverse_sum(), output.row(r), packed_.value_dim);
    }
  }

 private:
  static constexpr Index R = tile_rows, P = panel_width<T>, W = lanes<T>;

  IndexRange keys_of(IndexRange panels) const { return {panels.begin * P, std::min(panels.end * P, packed_.length)}; }

  /// Lists the panels that the strip sees, sets how many they are and whether single rows must avoid non-finite values.
  void list_panels(IndexRange strip, IndexRange panels, Coverage coverage) {
    slots_ = run_count_ = 0;
    avoid_ = false;
    if (coverage == Coverage::partial) coverage = mask_.cover(strip, keys_of(panels));
    if (coverage == Coverage::none) return;
    for (Index panel = panels.begin; panel < panels.end; ++panel) {
      Coverage here = coverage;
      if (here == Coverage::partial) here = mask_.cover(strip, keys_of({panel, panel + 1}));
      if (here == Coverage::none) continue;
      const bool partial = here == Coverage::partial || (panel + 1) * P > packed_.length;
      avoid_ |= partial && packed_.nonfinite[panel] != 0;
      partial_[static_cast<std::size_t>(slots_++)] = partial;
      PanelRun* last = runs_.data() + run_count_ - 1;
      if (run_count_ > 0 && last->first + last->count == panel) {
        ++last->count;
      } else {
        runs_[static_cast<std::size_t>(run_count_++)] = {panel, 1};
      }
    }
  }

  void attend_strip(IndexRange strip, IndexRange panels, Coverage coverage, const T* query, RowSoftmax<T>* softmax,
                    T* mixed) {
    list_panels(strip, panels, coverage);
    if (slots_ == 0) return;
    const std::span<const PanelRun> runs = runs_.first(static_cast<std::size_t>(run_count_));
    Batch<T> maximum[static_cast<std::size_t>(R)];
    for (auto& batch : maximum) batch = broadcast(minus_infinity<T>);
    Index slot = 0;
    for (const PanelRun& run : runs) {
      for (Index panel = run.first, end = run.first + run.count; panel < end;) {
        const bool partial = partial_[static_cast<std::size_t>(slot)] != 0;
        Index count = 1;  // panels alike
        while (panel + count < end && (partial_[static_cast<std::size_t>(slot + count)] != 0) == partial) ++count;
        const T* keys = packed_.key_panel(panel);
        T* logits = logits_ + slot * P;
        if (plain && !partial) {
          multiply_keys<true>(query, packed_.head_dim, keys, count, logits, stride_, maximum);
        } else {
          multiply_keys<false>(query, packed_.head_dim, keys, count, logits, stride_, maximum);
          for (Index i = 0; i < count; ++i) score_panel(strip, (panel + i) * P, partial, logits + i * P, maximum);
        }
        panel += count;
        slot += count;
      }
    }
    T rescale[static_cast<std::size_t>(R)] = {};
    for (Index r = 0; r < strip.size(); ++r) {
      rescale[r] = softmax[r].weigh(logits_ + r * stride_, slots_ * P, reduce_max(maximum[r]));
    }
    if (avoid_) {
      for (Index r = 0; r < strip.size(); ++r) {
        multiply_seen_values(mask_, strip.begin + r, logits_ + r * stride_, packed_, runs, partial_.data(), rescale[r],
                             mixed + r * mixed_stride_);
      }
      return;
    }
    for (Index c = 0; c < packed_.value_panels(); ++c) {
      multiply_values(logits_, stride_, packed_, c, runs, rescale, mixed + c * P, mixed_stride_);
    }
  }

  /// Turns inner products into logits, -infinity where the mask keeps nothing.
  void score_panel(IndexRange strip, Index key, bool partial, T* logits, Batch<T>* maximum) const {
    const Batch<T> outside = broadcast(minus_infinity<T>);
    for (Index r = 0; r < strip.size(); ++r) {
      const auto logit = score_.row(strip.begin + r);
      unroll<tile_vectors>([&](auto vector) SEQMIX_INLINE_LAMBDA {
        T* place = logits + r * stride_ + vector * W;
        const Index first = key + vector * W;
        Batch<T> value = logit(load(place), first);
        if (partial) {
          const auto exists = lane_index<T>() < broadcast(static_cast<T>(packed_.length - first));
          value = select(mask_.template keep<T>(strip.begin + r, first) & exists, value, outside);
        }
        store(place, value);
        maximum[r] = max_propagating(value, maximum[r]);
      });
    }
  }

  const HeadMask& mask_;
  const HeadScore& score_;
  const PackedHead<T>& packed_;
  Index tile_ = 0, stride_ = 0, mixed_stride_ = 0;
  T* logits_ = nullptr;              // [R][stride_]: of the panels in the runs, side by side
  std::span<PanelRun> runs_;         // panels that the current strip sees in the current tile
  std::span<std::uint8_t> partial_;  // for each of these panels
  Index slots_ = 0, run_count_ = 0;  // panels and runs in the list
  bool avoid_ = false;
};

}  // namespace detail

}  // namespace seqmix::inline SEQMIX_ARCH
