// The Fourier transform behind long convolutions: real sequences of many channels, which lie in SIMD lanes.
//
//   X[k] = sum over n < N of x[n] e^{i pi n / 2N} e^{-2 pi i k n / N},   N a power of two
//
//   Glossary  N length of a transform   W channels of a row   point: W real parts, then W imaginary ones
//   Source    weights: Crandall and Fagin 1994, "Discrete weighted transforms and large-integer arithmetic"; order of
//             the passes: Gentleman and Sande 1966; depth first: Frigo et al. 1999, "Cache-oblivious algorithms"
//
// The weights e^{i pi n / 2N} make a transform of length N do what one of length 2N does for an input padded with
// zeros: what a product of two spectra carries past the end comes back times i. So N real numbers in and out cost one
// complex transform of N, none of whose points is zero, and no pairing of conjugates ("right-angle convolution").
//
// Forward is decimation in frequency, inverse decimation in time, so spectra stay in the order that the former leaves
// (`frequency` says which) and nothing is ever reordered. The first pass reads real rows where they are and has the
// weights merged into its twiddle factors; the last writes real rows. Between them passes go depth first, and the
// product with a spectrum is taken at the bottom, in registers: what fits a level of cache is loaded into it once.
#pragma once

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <numbers>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/simd/batch.hpp>
#include <type_traits>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// One complex number for each lane.
template <class T>
struct Point {
  Batch<T> real, imag;

  friend SEQMIX_ALWAYS_INLINE Point operator+(Point a, Point b) { return {a.real + b.real, a.imag + b.imag}; }
  friend SEQMIX_ALWAYS_INLINE Point operator-(Point a, Point b) { return {a.real - b.real, a.imag - b.imag}; }
  /// this + i b, this - i b.
  SEQMIX_ALWAYS_INLINE Point plus_i(Point b) const { return {real - b.imag, imag + b.real}; }
  SEQMIX_ALWAYS_INLINE Point minus_i(Point b) const { return {real + b.imag, imag - b.real}; }
  /// Times w, times its conjugate.
  SEQMIX_ALWAYS_INLINE Point times(Point w) const {
    return {fms(real, w.real, imag * w.imag), fma(real, w.imag, imag * w.real)};
  }
  SEQMIX_ALWAYS_INLINE Point times_conjugate(Point w) const {
    return {fma(real, w.real, imag * w.imag), fms(imag, w.real, real * w.imag)};
  }
  /// The same number in all lanes.
  static SEQMIX_ALWAYS_INLINE Point broadcast_of(const T* w) { return {Batch<T>(w[0]), Batch<T>(w[1])}; }
};

/// Four points become their transform: a[k] = sum over q of a[q] (-i)^{k q}, or i^{k q} if inverse.
template <bool inverse, class T>
SEQMIX_ALWAYS_INLINE void transform_four(Point<T> (&a)[4]) {
  const Point<T> even = a[0] + a[2], even_difference = a[0] - a[2], odd = a[1] + a[3], odd_difference = a[1] - a[3];
  a[0] = even + odd;
  a[2] = even - odd;
  a[inverse ? 3 : 1] = even_difference.minus_i(odd_difference);
  a[inverse ? 1 : 3] = even_difference.plus_i(odd_difference);
}

}  // namespace detail

/// Rows of W numbers that a transform reads or writes: `count` of them, `stride` elements apart.
template <class T>
struct LaneRows {
  T* data;
  Index count, stride;
};

/// The transform of a length, with its twiddle factors. Rows beyond those given are zeros, or not written. Rows are W numbers
/// wide, one register of them or several.
///
/// Error of a spectrum, and of a convolution: at most 4 eps log2(N) of its norm.
template <std::floating_point T, Index W = lanes<T>>
class RightAngleTransform {
 public:
  static constexpr Index width = W;
  static constexpr Index shortest = 16;
  static_assert(W % lanes<T> == 0);

  /// Length 0; nothing may be called.
  RightAngleTransform() = default;

