// Causal convolution with filters of any length: over whole sequences, on from a state, and one token at a time.
//
//   y_t[j H + h] = sum over l < W of filter[j H + h][l] x_{t-l}[h]
//
//   Glossary  H channels   c outputs of a channel   W taps   B tokens of a block   P period, a power of two >= W
//   Source    van der Hoeven 2002, "Relax, but don't be too lazy" (relaxed multiplication); Oncescu et al. 2024,
//             arXiv:2410.12982 (for convolutional models)
//
// Few taps are summed directly (engine/convolution.hpp), from a ring of the last P inputs. Of more, pairs of an input and a
// later output are covered by tiles, each once. Those within a block of B tokens are summed directly when the output is due.
// After n tokens that end a block, let U be the largest power of two that divides n, at most P: the last U inputs give to
// the next U outputs what taps 1 .. 2 U - 1 make of them, by one transform of length U (engine/convolution_fft.hpp, with the
// tap at lag U + l put at lag l). Sums of the next P outputs keep what is to come, so inputs and sums are rings of P rows,
// however many tokens there are: O(log(W)^2) for a token and channel on average. A step that ends a block of P tokens takes
// O(P log P): this schedule is amortised. A balanced one gives a block's inputs to outputs that are a block away or more, and
// does it during the steps of the block between (engine/convolution_balanced.hpp): the longest step takes at most a few times
// the median one, all together up to twice and a half as long. Pieces of a sequence are as many steps in it.
//
// When n is divisible by U, all that comes before has been added to the sums of the next U outputs. So where the next U inputs
// are there at once, what they give to each other is one more transform, with taps 0 .. U - 1, instead of U steps; a piece of a
// sequence is cut into such tiles. A whole sequence that leaves no state is one transform, or one for every P tokens.
//
// Steps never look ahead. Over whole sequences, and pieces of 64 tokens and more in the amortised schedule, an output depends on
// later inputs of the same transform as said in engine/convolution_fft.hpp: by rounding errors relative to the largest outputs
// of its channel, and where one of them is not a number. Filters that are summed directly are exact.
//
// Microseconds of a step, 64 channels, as many taps as tokens, one core of an AMD Zen 3 (float; the least of several passes for
// every token; kernel/convolution/streaming and streaming_balanced):
//
//   tokens   schedule     mean   median   longest
//   4096     amortised    0.52     0.08       567
//            balanced     1.05     1.06       1.7
//   65536    amortised    1.15     0.08    23,000
//            balanced     2.8      2.8        5.7
#pragma once

#include <algorithm>
#include <bit>
#include <cassert>
#include <seqmix/core/error.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/convolution.hpp>
#include <seqmix/engine/convolution_balanced.hpp>
#include <seqmix/engine/convolution_fft.hpp>
#include <string_view>
#include <vector>

namespace seqmix::inline SEQMIX_ARCH {

/// When a convolution with a state does the work of its large tiles.
enum class StreamingSchedule {
  amortised,  ///< when their inputs are there: least time in all
  balanced    ///< spread evenly over the steps until their outputs are due: least time of the longest step
};

/// A causal convolution with its filters, by sums or by transforms, whichever takes less time.
template <std::floating_point T>
class StreamingConvolution {
 public:
  /// Most taps that are summed directly.
  static constexpr Index direct_taps = 32;

  /// No channels.
  StreamingConvolution() = default;

