// Many rows of queries against packed keys: the tiled kernel of the attention engine.
//
// Strips of query rows, as many as the tallest register tile has, meet tiles of keys that stay in the second-level cache.
// In a strip, a register tile gives the logits of its rows and one panel of keys, the maximum taken as they are stored;
// one pass turns them into weights; a register tile multiplies these with the values. Online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et
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
#include <utility>

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
    sink_logit = maximum = std::min(sink_logit, std::numeric_limits<T>::max());  // an infinite one is as good as that
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

  /// Adds the weights of further keys. Returns the factors for everything that was accumulated here and there.
  std::pair<T, T> add(const RowSoftmax& more) {
    const T highest = std::max(maximum, more.maximum);
    const T own = exp2_softmax(maximum - highest), others = exp2_softmax(more.maximum - highest);
    maximum = highest;
    sum = sum * static_cast<double>(own) + more.sum * static_cast<double>(others);
    return {own, others};
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

/// Rows of a whole strip, and the unit in which the register tiles of shorter ones grow.
inline constexpr Index strip_rows = tall_tile_rows;
inline constexpr Index strip_unit = strip_rows / 3;

/// Numbers from one channel of the queries of a strip to the next.
template <class T>
inline constexpr Index query_stride = round_up(strip_rows, lanes<T>);

/// Calls f(std::integral_constant<Index, N>{}), N the least multiple of strip_unit that is not less than `rows`.
template <class F>
SEQMIX_ALWAYS_INLINE void with_strip_rows(Index rows, F&& f) {
  with_rows<3>((rows + strip_unit - 1) / strip_unit,
               [&](auto units) SEQMIX_INLINE_LAMBDA { f(std::integral_constant<Index, units * strip_unit>{}); });
}

/// Keys of a tile: with their values they fill half of a second-level cache of 512 KB, and the logits of a strip a
/// good part of the first-level cache.
inline constexpr Index most_tile_keys = 512;
template <class T>
constexpr Index tile_keys(Index head_dim, Index value_dim) {
  constexpr Index P = panel_width<T>, half_cache = 256 * 1024;
  const Index key_bytes = std::max<Index>(1, head_dim + value_dim) * Index(sizeof(T));
  return std::clamp<Index>(half_cache / key_bytes, 64, most_tile_keys) / P * P;
}

/// Numbers from one row of logits to the next: a constant, so that a tile needs one address for all rows, and no power of
/// two.
template <class T>
inline constexpr Index logit_stride = most_tile_keys + lanes<T>;

/// Logits of a strip and `count` panels of keys: logits[r * logit_stride + ..] = <query r, keys>, query [head_dim,
/// query_stride]; with_maximum also takes their maxima into maximum [Rows]. Not inlined, so that constants of the caller
/// don't occupy the registers of the tile; the maxima are kept in a local array, which the stores of logits can't alias.
template <Index Rows, bool with_maximum, class T>
[[gnu::noinline]] void multiply_keys(const T* query, Index head_dim, const T* panel, Index count, T* logits,
                                     Batch<T>* maximum) {
  Batch<T> highest[static_cast<std::size_t>(Rows)];
  if constexpr (with_maximum) std::copy_n(maximum, Rows, highest);
  for (Index i = 0; i < count; ++i) {
    multiply_tile<Rows, tile_vectors>(
        query, 1, query_stride<T>, panel, panel_width<T>, 0, head_dim,
        [](auto, auto) SEQMIX_INLINE_LAMBDA { return broadcast(T(0)); },
        [&](auto row, auto vector, Batch<T> sum) SEQMIX_INLINE_LAMBDA {
          store(logits + row * logit_stride<T> + vector * lanes<T>, sum);
          if constexpr (with_maximum) highest[row] = max_propagating(sum, highest[row]);
        });
    panel += head_dim * panel_width<T>;
    logits += panel_width<T>;
  }
  if constexpr (with_maximum) std::copy_n(highest, Rows, maximum);
}

/// mixed = rescale * mixed + weights * values for a strip and one panel of value columns. The sum of a tile is formed
/// apart and then added: in one long sum, rounding errors would grow with the number of keys. Only the first `keys` keys
/// of the last run are looked at: the strip sees none beyond.
template <Index Rows, class T>
[[gnu::noinline]] void multiply_values(const T* weights, const PackedHead<T>& packed, Index column_panel,
                                       std::span<const PanelRun> runs, Index keys, const T* rescale, T* mixed,
                                       Index mixed_stride) {
  constexpr Index P = panel_width<T>, W = lanes<T>, stride = logit_stride<T>;
  const auto add_to_mixed = [&](auto row, auto vector, Batch<T> sum) SEQMIX_INLINE_LAMBDA {
    T* place = mixed + row * mixed_stride + vector * W;
    store(place, fma(load(place), broadcast(rescale[row]), sum));
  };
  if (runs.size() == 1) {
    multiply_tile<Rows, tile_vectors>(
        weights, stride, 1, packed.value_panel(column_panel, runs[0].first), P, 0, keys,
        [](auto, auto) SEQMIX_INLINE_LAMBDA { return broadcast(T(0)); }, add_to_mixed);
    return;
  }
  T sums[static_cast<std::size_t>(Rows * P)] = {};
  for (const PanelRun& run : runs) {
    multiply_tile<Rows, tile_vectors>(
        weights, stride, 1, packed.value_panel(column_panel, run.first), P, 0,
        &run == &runs.back() ? keys : run.count * P,
        [&](auto row, auto vector) SEQMIX_INLINE_LAMBDA { return load(sums + row * P + vector * W); },
        [&](auto row, auto vector, Batch<T> sum) SEQMIX_INLINE_LAMBDA { store(sums + row * P + vector * W, sum); });
    weights += run.count * P;
  }
  unroll<Rows>([&](auto row) SEQMIX_INLINE_LAMBDA {
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

/// The first row after `row` from which on the mask keeps other keys, where it says so.
template <class HeadMask>
Index next_pattern(const HeadMask& mask, Index row) {
  if constexpr (has_patterns<HeadMask>) {
    return mask.next_pattern(row);
  } else {
    return std::numeric_limits<Index>::max();
  }
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
    const std::span<const Strip> strips = cut(rows, workspace);
    const Index head_dim = packed_.head_dim, padded_rows = std::ssize(strips) * R;
    mixed_stride_ = packed_.value_panels() * P;
    const Index tile_size = tile_keys<T>(packed_.head_dim, packed_.value_dim);
    T* scaled = workspace.take<T>(std::ssize(strips) * head_dim * query_stride<T>).data();
    T* mixed = workspace.take<T>(padded_rows * mixed_stride_).data();
    RowSoftmax<T>* softmax = workspace.take<RowSoftmax<T>>(padded_rows).data();
    logits_ = workspace.take<T>(R * logit_stride<T>).data();
    runs_ = workspace.take<PanelRun>(tile_size / P);
    coverage_ = workspace.take<Coverage>(tile_size / P);
    partial_ = workspace.take<std::uint8_t>(tile_size / P);
    std::fill(mixed, mixed + padded_rows * mixed_stride_, T(0));
    std::fill(softmax, softmax + padded_rows, start);

    // Queries are read, and outputs asked for, between the products: nothing waits for memory.
    const auto prefetch_queries = [&](IndexRange strip) {
      for (Index r = strip.begin; r < strip.end; ++r) prefetch_row(query.row(r - rows.begin), head_dim);
    };
    prefetch_queries(strips.front().rows);
    bool first = true;
    const IndexRange range = mask_.range(rows).intersect({0, packed_.length});
    for (Index tile = range.begin / tile_size * tile_size; tile < range.end; tile += tile_size) {
      // Whole panels: what they hold beyond the range the mask refuses, and beyond the keys this kernel does.
      const IndexRange panels{std::max(tile, range.begin) / P, (std::min(tile + tile_size, range.end) + P - 1) / P};
      if (mask_.cover(rows, keys_of(panels)) == Coverage::none) continue;
      const bool last = tile + tile_size >= range.end;
      for (std::size_t s = 0; s < strips.size(); ++s) {
        const IndexRange strip = strips[s].rows;
        T* strip_query = scaled + Index(s) * head_dim * query_stride<T>;
        if (first) {
          if (s + 1 < strips.size()) prefetch_queries(strips[s + 1].rows);
          scale_queries(query.rows(strip.begin - rows.begin, strip.size()), query_factor, strip_query);
        }
        if (last) {
          for (Index r = strip.begin; r < strip.end; ++r) {
            prefetch_row_to_write(output.row(r - rows.begin), packed_.value_dim);
          }
        }
        if (strips[s].alike_end > strip.begin) cover_panels({strip.begin, strips[s].alike_end}, panels);
        attend_strip(strip, panels, strip_query, softmax + Index(s) * R, mixed + Index(s) * R * mixed_stride_);
      }
      first = false;
    }
    for (std::size_t s = 0; s < strips.size(); ++s) {
      for (Index r = strips[s].rows.begin; r < strips[s].rows.end; ++r) {
        const Index place = Index(s) * R + r - strips[s].rows.begin;
        store_scaled(mixed + place * mixed_stride_, softmax[place].inverse_sum(), output.row(r - rows.begin),
                     packed_.value_dim);
      }
    }
  }

 private:
  static constexpr Index R = strip_rows, P = panel_width<T>, W = lanes<T>;

  /// Some rows that are worked on together, at most R. With the first of the rows that the mask treats alike comes their
  /// end, with the others 0.
  struct Strip {
    IndexRange rows;
    Index alike_end = 0;
  };

  IndexRange keys_of(IndexRange panels) const { return {panels.begin * P, std::min(panels.end * P, packed_.length)}; }

  /// Cuts the rows into strips, if possible where the mask begins to keep other keys: a strip computes whatever one of
  /// its rows needs. Where there are too few rows alike to fill a register tile, the strips are whole.
  std::span<const Strip> cut(IndexRange rows, Workspace& workspace) {
    const std::span<Strip> strips = workspace.take<Strip>(rows.size() / strip_unit + 1);
    std::size_t count = 0;
    for (Index begin = rows.begin; begin < rows.end;) {
      const Index next = next_pattern(mask_, begin);
      const Index end = std::min(next - begin < strip_unit ? begin + R : next, rows.end);
      for (Index strip = begin; strip < end; strip += R) {
        strips[count++] = {{strip, std::min(strip + R, end)}, strip == begin ? end : 0};
      }
      begin = end;
    }
    return strips.first(count);
  }

  /// scaled [head_dim, query_stride] = factor * query [rows, head_dim], and zeros for the rows beyond.
  void scale_queries(Sequence<const T> query, T factor, T* scaled) const {
    const T* rows[std::size_t(query_stride<T>)] = {};
    for (Index r = 0; r < query.length(); ++r) rows[r] = query.row(r);
    for (Index group = 0; group < query_stride<T>; group += W) {
      transpose_rows(rows + group, packed_.head_dim, factor, scaled + group, query_stride<T>);
    }
  }

  /// Sets coverage_ for rows that the mask treats alike, but for bounds that depend on the row.
  void cover_panels(IndexRange rows, IndexRange panels) {
    for (Index panel = panels.begin; panel < panels.end; ++panel) {
      coverage_[static_cast<std::size_t>(panel - panels.begin)] = mask_.cover(rows, keys_of({panel, panel + 1}));
    }
  }

  /// Lists the panels that the strip sees, sets how many they are and whether single rows must avoid non-finite values.
  void list_panels(IndexRange strip, IndexRange panels) {
    slots_ = run_count_ = 0;
    avoid_ = false;
    for (Index panel = panels.begin; panel < panels.end; ++panel) {
      Coverage here = coverage_[static_cast<std::size_t>(panel - panels.begin)];
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

  void attend_strip(IndexRange strip, IndexRange panels, const T* query, RowSoftmax<T>* softmax, T* mixed) {
    list_panels(strip, panels);
    if (slots_ == 0) return;
    const std::span<const PanelRun> runs = runs_.first(static_cast<std::size_t>(run_count_));
    Batch<T> maximum[static_cast<std::size_t>(R)];
    for (auto& batch : maximum) batch = broadcast(minus_infinity<T>);
    with_strip_rows(strip.size(),
                    [&](auto rows) SEQMIX_INLINE_LAMBDA { form_logits<rows>(strip, runs, query, maximum); });
    T rescale[static_cast<std::size_t>(R)] = {};
    for (Index r = 0; r < strip.size(); ++r) {
      rescale[r] = softmax[r].weigh(logits_ + r * logit_stride<T>, slots_ * P, reduce_max(maximum[r]));
    }
    if (avoid_) {
      for (Index r = 0; r < strip.size(); ++r) {
        multiply_seen_values(mask_, strip.begin + r, logits_ + r * logit_stride<T>, packed_, runs, partial_.data(),
                             rescale[r], mixed + r * mixed_stride_);
      }
      return;
    }
    const PanelRun& last = runs.back();
    Index keys = last.count * P;
    if (partial_[static_cast<std::size_t>(slots_ - 1)] != 0) {
      keys = std::min(keys, mask_.range(strip).intersect({0, packed_.length}).end - last.first * P);
    }
    with_strip_rows(strip.size(), [&](auto rows) SEQMIX_INLINE_LAMBDA {
      for (Index c = 0; c < packed_.value_panels(); ++c) {
        multiply_values<rows>(logits_, packed_, c, runs, keys, rescale, mixed + c * P, mixed_stride_);
      }
    });
  }

  template <Index Rows>
  void form_logits(IndexRange strip, std::span<const PanelRun> runs, const T* query, Batch<T>* maximum) {
    Index slot = 0;
    for (const PanelRun& run : runs) {
      for (Index panel = run.first, end = run.first + run.count; panel < end;) {
        const bool partial = partial_[static_cast<std::size_t>(slot)] != 0;
        Index count = 1;  // panels alike
        while (panel + count < end && (partial_[static_cast<std::size_t>(slot + count)] != 0) == partial) ++count;
        const T* keys = packed_.key_panel(panel);
        T* logits = logits_ + slot * P;
        if (plain && !partial) {
          multiply_keys<Rows, true>(query, packed_.head_dim, keys, count, logits, maximum);
        } else {
          multiply_keys<Rows, false>(query, packed_.head_dim, keys, count, logits, maximum);
          for (Index i = 0; i < count; ++i) score_panel(strip, (panel + i) * P, partial, logits + i * P, maximum);
        }
        panel += count;
        slot += count;
      }
    }
  }

  /// Turns inner products into logits, -infinity where the mask keeps nothing.
  void score_panel(IndexRange strip, Index key, bool partial, T* logits, Batch<T>* maximum) const {
    const Batch<T> outside = broadcast(minus_infinity<T>);
    for (Index r = 0; r < strip.size(); ++r) {
      const auto logit = score_.row(strip.begin + r);
      unroll<tile_vectors>([&](auto vector) SEQMIX_INLINE_LAMBDA {
        T* place = logits + r * logit_stride<T> + vector * W;
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
  Index mixed_stride_ = 0;
  T* logits_ = nullptr;              // [R][logit_stride]: of the panels in the runs, side by side
  std::span<Coverage> coverage_;     // of each panel of the current tile, for the rows like those of the current strip
  std::span<PanelRun> runs_;         // panels that the current strip sees in the current tile
  std::span<std::uint8_t> partial_;  // for each of these panels
  Index slots_ = 0, run_count_ = 0;  // panels and runs in the list
  bool avoid_ = false;
};

}  // namespace detail

}  // namespace seqmix::inline SEQMIX_ARCH
