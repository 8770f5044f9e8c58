// What a long causal convolution owes to blocks of tokens before the last two, a little at every token: no token waits for a
// large transform.
//
//   y_t[j H + h] = sum over lags l of filter[j H + h][l] x_{t-l}[h]
//
//   Glossary  H channels   c outputs of a channel   W taps   B tokens of the smallest block   U of a block, B 4^k
//   Source    Gardner 1995, "Efficient convolution without input-output delay" (blocks that wait for one block); van der Hoeven
//             2002, "Relax, but don't be too lazy" (which pairs of blocks)
//
// Blocks of U tokens are numbered from 0 at every level. Of input block i the output block o = i + 2 is the first to be served
// by a transform of length U, and there is the time of U steps for it: from the end of i to the beginning of o. Steps of block
// o - 1 = b share the work evenly: the transform of block i = b - 1, which is kept; the products of that and of earlier blocks
// with spectra of the filter, those for distance d = o - i with the taps around lag d U; the inverse of their sum, which is added
// to the outputs of o. Pairs at distances 0 and 1 belong to the blocks of the next level below, or, of B tokens, are summed
// directly by whoever calls this; so at a level are pairs at distances 2 .. 7, those whose blocks of 4 U tokens are at
// distance 0 or 1, and at the last level, whose blocks are the largest, those at 2 .. 8 at most.
//
// Channels lie in lines of 64 bytes whatever the instruction set, so that states are the same for all of them. Lines take their
// turns: a token advances one line's transform by many butterflies, which stay in a cache, instead of all by few.
#pragma once

#include <algorithm>
#include <bit>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/engine/fft.hpp>
#include <vector>

namespace seqmix::inline SEQMIX_ARCH {

/// The tiles of such a convolution, with the spectra of its filters.
template <std::floating_point T>
class BalancedTiles {
 public:
  static constexpr Index block = 32;
  static constexpr Index line = Index(memory_alignment / sizeof(T));

  /// No channels.
  BalancedTiles() = default;

  /// The taps that `tap(row, lag)` gives, for rows 0 .. c H - 1 and lags 0 .. W - 1. O(c H W log W) time; allocates about
  /// 2.5 W numbers for each row.
  template <class Tap>
  BalancedTiles(Index channels, Index outputs, Index taps, const Tap& tap)
      : lines_((channels + line - 1) / line), outputs_(outputs) {
    const Index used = std::min(line, (channels + lanes<T> - 1) / lanes<T> * lanes<T>);
    // Distance d begins with lag (d - 1) U + 1.
    const auto distances = [&](Index tile) { return (taps - 2) / tile + 1; };
    for (Index tile = block; taps > block + 1; tile *= ratio) {
      const bool last = distances(tile) <= most_distances;
      levels_.emplace_back(tile, last ? distances(tile) : 2 * ratio - 1, last, used);
      if (last) break;
    }
    for (Level& level : levels_) {
      level.begin = size_;
      size_ += (level.history() + 1) * level.points() * lines_;
      prepare(level, channels, [&](Index row, Index lag) { return lag < taps ? T(tap(row, lag)) : T(0); });
    }
  }

  /// Rows of the rings of inputs and of sums of outputs.
  Index ring() const { return 2 * (levels_.empty() ? block : levels_.back().tile); }

  /// Numbers of a state, apart from those. Zeros before the first token.
  Index size() const { return size_; }

  /// The next `count` tokens after `position`, all of one block of B, have been put in and out: the part of the work that is
  /// theirs, of lines begin .. end - 1. rows [ring(), 1 + c, lines]: inputs, and sums of outputs. On average
  /// O(c H log(W)^2) time for each token, for none more than a few times that; allocates nothing.
  void advance(T* state, Index position, Index count, HeadSequence<T> rows, Index begin, Index end) const {
    for (const Level& level : levels_) {
      const Index current = position >> level.shift, step = position - (current << level.shift);
      if (current == 0) continue;  // nothing is complete
      const Index products = level.products(current + 1);
      const Index parts = level.transform.part_count(products), all = lines_ * outputs_ * parts;
      const Index first = std::max((all * step) >> level.shift, begin * outputs_ * parts);
      const Index last = std::min((all * (step + count)) >> level.shift, end * outputs_ * parts);
      if (first >= last) continue;
      Index job = first / parts;
      for (Index before = job * parts; before < last; ++job, before += parts) {
        convolve(level, state + level.begin, current + 1, job, products, parts, rows,
                 std::max(first - before, Index(0)), std::min(last - before, parts));
      }
    }
  }

 private:
  static constexpr Index ratio = 4;           // of the tokens of blocks
  static constexpr Index most_distances = 8;  // at least 2 ratio - 1
  static constexpr Index point = 2 * line, four = 4 * point;