  /// filter [c H, W]: rows j H .. j H + H - 1 make the j-th outputs of all channels; any floating-point type, rounded to T.
  /// O(c H P log P) time; allocates 6 c P numbers for each channel, up to 6.5 c P for a balanced schedule. Throws std::invalid_argument, in the name of
  /// `operation`, where it has no taps or not a number of rows that `channels` divides.
  template <class Filter>
  StreamingConvolution(std::string_view operation, Index channels, const Filter& filter,
                       StreamingSchedule schedule = StreamingSchedule::amortised)
      : StreamingConvolution(operation, channels, Matrix<T>(filter.template cast<T>()), schedule) {}
  StreamingConvolution(std::string_view operation, Index channels, const Matrix<T>& filter,
                       StreamingSchedule schedule = StreamingSchedule::amortised)
      : channels_(channels),
        outputs_(channels > 0 ? filter.rows() / channels : 0),
        taps_(filter.cols()),
        schedule_(schedule) {
    expect(taps_ > 0, operation, "filter", "must have at least one column");
    expect_divides(operation, "channels", channels, "rows of the filter", filter.rows());
    period_ = std::max(block, Index(std::bit_ceil(std::size_t(taps_))));
    const Index near = direct() ? taps_ : balanced() ? 2 * block : block;
    near_.resize(std::size_t(near * outputs_ * padded()));
    for (Index lag = 0; lag < std::min(near, taps_); ++lag) {
      for (Index row = 0; row < filter.rows(); ++row) {
        near_[std::size_t((lag * outputs_ + row / channels) * padded() + row % channels)] = filter(row, lag);
      }
    }
    if (direct()) {
      direct_ = CausalConvolution<T>(operation, channels, filter);
      return;
    }
    const auto add = [&](std::vector<LongConvolution<T>>& to, Index tile, Index first) {
      to.emplace_back(channels, outputs_, tile, first == 0,
                      [&](Index row, Index lag) { return first + lag < taps_ ? filter(row, first + lag) : T(0); });
    };
    for (Index tile = least_whole; tile <= period_; tile *= 2) add(whole_, tile, 0);
    if (balanced()) {
      balanced_tiles_ =
          BalancedTiles<T>(channels, outputs_, taps_, [&](Index row, Index lag) { return filter(row, lag); });
      return;
    }
    for (Index tile = block; tile < period_; tile *= 2) add(tiles_, tile, tile);
  }

  Index channels() const { return channels_; }
  Index outputs() const { return outputs_ * channels_; }
  Index taps() const { return taps_; }

  /// Shape of a state: a ring of P rows, each an input and, unless taps are summed directly, what an output has received so far;
  /// in a balanced schedule a shorter ring, spectra of inputs and half-finished transforms, up to 2.1 times as much. Zeros before
  /// the first token; with the number of tokens seen this is all that the past matters.
  Shape state_shape() const {
    if (!balanced()) return {period_, pitch()};
    const Index size = ring() * pitch() + balanced_tiles_.size();
    return {size / std::max(padded(), Index(1)), padded()};
  }

  /// Convolves a whole sequence x [L, H] into y [L, c H], not overlapping. O(c L H log(min(L, W))) time on all threads of the
  /// workspace; allocates nothing once it is warm.
  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    assert(x.channels() == channels_ && y.channels() == outputs() && x.length() == y.length());
    const Index length = x.length();
    if (length == 0) return;
    if (direct()) return direct_.run({}, x, y, workspace);
    if (length <= period_) return whole(Index(std::bit_ceil(std::size_t(length)))).run(x, y, workspace);
    const auto frame = workspace.frame();
    const auto sums = workspace.sequence<T>(period_, outputs());
    for (Index t = 0; t < period_; ++t) std::fill_n(sums.row(t), outputs(), T(0));
    for (Index begin = 0; begin < length; begin += period_) {
      const Index rows = std::min(period_, length - begin);
      const auto from = x.rows(begin, rows);
      const auto to = y.rows(begin, rows);
      take_sums(sums.rows(0, rows).heads(outputs_), to);
      whole(period_).template convolve<true>(
          from, to.heads(outputs_), sums.rows(0, std::min(period_, length - begin - rows)).heads(outputs_), workspace);
    }
  }

