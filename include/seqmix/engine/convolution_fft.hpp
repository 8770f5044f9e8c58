// Long depthwise convolution over time by Fourier transforms: every channel by itself, in O(L log L).
//
//   y_t[j H + h] = sum over s < L of filter[j H + h][t - s] x_s[h],   filters with taps at lags of either sign
//
//   Glossary  L length   H channels   c outputs of a channel   W taps   N length of the transforms, a power of two >= L
//
// Causal filters have no taps at negative lags; a circular convolution of period P is one whose tap at lag -l is that
// at P - l. All take the same time: one transform of N, a product with a spectrum that is prepared once, and one back
// (engine/fft.hpp). Filters of a few dozen taps are better summed directly. The error of all outputs of a channel is
// relative to the largest ones: 4 eps log2(N) of their root mean square.
#pragma once

#include <algorithm>
#include <cassert>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/error.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/fft.hpp>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

/// A convolution of sequences up to a length, with the spectra of its filters.
template <std::floating_point T>
class LongConvolution {
 public:
  /// No channels.
  LongConvolution() = default;

  /// The taps that `tap(row, lag)` gives, for rows 0 .. c H - 1 and |lag| < length; for lags >= 0 only if `causal`.
  /// O(c H N log N) time; allocates 2 N numbers for each row.
  template <class Tap>
  LongConvolution(Index channels, Index outputs, Index length, bool causal, const Tap& tap)
      : channels_(channels), outputs_(outputs), longest_(length), transform_(length) {
    const Index rows = transform_.length(), points = transform_.spectrum_size();
    spectra_.resize(std::size_t(outputs_ * vectors() * points));
    Buffer<T> taps(std::size_t(rows * width)), before(std::size_t(causal ? 0 : points));
    const auto side = [&](Index j, Index v, Index shift, T* spectrum) {
      for (Index i = 0; i < rows; ++i) {
        const Index lag = i - shift;
        for (Index lane = 0; lane < width; ++lane) {
          const bool present = lane < lanes_of(v) && lag < length && lag > -length;
          taps[std::size_t(i * width + lane)] = present ? T(tap(j * channels_ + v * width + lane, lag)) : T(0);
        }
      }
      transform_.forward({taps.data(), rows, width}, spectrum);
    };
    for (Index j = 0; j < outputs_; ++j) {
      for (Index v = 0; v < vectors(); ++v) {
        T* const spectrum = spectra_.data() + (j * vectors() + v) * points;
        side(j, v, 0, spectrum);
        if (!causal) side(j, v, rows, before.data());
        transform_.combine(spectrum, causal ? nullptr : before.data());
      }
    }
  }

  /// filter [c H, W]: rows j H .. j H + H - 1 make the j-th outputs of all channels,
  /// y_t = sum over l < W of filter[l] x_{t-l}; any floating-point type, rounded to T. Taps from `length` on meet no
  /// token and are not looked at. Throws std::invalid_argument, in the name of `operation`, where it has no taps or not a
  /// number of rows that `channels` divides; so do the others.
  template <class Filter>
  static LongConvolution causal(std::string_view operation, Index channels, Index length, const Filter& filter) {
    const Index taps = filter.cols();
    return {channels, outputs_of(operation, channels, filter), length, true,
            [&](Index row, Index lag) { return lag < taps ? T(filter(row, lag)) : T(0); }};
  }

  /// Taps for what comes later too: y_t = sum over l < W of filter[l] x_{t-l} + sum over l < W' of later[l] x_{t+1+l}.
  template <class Filter, class Later>
  static LongConvolution bidirectional(std::string_view operation, Index channels, Index length, const Filter& filter,
                                       const Later& later) {
    const Index outputs = outputs_of(operation, channels, filter);
    expect_shape(operation, "later", {filter.rows(), later.cols()}, later);
    return {channels, outputs, length, false, [&](Index row, Index lag) {
              if (lag >= 0) return lag < filter.cols() ? T(filter(row, lag)) : T(0);
              return -1 - lag < later.cols() ? T(later(row, -1 - lag)) : T(0);
            }};
  }

  /// Circular, of period P = W: y_t = sum over s of filter[(t - s) mod P] x_s. Sequences may be shorter than that.
  template <class Filter>
  static LongConvolution circular(std::string_view operation, Index channels, const Filter& filter) {
    const Index period = filter.cols();
    return {channels, outputs_of(operation, channels, filter), period, false,
            [&](Index row, Index lag) { return T(filter(row, lag < 0 ? lag + period : lag)); }};
  }

  Index channels() const { return channels_; }
  Index outputs() const { return outputs_ * channels_; }

  /// The longest sequence.
  Index length() const { return longest_; }

  /// Convolves x [L, H] into y [L', c H], for L and L' up to length(): x is followed by zeros. x and y may not overlap.
  /// O(c H N log N) time on all threads of the workspace; allocates nothing once it is warm.
  void run(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const { convolve<false>(x, y, workspace); }

  /// The same, added to what y holds.
  void add(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const { convolve<true>(x, y, workspace); }

  /// Makes the workspace warm for whatever sequences on the serial executor.
  void reserve(Workspace& workspace) const {
    const auto frame = workspace.frame();
    workspace.take<T>(transform_.spectrum_size());
    workspace.take<T>(longest_ * width);
  }

 private:
  static constexpr Index width = lanes<T>;

  Index vectors() const { return (channels_ + width - 1) / width; }
  Index lanes_of(Index v) const { return std::min(width, channels_ - v * width); }

  template <bool add>
  void convolve(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    assert(x.channels() == channels_ && y.channels() == outputs());
    assert(x.length() <= longest_ && y.length() <= longest_);
    if (y.length() == 0) return;
    workspace.parallel_for(outputs_ * vectors(), [&](Index piece, Workspace& local) {
      const Index j = piece / vectors(), v = piece % vectors(), count = lanes_of(v);
      const T* const spectrum = spectra_.data() + piece * transform_.spectrum_size();
      T* const points = local.take<T>(transform_.spectrum_size()).data();
      const T* const from = x.data() + v * width;
      T* const to = y.data() + j * channels_ + v * width;
      if (count == width) {
        transform_.template convolve<add>({from, x.length(), x.stride()}, spectrum, {to, y.length(), y.stride()},
                                          points);
        return;
      }
      // Registers that the channels don't fill: whole rows in scratch.
      T* const rows = local.take<T>(std::max(x.length(), y.length()) * width).data();
      for (Index t = 0; t < x.length(); ++t) store(rows + t * width, load_partial(from + t * x.stride(), count));
      transform_.convolve({rows, x.length(), width}, spectrum, {rows, y.length(), width}, points);
      for (Index t = 0; t < y.length(); ++t) {
        T* const row = to + t * y.stride();
        const Batch<T> sum = load(rows + t * width);
        store_partial(row, add ? load_partial(row, count) + sum : sum, count);
      }
    });
  }

  template <class Filter>
  static Index outputs_of(std::string_view operation, Index channels, const Filter& filter) {
    expect(filter.cols() > 0, operation, "filter", "must have at least one column");
    expect_divides(operation, "channels", channels, "rows of the filter", filter.rows());
    return channels > 0 ? filter.rows() / channels : 0;
  }

  Index channels_ = 0, outputs_ = 0, longest_ = 0;
  RightAngleTransform<T> transform_;
  Buffer<T> spectra_;  // [output][vector of channels][N][2][lane]
};

}  // namespace seqmix::inline SEQMIX_ARCH
