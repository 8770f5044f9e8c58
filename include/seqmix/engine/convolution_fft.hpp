// Long depthwise convolution over time by Fourier transforms: every channel by itself, in O(L log L).
//
//   y_t[j H + h] = sum over s < L of filter[j H + h][t - s] x_s[h],   filters with taps at lags of either sign
//
//   Glossary  L length   H channels   c outputs of a channel   W taps   N length of the transforms, a power of two >= L
//
// Causal filters have no taps at negative lags; a circular convolution of period P is one whose tap at lag -l is that
// at P - l. All take the same time: one transform of N, a product with a spectrum that is prepared once, and one back
// (engine/fft.hpp). Filters of a few dozen taps are better summed directly.
//
// The error of all outputs of a channel is relative to the largest ones: 4 eps log2(N) of their root mean square. So where a
// causal filter is meant, outputs do depend on later inputs, by such a rounding error; an input that is not a number, or that
// overflows, leaves no number in the outputs of its channel, those before it included.
#pragma once

#include <algorithm>
#include <cassert>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/error.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/fft.hpp>
#include <string_view>
#include <vector>

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
  void run(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    if (y.length() > 0) convolve<false>(x, y.heads(outputs_), {}, workspace);
  }

  /// The same in parts: y [L', c, H], which is added to if `add`; to rest [L'', c, H], up to N rows, is added what a causal
  /// filter gives to outputs N, N + 1 .. ; either may be of length 0. On this thread alone if `alone`.
  template <bool add>
  void convolve(ConstSequence<T> x, HeadSequence<T> y, HeadSequence<T> rest, Workspace& workspace,
                bool alone = false) const {
    assert(x.channels() == channels_ && x.length() <= longest_ && y.length() <= longest_);
    const Index group = registers_together(alone ? 1 : workspace.concurrency()),
                groups = (vectors() + group - 1) / group;
    const auto body = [&](Index piece, Workspace& local) {
      const Index j = piece / groups, first = piece % groups * group, last = std::min(first + group, vectors());
      if (!gathers() && lanes_of(first) == width) {
        T* const points = local.take<T>(transform_.spectrum_size()).data();
        transform_.multiply({x.data() + first * width, x.length(), x.stride()}, spectrum(j, first), points);
        if (y.length() > 0) {
          transform_.template write<add>(points, {y.row(0, j) + first * width, y.length(), y.row_stride()});
        }
        if (rest.length() > 0) {
          transform_.write_rest(points, {rest.row(0, j) + first * width, rest.length(), rest.row_stride()});
        }
      } else {
        convolve_group<add>(x, y, rest, j, first, last, local);
      }
    };
    if (!alone) return workspace.parallel_for(outputs_ * groups, body);
    for (Index piece = 0; piece < outputs_ * groups; ++piece) {
      const auto frame = workspace.frame();
      body(piece, workspace);
    }
  }

  /// Makes the workspace warm for whatever sequences on one thread.
  void reserve(Workspace& workspace) const {
    const auto frame = workspace.frame();
    workspace.take<T>(transform_.spectrum_size());
    for (int rows = 0; rows < 2; ++rows) workspace.take<T>(registers_together(1) * pitch());
  }

 private:
  static constexpr Index width = lanes<T>;

  Index vectors() const { return (channels_ + width - 1) / width; }
  Index lanes_of(Index v) const { return std::min(width, channels_ - v * width); }
  /// Rows lie far apart: several registers of each are gathered at once, where there are many that do not stay in a cache. Whole
  /// lines of several rows are then on their way from memory at a time.
  bool gathers() const { return vectors() >= 16 && transform_.length() >= 1024; }
  /// Four cache lines of a row took a tenth to a third less time than one register, for 768 channels and 1024 tokens and more.
  Index registers_together(Index threads) const {
    constexpr Index most = 4 * Index(memory_alignment / sizeof(T)) / width;
    return gathers() ? std::clamp(outputs_ * vectors() / threads, Index(1), most) : 1;
  }
  /// From one register's scratch rows to the next: not a multiple of what a set of the first-level cache repeats after.
  Index pitch() const { return transform_.length() * width + Index(memory_alignment / sizeof(T)); }
  const T* spectrum(Index j, Index v) const {
    return spectra_.data() + (j * vectors() + v) * transform_.spectrum_size();
  }

  /// Registers first .. last - 1 of channels of output j, through scratch rows. The last one may be partly filled.
  template <bool add>
  void convolve_group(const Sequence<const T>& x, const HeadSequence<T>& y, const HeadSequence<T>& rest, Index j,
                      Index first, Index last, Workspace& local) const {
    constexpr Index ahead = 8;  // rows that are fetched before their turn
    const Index step = pitch(), begin = first * width;
    const Index count = std::min(last * width, channels_) - begin, whole = count / width;
    T* const points = local.take<T>(transform_.spectrum_size()).data();
    T* const rows = local.take<T>((last - first) * step).data();
    const auto fetch = [&](auto* row, const auto& line) SEQMIX_INLINE_LAMBDA {
      for (Index i = 0; i < count; i += Index(memory_alignment / sizeof(T))) line(row + i);
    };
    for (Index t = 0; t < x.length(); ++t) {
      const T* const from = x.row(t) + begin;
      if (t + ahead < x.length()) fetch(from + ahead * x.stride(), prefetch_read);
      T* const to = rows + t * width;
      for (Index g = 0; g < whole; ++g) store(to + g * step, load(from + g * width));
      if (count > whole * width) store(to + whole * step, load_partial(from + whole * width, count - whole * width));
    }
    const auto scatter = [&](const T* source, const HeadSequence<T>& target, bool adds) {
      for (Index t = 0; t < target.length(); ++t) {
        T* const to = target.row(t, j) + begin;
        if (t + ahead < target.length()) fetch(to + ahead * target.row_stride(), prefetch_write);
        for (Index g = 0; g < whole; ++g) {
          const Batch<T> sum = load(source + g * step + t * width);
          store(to + g * width, adds ? load(to + g * width) + sum : sum);
        }
        if (const Index some = count - whole * width; some > 0) {
          const Batch<T> sum = load(source + whole * step + t * width);
          store_partial(to + whole * width, adds ? load_partial(to + whole * width, some) + sum : sum, some);
        }
      }
    };
    T* const rests = rest.length() > 0 ? local.take<T>((last - first) * step).data() : nullptr;
    for (Index v = first; v < last; ++v) {
      T* const own = rows + (v - first) * step;
      transform_.multiply({own, x.length(), width}, spectrum(j, v), points);
      transform_.write(points, {own, y.length(), width});
      if (rests == nullptr) continue;
      std::fill_n(rests + (v - first) * step, rest.length() * width, T(0));
      transform_.write_rest(points, {rests + (v - first) * step, rest.length(), width});
    }
    scatter(rows, y, add);
    if (rests != nullptr) scatter(rests, rest, true);
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

/// Convolutions whose filters are used once: their spectra are made on the way, which takes as long again.
template <std::floating_point T>
class OneTimeConvolution {
 public:
  OneTimeConvolution() = default;

  /// For sequences up to `longest` rows. O(longest) time and memory; allocates.
  explicit OneTimeConvolution(Index longest) {
    Index rows = 0;
    do {
      transforms_.emplace_back(rows + 1);
      rows = transforms_.back().length();
    } while (rows < longest);
  }

  /// x [L, H] into y [L, c H], not overlapping: y_t[j H + h] = sum over s < L of taps(t - s)[j H + h] x_s[h], where taps(lag),
  /// |lag| < L, points to c H numbers, or is null: zeros. O(c H L log L) time on all threads of the workspace; allocates
  /// nothing once it is warm.
  template <class Taps>
  void run(Index outputs, const Taps& taps, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index length = x.length(), channels = x.channels(), vectors = (channels + width - 1) / width;
    assert(y.length() == length && y.channels() == outputs * channels);
    std::size_t which = 0;
    while (transforms_[which].length() < length) ++which;
    const RightAngleTransform<T>& transform = transforms_[which];
    const Index rows = transform.length();
    workspace.parallel_for(outputs * vectors, [&](Index piece, Workspace& local) {
      const Index v = piece % vectors, count = std::min(width, channels - v * width);
      const Index column = piece / vectors * channels + v * width;
      T* const lanes_of_rows = local.take<T>(rows * width).data();
      T* const spectrum = local.take<T>(transform.spectrum_size()).data();
      T* const points = local.take<T>(transform.spectrum_size()).data();
      const auto gather = [&](const auto& row) {
        for (Index i = 0; i < rows; ++i) {
          const T* const from = row(i);
          store(lanes_of_rows + i * width, from == nullptr ? broadcast(T(0)) : detail::load_some(from, count));
        }
        return LaneRows<const T>{lanes_of_rows, rows, width};
      };
      const auto taps_at = [&](Index lag) -> const T* {
        const T* const row = lag < length && lag > -length ? taps(lag) : nullptr;
        return row == nullptr ? nullptr : row + column;
      };
      transform.forward(gather([&](Index i) { return taps_at(i); }), spectrum);
      transform.forward(gather([&](Index i) { return i == 0 ? nullptr : taps_at(i - rows); }), points);
      transform.combine(spectrum, points);
      transform.multiply(gather([&](Index i) { return i < length ? x.row(i) + v * width : nullptr; }), spectrum,
                         points);
      transform.write(points, {lanes_of_rows, length, width});
      for (Index t = 0; t < length; ++t) store_partial(y.row(t) + column, load(lanes_of_rows + t * width), count);
    });
  }

 private:
  static constexpr Index width = lanes<T>;

  std::vector<RightAngleTransform<T>> transforms_;  // of 16, 32 .. rows
};

}  // namespace seqmix::inline SEQMIX_ARCH
