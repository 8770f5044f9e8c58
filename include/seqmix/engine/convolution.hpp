// Causal depthwise convolution over time with filters of any length: every channel by itself.
//
//   y_t[j H + h] = sum over l < W of filter[j H + h][l] x_{t-l}[h]
//
//   Glossary  L length   H channels   c outputs of a channel   W taps
//
// The direct form: O(W) for each output. Channels lie in SIMD lanes; a register tile is several tokens by several taps, each
// input loaded once for all taps that meet it; tokens and taps are blocked so that a tile's inputs, taps and sums stay in the
// first-level cache. The inputs of a block of tokens are gathered first, so that strides of the caller's rows don't matter.
// Pieces of work are registers of channels by segments of time: few channels keep many threads busy too, and results do not
// depend on the number of threads. Taps beyond the first token are not looked at.
#pragma once

#include <algorithm>
#include <cassert>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/error.hpp>
#include <seqmix/core/tensor.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/simd/batch.hpp>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

/// A causal convolution with its filters.
template <std::floating_point T>
class CausalConvolution {
 public:
  /// No channels.
  CausalConvolution() = default;

  /// filter [c H, W]: rows j H .. j H + H - 1 make the j-th outputs of all channels; any floating-point type, rounded to T.
  /// Packs it; allocates. Throws std::invalid_argument, in the name of `operation`, where it has no taps or not a number of
  /// rows that `channels` divides.
  template <class Filter>
  CausalConvolution(std::string_view operation, Index channels, const Filter& filter)
      : channels_(channels), outputs_(channels > 0 ? filter.rows() / channels : 0), taps_(filter.cols()) {
    expect(taps_ > 0, operation, "filter", "must have at least one column");
    expect_divides(operation, "channels", channels, "rows of the filter", filter.rows());
    packed_.resize(std::size_t(outputs_ * vectors() * taps_ * width));  // [output][vector of channels][tap][lane]
    for (Index j = 0; j < outputs_; ++j) {
      for (Index h = 0; h < channels_; ++h) {
        T* const to = packed_.data() + (j * vectors() + h / width) * taps_ * width + h % width;
        for (Index l = 0; l < taps_; ++l) to[l * width] = T(filter(j * channels_ + h, l));
      }
    }
  }

  Index channels() const { return channels_; }
  Index outputs() const { return outputs_ * channels_; }
  Index taps() const { return taps_; }

  /// Convolves x [L, H] into y [L, c H], not overlapping. `history` [any number, H] are the rows before x, oldest first, of
  /// which the last W - 1 count; before those there are zeros. O(L min(L, W) c H) time on all threads of the workspace;
  /// allocates nothing once it is warm.
  void run(ConstSequence<T> history, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    assert(x.channels() == channels_ && y.channels() == outputs() && x.length() == y.length());
    assert(history.length() == 0 || history.channels() == channels_);
    if (x.length() == 0) return;
    const Index segments = (x.length() + segment_rows - 1) / segment_rows;
    workspace.parallel_for(vectors() * segments, [&](Index piece, Workspace& local) {
      const Index begin = piece % segments * segment_rows;
      run_segment(history, x, y, piece / segments, begin, std::min(segment_rows, x.length() - begin), local);
    });
  }

 private:
  static constexpr Index width = lanes<T>;
  static constexpr Index segment_rows = 1024, block_rows = 128, block_taps = 128;
  static constexpr Index tile_rows = 8, tile_taps = 4;

  Index vectors() const { return (channels_ + width - 1) / width; }