  /// Convolves the next tokens x [L, H] into y [L, c H], not overlapping, from and into `state`, which `position` tokens have
  /// been seen by. On average O(c H log(W)^2) time for each token; those of a piece on all threads of the workspace, a step on
  /// this one. Allocates nothing once the workspace is warm; for steps it is after any call.
  void run(T* state, Index position, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    assert(x.channels() == channels_ && y.channels() == outputs() && x.length() == y.length());
    const Index length = x.length();
    if (length == 0) return;
    if (direct()) return run_direct(state, position, x, y, workspace);
    if (balanced()) return run_balanced(state, position, x, y, workspace);
    const bool alone = length < least_whole;
    whole_.back().reserve(workspace);
    for (Index t = 0; t < length;) {
      const Index slot = position % period_, aligned = slot == 0 ? period_ : slot & -slot;
      const Index tile = std::min(aligned, Index(std::bit_floor(std::size_t(length - t))));
      if (tile < least_whole) {
        step(state, slot, x.row(t), y.row(t), 0, channels_);
        ++t, ++position;
        if (position % block == 0) add_tile(state, position, workspace, alone);
        continue;
      }
      const auto from = x.rows(t, tile);
      const auto to = y.rows(t, tile);
      for (Index i = 0; i < tile; ++i) std::copy_n(from.row(i), channels_, inputs(state, slot + i));
      take_sums(sums(state, slot, tile), to);
      // The largest tile gives to the next as many outputs at once.
      whole(tile).template convolve<true>(from, to.heads(outputs_), sums(state, 0, tile == period_ ? tile : 0),
                                          workspace);
      t += tile, position += tile;
      if (tile < period_) add_tile(state, position, workspace, false);
    }
  }

 private:
  static constexpr Index width = lanes<T>;
  static constexpr Index block = BalancedTiles<T>::block, line = BalancedTiles<T>::line;
  static constexpr Index least_whole = 64;  // tokens that are transformed instead of stepped through

  bool direct() const { return taps_ <= direct_taps; }
  bool balanced() const { return !direct() && schedule_ == StreamingSchedule::balanced; }

  /// Rows of inputs that a state keeps.
  Index ring() const { return balanced() ? balanced_tiles_.ring() : period_; }

  /// Numbers of a row of inputs, or of one output of all channels: the same for every instruction set.
  Index padded() const {
    static_assert(line % width == 0);
    return (channels_ + line - 1) / line * line;
  }
  Index pitch() const { return padded() * (direct() ? 1 : 1 + outputs_); }

  T* inputs(T* state, Index slot) const { return state + slot * pitch(); }
  HeadSequence<T> sums(T* state, Index slot, Index rows) const {
    return {inputs(state, slot) + padded(), rows, outputs_, channels_, pitch(), padded()};
  }

  const LongConvolution<T>& whole(Index tile) const {
    return whole_[std::size_t(std::countr_zero(std::size_t(std::max(tile, least_whole) / least_whole)))];
  }

  /// y = sums, which are zeros from then on.
  void take_sums(const HeadSequence<T>& from, const Sequence<T>& y) const {
    for (Index t = 0; t < y.length(); ++t) {
      for (Index j = 0; j < outputs_; ++j) {
        std::copy_n(from.row(t, j), channels_, y.row(t) + j * channels_);
        std::fill_n(from.row(t, j), channels_, T(0));
      }
    }
  }

  /// The token of a slot, channels begin .. end - 1: the sums of its outputs, and what the inputs of its block and, in a balanced
  /// schedule, of the one before give; or all taps. Several registers of channels together: whole cache lines of rows that are
  /// far apart.
  void step(T* state, Index slot, const T* x, T* y, Index begin, Index end) const {
    constexpr Index most = 4;
    std::copy(x + begin, x + end, inputs(state, slot) + begin);
    for (Index j = 0; j < outputs_; ++j) {
      Index h = begin;
      for (; h + most * width <= end; h += most * width) step_channels<most>(state, slot, j, h, y);
      for (; h < end; h += width) step_channels<1>(state, slot, j, h, y);
    }
  }

