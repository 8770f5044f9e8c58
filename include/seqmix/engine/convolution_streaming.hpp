// Causal convolution with long filters, one token at a time: exact, in O(log(W)^2) for a token and channel on average.
//
//   y_t[h] = sum over l < W of filter[h][l] x_{t-l}[h]
//
//   Glossary  H channels   W taps   B tokens of a block   U tokens of a tile: B, 2 B, 4 B .. P, the first >= W - 1
//   Source    van der Hoeven 2002, "Relax, but don't be too lazy" (relaxed multiplication); Oncescu et al. 2024,
//             arXiv:2410.12982 (for convolutional models)
//
// Pairs of an input and a later output are covered by tiles, each once. Those within a block of B tokens are summed
// directly when the output is due. After n tokens that end a block, let U be the largest power of two that divides n,
// at most P: the last U inputs give to the next U outputs what taps 1 .. 2 U - 1 make of them, by one transform of
// length U (engine/convolution_fft.hpp, with the tap at lag U + l put at lag l). Sums of the next P outputs keep what is
// to come, so inputs and sums are rings of P rows, however many tokens there are. A step that ends a block of P tokens
// takes O(P log P): the schedule is amortised, without a deadline.
#pragma once

#include <algorithm>
#include <bit>
#include <cassert>
#include <seqmix/core/error.hpp>
#include <seqmix/core/tensor.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/convolution_fft.hpp>
#include <string_view>
#include <vector>

namespace seqmix::inline SEQMIX_ARCH {

/// A causal convolution that is fed token by token, with its filters.
template <std::floating_point T>
class StreamingConvolution {
 public:
  /// What was seen so far. A copy continues by itself.
  struct State {
    Index position = 0;  // tokens seen
    Tensor<T> inputs;    // [P, H, padded to whole cache lines]: input s in row s mod P
    Tensor<T> sums;      // the same: in row t mod P what output t has received so far, for the next P of them
  };

  /// No channels.
  StreamingConvolution() = default;

  /// filter [H, W], of any floating-point type, rounded to T. O(H P log P) time; allocates 4 P numbers for each
  /// channel. Throws std::invalid_argument, in the name of `operation`, where it has no taps or no rows.
  template <class Filter>
  StreamingConvolution(std::string_view operation, const Filter& filter) : channels_(filter.rows()) {
    const Index taps = filter.cols();
    expect(taps > 0, operation, "filter", "must have at least one column");
    expect(channels_ > 0, operation, "filter", "must have at least one row");
    period_ = std::max(block, Index(std::bit_ceil(std::size_t(taps - 1))));
    const auto tap = [&](Index row, Index lag) { return lag < taps ? T(filter(row, lag)) : T(0); };
    near_.resize(std::size_t(block * padded()));
    for (Index lag = 0; lag < block; ++lag) {
      for (Index h = 0; h < channels_; ++h) near_[std::size_t(lag * padded() + h)] = tap(h, lag);
    }
    for (Index tile = block; tile <= period_; tile *= 2) {
      tiles_.emplace_back(channels_, 1, tile, false, [&](Index row, Index lag) { return tap(row, tile + lag); });
    }
  }

  Index channels() const { return channels_; }

  /// Before the first token.
  State initial_state() const { return {0, Tensor<T>({period_, padded()}), Tensor<T>({period_, padded()})}; }

  /// Convolves the next tokens x [L, H] into y [L, H], not overlapping: to the same bits, however they are cut. On
  /// average O(H log(W)^2) time for each token, tiles on all threads of the workspace. Allocates nothing once this is
  /// warm, which on the serial executor it is after any call.
  void run(State& state, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    assert(x.channels() == channels_ && y.channels() == channels_ && x.length() == y.length());
    if (x.length() == 0) return;
    tiles_.back().reserve(workspace);
    for (Index t = 0; t < x.length(); ++t) step(state, x.row(t), y.row(t), workspace);
  }

 private:
  static constexpr Index width = lanes<T>;
  static constexpr Index block = 32;

  /// Numbers of a row: the same for every instruction set.
  Index padded() const {
    constexpr Index line = Index(memory_alignment / sizeof(T));
    static_assert(line % width == 0);
    return (channels_ + line - 1) / line * line;
  }

  void step(State& state, const T* x, T* y, Workspace& workspace) const {
    const Index slot = state.position % period_, before = slot % block, stride = padded();
    T* const input = state.inputs.data() + slot * stride;
    T* const sum = state.sums.data() + slot * stride;
    std::copy_n(x, channels_, input);
    for (Index h = 0; h < channels_; h += width) {
      Batch<T> part[4] = {load(sum + h), Batch<T>(T(0)), Batch<T>(T(0)), Batch<T>(T(0))};
      const T* const tap = near_.data() + h;
      const T* const from = input + h;
      const auto some = [&](auto i, Index lag) SEQMIX_INLINE_LAMBDA {
        part[i] = fma(load(tap + lag * stride), load(from - lag * stride), part[i]);
      };
      Index lag = 0;
      for (; lag + 4 <= before + 1; lag += 4) unroll<4>([&](auto i) SEQMIX_INLINE_LAMBDA { some(i, lag + i); });
      for (; lag <= before; ++lag) some(std::integral_constant<Index, 0>{}, lag);
      store(sum + h, (part[0] + part[1]) + (part[2] + part[3]));
    }
    std::copy_n(sum, channels_, y);
    std::fill_n(sum, stride, T(0));
    ++state.position;
    if (before == block - 1) add_tile(state, workspace);
  }

  /// What the inputs of the tile that ends here give to the outputs of the next.
  void add_tile(State& state, Workspace& workspace) const {
    const Index end = state.position % period_ == 0 ? period_ : state.position % period_;
    const Index tile = end & -end, stride = padded();
    const ConstSequence<T> from(state.inputs.data() + (end - tile) * stride, tile, channels_, stride);
    const Sequence<T> to(state.sums.data() + end % period_ * stride, tile, channels_, stride);
    tiles_[std::size_t(std::countr_zero(std::size_t(tile / block)))].add(from, to, workspace);
  }

  Index channels_ = 0, period_ = 0;
  Buffer<T> near_;                         // [B][padded channels]
  std::vector<LongConvolution<T>> tiles_;  // of B, 2 B .. P tokens: at lag l the tap at lag U + l
};

}  // namespace seqmix::inline SEQMIX_ARCH