  /// For at least `rows` rows: the next power of two, at least 16. Of rows of several registers only the first `used` numbers
  /// are looked at. Allocates; O(N) time and memory.
  explicit RightAngleTransform(Index rows, Index used = W) : length_(padded_length(rows)), used_(used) {
    const auto put = [](T* to, double angle) {
      to[0] = T(std::cos(angle));
      to[1] = T(std::sin(angle));
    };
    const Index quarter = length_ / 4;
    outer_.resize(std::size_t(8 * quarter));
    for (Index j = 0; j < quarter; ++j) {
      for (Index k = 0; k < 4; ++k) {
        put(outer_.data() + 8 * j + 2 * k, pi * (0.5 - 2 * double(k)) * double(j) / double(length_));
      }
    }
    for (Index n = quarter; n >= 16; n /= 4) {
      const std::size_t begin = inner_.size();
      inner_.resize(begin + std::size_t(6 * (n / 4)));
      for (Index j = 0; j < n / 4; ++j) {
        for (Index k = 1; k < 4; ++k) {
          put(inner_.data() + begin + 6 * j + 2 * (k - 1), -2 * pi * double(k * j) / double(n));
        }
      }
    }
  }

  /// The length that a transform for `rows` rows has.
  static Index padded_length(Index rows) {
    return std::max(shortest, Index(std::bit_ceil(static_cast<std::size_t>(std::max(rows, Index(1))))));
  }

  Index length() const { return length_; }

  /// Numbers of a spectrum: N points.
  Index spectrum_size() const { return 2 * width * length_; }

  /// The k that a place of a spectrum, 0 .. N - 1, belongs to.
  Index frequency(Index place) const {
    Index k = 0, factor = 1;
    for (Index n = length_; n > 1;) {
      const Index radix = n == 8 ? 2 : 4;
      n /= radix;
      k += factor * (place / n);
      factor *= radix;
      place %= n;
    }
    return k;
  }

  /// x [any number up to N, W] to its spectrum [N, 2, W]. O(N log N) time, allocates nothing.
  void forward(LaneRows<const T> x, T* spectrum) const {
    const Index quarter = length_ / 4;
    read_rows(x, spectrum, 0, quarter);
    for (Index q = 0; q < 4; ++q) {
      descend(spectrum + q * quarter * point, quarter, inner_.data(), q * quarter, NoProduct{});
    }
  }

  /// To `points` [N, 2, W] what `write` and `write_rest` read: the product of the transform of x and a filter's spectrum by
  /// `combine`, all but the last pass of its inverse. O(N log N) time, allocates nothing.
  void multiply(LaneRows<const T> x, const T* spectrum, T* points) const {
    const Index quarter = length_ / 4;
    const auto product = [&](Point(&a)[4], Index place, Index h) SEQMIX_INLINE_LAMBDA {
      unroll<4>([&](auto q) SEQMIX_INLINE_LAMBDA { a[q] = a[q].times(at(spectrum + (place + q) * point + h)); });
    };
    read_rows(x, points, 0, quarter);
    for (Index q = 0; q < 4; ++q) {
      descend(points + q * quarter * point, quarter, inner_.data(), q * quarter, product);
    }
  }

  /// y[n] becomes, or if `add` grows by, the sum over l of filter[n - l] x[l]. y may be the rows that x was. O(N) time.
  template <bool add = false>
  void write(const T* points, LaneRows<T> y) const {
    write_rows<add, false>(points, y, 0, length_ / 4);
  }

  /// What a causal filter carries past the end: rest[n] grows by the sum over l of filter[N + n - l] x[l]. O(N) time.
  void write_rest(const T* points, LaneRows<T> rest) const { write_rows<true, true>(points, rest, 0, length_ / 4); }

  /// The number of parts of convolve_part, each about a butterfly, where four points of a product take as long as `product`.
  Index part_count(Index product) const { return length_ / 2 + 4 * part_count(length_ / 4, product); }

  /// Parts begin .. end - 1 of a convolution of x, N rows, that is added to y, N rows: the transform, to `points` [N, 2, W], a
  /// product, and the inverse. Done in order, in whatever portions, they are the whole; until then x and the points must stay.
  /// product(a, place, h) takes four points of the spectrum from `place` on, a register of each from number h on, and puts
  /// others in their place. O(log N) time and in proportion to the parts; allocates nothing.
  template <class Product>
  void convolve_part(LaneRows<const T> x, T* points, Index count, const Product& product, LaneRows<T> y, Index begin,
                     Index end) const {
    assert(x.count == length_ && y.count == length_ && 0 <= begin && end <= count);
    const Index quarter = length_ / 4, each = (count - length_ / 2) / 4, last = count - quarter;
    if (begin < quarter) read_rows(x, points, begin, std::min(end, quarter));
    for (Index q = 0; q < 4; ++q) {
      const Index first = quarter + q * each;
      descend_part(points + q * quarter * point, quarter, inner_.data(), q * quarter, product, each, begin - first,
                   end - first);
    }
    if (end > last) write_rows<true, false>(points, y, std::max(begin - last, Index(0)), end - last);
  }