  template <Index V>
  SEQMIX_ALWAYS_INLINE void step_channels(T* state, Index slot, Index j, Index h, T* y) const {
    const Index stride = pitch(), near = padded();
    const Index taps = direct() ? taps_ : slot % block + 1 + (balanced() ? block : 0),
                before = std::min(slot + 1, taps);
    const T* const tap = near_.data() + j * near + h;
    T* const input = inputs(state, slot) + h;
    T* const received = input + (1 + j) * near;
    T* const to = y + j * channels_ + h;
    Batch<T> sum[V];
    unroll<V>([&](auto v) SEQMIX_INLINE_LAMBDA { sum[v] = direct() ? broadcast(T(0)) : load(received + v * width); });
    const auto lags = [&](const T* from, Index lag, Index end) SEQMIX_INLINE_LAMBDA {
      for (; lag < end; ++lag) {
        unroll<V>([&](auto v) SEQMIX_INLINE_LAMBDA {
          sum[v] = fma(load(tap + lag * outputs_ * near + v * width), load(from - lag * stride + v * width), sum[v]);
        });
      }
    };
    lags(input, 0, before);
    lags(input + ring() * stride, before, taps);  // the ring's other end
    unroll<V>([&](auto v) SEQMIX_INLINE_LAMBDA {
      if (V > 1 || h + width <= channels_) {
        store(to + v * width, sum[v]);
      } else {
        store_partial(to, sum[v], channels_ - h);
      }
      if (!direct()) store(received + v * width, broadcast(T(0)));
    });
  }

  /// Pieces are as many steps, line after line of channels.
  void run_balanced(T* state, Index position, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index lines = padded() / line, length = x.length();
    T* const tiles = state + ring() * pitch();
    const HeadSequence<T> rows(state, ring(), 1 + outputs_, padded(), pitch(), padded());
    const auto run_lines = [&](Index begin, Index end) {
      for (Index t = 0; t < length;) {
        const Index now = position + t, count = std::min(length - t, block - now % block), slot = now % ring();
        for (Index i = 0; i < count; ++i) {
          step(state, slot + i, x.row(t + i), y.row(t + i), begin * line, std::min(end * line, channels_));
        }
        balanced_tiles_.advance(tiles, now, count, rows, begin, end);
        t += count;
      }
    };
    if (length == 1) return run_lines(0, lines);
    workspace.parallel_for(lines, [&](Index piece, Workspace&) { run_lines(piece, piece + 1); });
  }

  /// What the inputs of the tile that ends at `position` give to the outputs of the next.
  void add_tile(T* state, Index position, Workspace& workspace, bool alone) const {
    const Index end = position % period_ == 0 ? period_ : position % period_, tile = end & -end;
    const ConstSequence<T> from(inputs(state, end - tile), tile, channels_, pitch());
    if (tile == period_) return whole(tile).template convolve<true>(from, {}, sums(state, 0, tile), workspace, alone);
    tiles_[std::size_t(std::countr_zero(std::size_t(tile / block)))].template convolve<true>(
        from, sums(state, end, tile), {}, workspace, alone);
  }

  void run_direct(T* state, Index position, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index length = x.length();
    if (length < 8) {
      for (Index t = 0; t < length; ++t) step(state, (position + t) % period_, x.row(t), y.row(t), 0, channels_);
      return;
    }
    const auto frame = workspace.frame();
    const auto before = workspace.sequence<T>(taps_ - 1, channels_);
    for (Index i = 0; i < before.length(); ++i) {
      std::copy_n(inputs(state, (position - before.length() + i + period_) % period_), channels_, before.row(i));
    }
    direct_.run(before, x, y, workspace);
    for (Index t = std::max(Index(0), length - period_); t < length; ++t) {
      std::copy_n(x.row(t), channels_, inputs(state, (position + t) % period_));
    }
  }

  Index channels_ = 0, outputs_ = 0, taps_ = 0, period_ = 0;
  StreamingSchedule schedule_ = StreamingSchedule::amortised;
  Buffer<T> near_;                         // [B, 2 B, or all taps][c][padded channels]
  CausalConvolution<T> direct_;            // of few taps
  std::vector<LongConvolution<T>> tiles_;  // of B, 2 B .. P / 2 tokens: at lag l the tap at lag U + l
  std::vector<LongConvolution<T>> whole_;  // of 64, 128 .. P tokens: the taps themselves
  BalancedTiles<T> balanced_tiles_;        // instead of tiles_
};

}  // namespace seqmix::inline SEQMIX_ARCH