  /// Rows begin .. begin + rows - 1 of a register of channels.
  void run_segment(ConstSequence<T> history, ConstSequence<T> x, Sequence<T> y, Index v, Index begin, Index rows,
                   Workspace& local) const {
    constexpr Index margin = tile_rows - 1;  // zeros that the first tile meets
    const Index count = std::min(width, channels_ - v * width);
    const Index before = std::min(taps_ - 1, begin + history.length());
    T* const inputs = local.take<T>((margin + before + rows) * width).data();
    T* const sums = local.take<T>(block_rows * width).data();
    std::fill_n(inputs, margin * width, T(0));
    T* const first = inputs + (margin + before) * width;
    for (Index t = -before; t < rows; ++t) {
      const Index at = begin + t;
      const T* const from = (at >= 0 ? x.row(at) : history.row(history.length() + at)) + v * width;
      store(first + t * width, detail::load_some(from, count));
    }
    for (Index j = 0; j < outputs_; ++j) {
      const T* const filter = packed_.data() + (j * vectors() + v) * taps_ * width;
      for (Index block = 0; block < rows; block += block_rows) {
        const Index end = std::min(block + block_rows, rows);
        std::fill_n(sums, (end - block) * width, T(0));
        for (Index tap = 0; tap < std::min(taps_, end + before); tap += block_taps) {
          const auto some = [&](auto tile, Index t) SEQMIX_INLINE_LAMBDA {
            const Index last = std::min({taps_, tap + block_taps, t + tile + before});
            if (tap < last) {
              add<tile>(filter + tap * width, last - tap, first + (t - tap) * width, sums + (t - block) * width);
            }
          };
          Index t = block;
          for (; t + tile_rows <= end; t += tile_rows) some(std::integral_constant<Index, tile_rows>{}, t);
          for (; t < end; ++t) some(std::integral_constant<Index, 1>{}, t);
        }
        for (Index t = block; t < end; ++t) {
          detail::store_some(y.row(begin + t) + j * channels_ + v * width, load(sums + (t - block) * width), count);
        }
      }
    }
  }

  /// sums[r] += sum over l < taps of filter[l] x[r - l], for R rows.
  template <Index R>
  SEQMIX_ALWAYS_INLINE static void add(const T* filter, Index taps, const T* x, T* sums) {
    Batch<T> sum[R];
    unroll<R>([&](auto r) SEQMIX_INLINE_LAMBDA { sum[r] = load(sums + r * width); });
    const auto some = [&](auto J, Index tap) SEQMIX_INLINE_LAMBDA {
      const T* const from = x - (tap + J - 1) * width;
      Batch<T> weight[J];
      unroll<J>([&](auto j) SEQMIX_INLINE_LAMBDA { weight[j] = load(filter + (tap + j) * width); });
      unroll<R + J - 1>([&](auto i) SEQMIX_INLINE_LAMBDA {
        const Batch<T> input = load(from + i * width);
        unroll<J>([&](auto j) SEQMIX_INLINE_LAMBDA {
          constexpr Index row = i + j - (J - 1);
          if constexpr (row >= 0 && row < R) sum[row] = fma(weight[j], input, sum[row]);
        });
      });
    };
    Index tap = 0;
    for (; tap + tile_taps <= taps; tap += tile_taps) some(std::integral_constant<Index, tile_taps>{}, tap);
    for (; tap < taps; ++tap) some(std::integral_constant<Index, 1>{}, tap);
    unroll<R>([&](auto r) SEQMIX_INLINE_LAMBDA { store(sums + r * width, sum[r]); });
  }

  Index channels_ = 0, outputs_ = 0, taps_ = 0;
  Buffer<T> packed_;
};

/// Shifts the rows of x into `kept` [W, H], the last W rows of a sequence, oldest first.
template <class T>
void keep_last_rows(Tensor<T>& kept, ConstSequence<T> x) {
  const Index rows = kept.shape()[0], channels = kept.shape()[1];
  const Index old = std::max(rows - x.length(), Index(0));
  std::copy(kept.end() - old * channels, kept.end(), kept.begin());
  for (Index j = old; j < rows; ++j) std::copy_n(x.row(x.length() - rows + j), channels, kept.data() + j * channels);
}

}  // namespace seqmix::inline SEQMIX_ARCH