  /// Makes the spectrum of a filter, over N, from the transforms of its two sides: `spectrum` is the transform of the
  /// taps at lags n = 0 .. N - 1; `before`, unless null, that of the taps at lags n - N in place n, and 0 in place 0.
  /// (A step of N in time is a factor i, so a tap at lag n - N is -i times one at lag n.)
  void combine(T* spectrum, const T* before) const {
    const Batch<T> scale(T(1) / T(length_));
    for (Index n = 0; n < length_; ++n) {
      for_registers([&](Index h) SEQMIX_INLINE_LAMBDA {
        Point to = at(spectrum + n * point + h);
        if (before != nullptr) to = to.minus_i(at(before + n * point + h));
        put({to.real * scale, to.imag * scale}, spectrum + n * point + h);
      });
    }
  }

 private:
  using Point = detail::Point<T>;
  static constexpr Index point = 2 * width;
  static constexpr double pi = std::numbers::pi;
  struct NoProduct {};
  // The weights of the quarters of a sequence are e^{i pi q / 8}.
  static constexpr T cosine = T(0.92387953251128675613), sine = T(0.38268343236508977173);
  static constexpr T diagonal = T(0.70710678118654752440);

  static SEQMIX_ALWAYS_INLINE Point at(const T* source) { return {load(source), load(source + width)}; }
  static SEQMIX_ALWAYS_INLINE void put(Point value, T* destination) {
    store(destination, value.real);
    store(destination + width, value.imag);
  }

  /// body(h) for the registers of a row.
  template <class Body>
  SEQMIX_ALWAYS_INLINE void for_registers(const Body& body) const {
    if constexpr (width == lanes<T>) {
      body(Index(0));
    } else {
      for (Index h = 0; h < used_; h += lanes<T>) body(h);
    }
  }

  /// Calls body(begin, end, rows, strides) for ranges of begin .. end - 1, of 0 .. N/4 - 1, in which the same quarters of the rows
  /// exist: rows[q] is the first row of quarter q, or `none` with stride 0.
  template <class Number, class Body>
  SEQMIX_ALWAYS_INLINE void for_quarters(LaneRows<Number> rows, Number* none, Index begin, Index end,
                                         const Body& body) const {
    assert(rows.count >= 0 && rows.count <= length_);
    const Index quarter = length_ / 4, whole = rows.count / quarter, rest = rows.count % quarter;
    const auto range = [&](Index first, Index last, Index present) SEQMIX_INLINE_LAMBDA {
      Number* row[4];
      Index stride[4];
      for (Index q = 0; q < 4; ++q) {
        row[q] = q < present ? rows.data + q * quarter * rows.stride : none;
        stride[q] = q < present ? rows.stride : 0;
      }
      body(first, last, row, stride);
    };
    if (begin < rest) range(begin, std::min(rest, end), whole + 1);
    range(std::max(begin, rest), end, whole);
  }

  /// Butterflies from .. until - 1 of the first pass: real rows, times their weights, to points.
  void read_rows(LaneRows<const T> x, T* points, Index from, Index until) const {
    alignas(memory_alignment) static constexpr T zeros[width] = {};
    const Index step = length_ / 4 * point;
    const Batch<T> c(cosine), s(sine), d(diagonal);
    const auto some = [&](Index begin, Index end, auto& row, auto& stride) SEQMIX_INLINE_LAMBDA {
      for (Index j = begin; j < end; ++j) {
        for_registers([&](Index h) SEQMIX_INLINE_LAMBDA {
          Batch<T> in[4];
          unroll<4>([&](auto q) SEQMIX_INLINE_LAMBDA { in[q] = load(row[q] + j * stride[q] + h); });
          // What transform_four does to in[q] e^{i pi q / 8}.
          const Batch<T> second = in[2] * d, first_c = in[1] * c, first_s = in[1] * s;
          const Point even{in[0] + second, second}, even_difference{in[0] - second, -second};
          const Point odd{fma(in[3], s, first_c), fma(in[3], c, first_s)};
          const Point odd_difference{fnma(in[3], s, first_c), fnma(in[3], c, first_s)};
          const T* const w = outer_.data() + 8 * j;
          T* const to = points + j * point + h;
          put((even + odd).times(Point::broadcast_of(w)), to);
          put(even_difference.minus_i(odd_difference).times(Point::broadcast_of(w + 2)), to + step);
          put((even - odd).times(Point::broadcast_of(w + 4)), to + 2 * step);
          put(even_difference.plus_i(odd_difference).times(Point::broadcast_of(w + 6)), to + 3 * step);
        });
      }
    };
    for_quarters(x, &zeros[0], from, until, some);
  }