  struct Level {
    Level(Index of_tile, Index of_distances, bool is_last, Index used)
        : tile(of_tile),
          shift(std::countr_zero(std::size_t(of_tile))),
          distances(of_distances),
          last(is_last),
          transform(of_tile, used) {}

    /// Blocks whose transforms are kept.
    Index history() const { return distances - 1; }
    /// Numbers of the transform of a line.
    Index points() const { return tile * point; }
    /// For output block o.
    Index products(Index o) const { return (last ? distances : ratio + o % ratio) - 1; }

    Index tile;  // U
    int shift;   // its logarithm
    Index distances;
    bool last;
    // In the state: transforms [line][U / 4][block mod history][4 points], points [line][U].
    Index begin = 0;
    RightAngleTransform<T, line> transform;
    Buffer<T> spectra;  // [line][output][U / 4][distance - 2][4 points]
  };

  template <class Tap>
  void prepare(Level& level, Index channels, const Tap& tap) const {
    const Index tile = level.tile, size = level.points();
    level.spectra.resize(std::size_t(lines_ * outputs_ * level.history() * size));
    Buffer<T> taps(static_cast<std::size_t>(tile * line)), before(static_cast<std::size_t>(size)), after(before);
    for (Index spectrum = 0; spectrum < lines_ * outputs_ * level.history(); ++spectrum) {
      const Index e = spectrum % level.history(), j = spectrum / level.history() % outputs_;
      const Index channel = spectrum / level.history() / outputs_ * line;
      const auto side = [&](Index shift, T* transformed) {
        for (Index i = 0; i < tile; ++i) {
          for (Index h = 0; h < line; ++h) {
            const bool present = channel + h < channels && i > shift - tile;
            taps[std::size_t(i * line + h)] =
                present ? tap(j * channels + channel + h, (2 + e) * tile + i - shift) : T(0);
          }
        }
        level.transform.forward({taps.data(), tile, line}, transformed);
      };
      side(0, after.data()), side(tile, before.data());
      level.transform.combine(after.data(), before.data());
      T* const to = level.spectra.data() + spectrum / level.history() * level.history() * size + e * four;
      for (Index i = 0; i < tile / 4; ++i) {
        std::copy_n(after.data() + i * four, four, to + i * level.history() * four);
      }
    }
  }

  /// Parts begin .. end - 1 of what output block o of a line receives.
  void convolve(const Level& level, T* state, Index o, Index job, Index products, Index parts,
                const HeadSequence<T>& rows, Index begin, Index end) const {
    using Point = detail::Point<T>;
    const Index tile = level.tile, size = level.points(), history = level.history();
    const Index which = job / outputs_, j = job - which * outputs_;
    T* const transforms = state + which * history * size;
    T* const points = state + (lines_ * history + which) * size;
    const T* const spectra = level.spectra.data() + job * history * size;
    Index past[most_distances];  // in a row of transforms, what distance 2, 3 .. meets
    for (Index e = 0, slot = (o - 2) % history; e < products; ++e) {
      past[e] = slot * four;
      slot = slot == 0 ? history - 1 : slot - 1;
    }
    const auto at = [](const T* from) SEQMIX_INLINE_LAMBDA { return Point{load(from), load(from + line)}; };
    const auto product = [&](Point(&a)[4], Index place, Index h) SEQMIX_INLINE_LAMBDA {
      const Index offset = place * history * point + h;
      T* const own = transforms + offset + past[0];
      const T* by = spectra + offset;
      unroll<4>([&](auto q) SEQMIX_INLINE_LAMBDA {
        store(own + q * point, a[q].real), store(own + q * point + line, a[q].imag);
        a[q] = a[q].times(at(by + q * point));
      });
      for (Index e = 1; e < products; ++e) {
        const T* const from = transforms + offset + past[e];
        by += four;
        unroll<4>([&](auto q) SEQMIX_INLINE_LAMBDA {
          const Point x = at(from + q * point), w = at(by + q * point);
          a[q].real = fma(x.real, w.real, fnma(x.imag, w.imag, a[q].real));
          a[q].imag = fma(x.real, w.imag, fma(x.imag, w.real, a[q].imag));
        });
      }
    };
    const auto row = [&](Index number, Index head) { return rows.row(number * tile % ring(), head) + which * line; };
    level.transform.convolve_part({row(o - 2, 0), tile, rows.row_stride()}, points, parts, product,
                                  {row(o, 1 + j), tile, rows.row_stride()}, begin, end);
  }

  Index lines_ = 0, outputs_ = 0, size_ = 0;
  std::vector<Level> levels_;  // of B, 4 B .. tokens
};

}  // namespace seqmix::inline SEQMIX_ARCH