  /// Butterflies from .. until - 1 of the last pass: points to the real or imaginary parts of rows, over their weights.
  template <bool add, bool imaginary>
  void write_rows(const T* points, LaneRows<T> y, Index from, Index until) const {
    alignas(memory_alignment) T nowhere[width] = {};
    const Index step = length_ / 4 * point;
    const Batch<T> c(cosine), s(sine), d(diagonal);
    const auto some = [&](Index begin, Index end, auto& row, auto& stride) SEQMIX_INLINE_LAMBDA {
      for (Index j = begin; j < end; ++j) {
        for_registers([&](Index h) SEQMIX_INLINE_LAMBDA {
          const T* const w = outer_.data() + 8 * j;
          Point a[4];
          unroll<4>([&](auto q) SEQMIX_INLINE_LAMBDA {
            a[q] = at(points + j * point + q * step + h).times_conjugate(Point::broadcast_of(w + 2 * q));
          });
          detail::transform_four<true>(a);
          Batch<T> out[4];
          if constexpr (imaginary) {
            out[0] = a[0].imag, out[1] = fms(a[1].imag, c, a[1].real * s);
            out[2] = (a[2].imag - a[2].real) * d, out[3] = fms(a[3].imag, s, a[3].real * c);
          } else {
            out[0] = a[0].real, out[1] = fma(a[1].real, c, a[1].imag * s);
            out[2] = (a[2].real + a[2].imag) * d, out[3] = fma(a[3].real, s, a[3].imag * c);
          }
          unroll<4>([&](auto q) SEQMIX_INLINE_LAMBDA {
            T* const to = row[q] + j * stride[q] + h;
            store(to, add ? load(to) + out[q] : out[q]);
          });
        });
      }
    };
    for_quarters(y, &nowhere[0], from, until, some);
  }

  /// Butterflies begin .. end - 1, of n / 4, of a pass of radix 4 over n points.
  void pass_forward(T* points, Index n, const T* twiddles, Index begin, Index end) const {
    const Index step = n / 4 * point;
    for (Index j = begin; j < end; ++j) {
      for_registers([&](Index h) SEQMIX_INLINE_LAMBDA {
        T* const first = points + j * point + h;
        Point a[4];
        unroll<4>([&](auto q) SEQMIX_INLINE_LAMBDA { a[q] = at(first + q * step); });
        detail::transform_four<false>(a);
        put(a[0], first);
        unroll<3>([&](auto q) SEQMIX_INLINE_LAMBDA {
          put(a[q + 1].times(Point::broadcast_of(twiddles + 6 * j + 2 * q)), first + (q + 1) * step);
        });
      });
    }
  }
  void pass_inverse(T* points, Index n, const T* twiddles, Index begin, Index end) const {
    const Index step = n / 4 * point;
    for (Index j = begin; j < end; ++j) {
      for_registers([&](Index h) SEQMIX_INLINE_LAMBDA {
        T* const first = points + j * point + h;
        Point a[4];
        a[0] = at(first);
        unroll<3>([&](auto q) SEQMIX_INLINE_LAMBDA {
          a[q + 1] = at(first + (q + 1) * step).times_conjugate(Point::broadcast_of(twiddles + 6 * j + 2 * q));
        });
        detail::transform_four<true>(a);
        unroll<4>([&](auto q) SEQMIX_INLINE_LAMBDA { put(a[q], first + q * step); });
      });
    }
  }

  /// A pass of radix 2 over 8 points; e^{-i pi / 4} and its powers are the twiddle factors.
  template <bool inverse>
  SEQMIX_ALWAYS_INLINE void pass_eight(T* points) const {
    const Batch<T> d(diagonal);
    for_registers([&](Index h) SEQMIX_INLINE_LAMBDA {
      unroll<4>([&](auto j) SEQMIX_INLINE_LAMBDA {
        T* const low = points + j * point + h;
        T* const high = low + 4 * point;
        const auto turn = [&](Point a) SEQMIX_INLINE_LAMBDA -> Point {
          if (j == 0) return a;
          if (j == 2) return inverse ? Point{-a.imag, a.real} : Point{a.imag, -a.real};
          const Batch<T> sum = (a.real + a.imag) * d, difference = (a.imag - a.real) * d;
          if (j == 1) return inverse ? Point{-difference, sum} : Point{sum, difference};
          return inverse ? Point{-sum, -difference} : Point{difference, -sum};
        };
        const Point a = at(low), b = at(high);
        if constexpr (inverse) {
          put(a + turn(b), low);
          put(a - turn(b), high);
        } else {
          put(a + b, low);
          put(turn(a - b), high);
        }
      });
    });
  }

  /// Four points of a spectrum from `place` on; times something and back if there is a product.
  template <class Product>
  SEQMIX_ALWAYS_INLINE void transform_leaf(T* points, Index place, const Product& product) const {
    for_registers([&](Index h) SEQMIX_INLINE_LAMBDA {
      Point a[4];
      unroll<4>([&](auto q) SEQMIX_INLINE_LAMBDA { a[q] = at(points + q * point + h); });
      detail::transform_four<false>(a);
      if constexpr (!std::is_same_v<Product, NoProduct>) {
        product(a, place, h);
        detail::transform_four<true>(a);
      }
      unroll<4>([&](auto q) SEQMIX_INLINE_LAMBDA { put(a[q], points + q * point + h); });
    });
  }

  /// Transforms n points, which become those of a spectrum from `place` on, and if there is a product multiplies them and
  /// transforms them back. `twiddles` begin with those of n.
  template <class Product>
  void descend(T* points, Index n, const T* twiddles, Index place, const Product& product) const {
    constexpr bool back = !std::is_same_v<Product, NoProduct>;
    if (n == 4) return transform_leaf(points, place, product);
    if (n == 8) {
      pass_eight<false>(points);
      transform_leaf(points, place, product);
      transform_leaf(points + 4 * point, place + 4, product);
      if constexpr (back) pass_eight<true>(points);
      return;
    }
    const Index quarter = n / 4;
    pass_forward(points, n, twiddles, 0, quarter);
    for (Index q = 0; q < 4; ++q) {
      T* const part = points + q * quarter * point;
      if (n == 16) {  // no call for four points
        transform_leaf(part, place + 4 * q, product);
      } else {
        descend(part, quarter, twiddles + 6 * quarter, place + q * quarter, product);
      }
    }
    if constexpr (back) pass_inverse(points, n, twiddles, 0, quarter);
  }

  /// The work of descend for n points, in butterflies.
  static Index part_count(Index n, Index product) {
    Index count = 0, number = 1;
    for (; n > 8; n /= 4, number *= 4) count += number * (n / 2);
    return count + number * (n == 8 ? 2 * product + 8 : product + 2);
  }

  /// Parts begin .. end - 1 of the `count` of descend. Of eight points or less all is done in the first.
  template <class Product>
  void descend_part(T* points, Index n, const T* twiddles, Index place, const Product& product, Index count,
                    Index begin, Index end) const {
    if (begin >= count || end <= 0) return;
    if (n <= 8 ? begin <= 0 : begin <= 0 && end >= count) return descend(points, n, twiddles, place, product);
    if (n <= 8) return;
    const Index quarter = n / 4, each = (count - n / 2) / 4, last = count - quarter;
    if (begin < quarter) pass_forward(points, n, twiddles, std::max(begin, Index(0)), std::min(end, quarter));
    for (Index q = 0; q < 4; ++q) {
      const Index first = quarter + q * each;
      descend_part(points + q * quarter * point, quarter, twiddles + 6 * quarter, place + q * quarter, product, each,
                   begin - first, end - first);
    }
    if (end > last) pass_inverse(points, n, twiddles, std::max(begin - last, Index(0)), std::min(end - last, quarter));
  }

  Index length_ = 0, used_ = W;
  Buffer<T> outer_;  // [N/4][4][real, imaginary]: e^{i pi j (1/2 - 2 k) / N}
  Buffer<T> inner_;  // for n = N/4, N/16 .. at least 16: [n/4][k = 1, 2, 3][real, imaginary]: e^{-2 pi i k j / n}
};

}  // namespace seqmix::inline SEQMIX_ARCH
