// Discrete Fourier transforms of any length, several at once in SIMD lanes, and over both axes of a real matrix.
//
//   X[k] = sum over j < n of x[j] e^{-2 pi i j k / n}
//
//   Glossary  n length of a transform   W lanes   plane: [n, W], one number for each lane; a transform has a real and an
//             imaginary one
//   Source    passes that leave everything in order: Stockham, in Cochran et al. 1967, "What is the fast Fourier
//             transform?"; lengths with large primes: Bluestein 1970
//
// Lengths are taken apart into radices 4, 2, 3, 5 and primes up to 31, one pass for each from one pair of planes to the
// other; what has larger primes is a convolution with a chirp, by transforms of a power of two. Factors come from one
// table of the roots of unity, computed in double. Error: at most 4 eps log2(n) of the norm, a few times that by chirps.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cmath>
#include <memory>
#include <numbers>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/fft.hpp>
#include <seqmix/engine/lanes_of_rows.hpp>
#include <seqmix/simd/batch.hpp>
#include <span>
#include <utility>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// The two planes of a transform.
template <class T>
struct Planes {
  T *real, *imag;

  static Planes take(Index length, Workspace& workspace) {
    const Index size = length * lanes<T>;
    return {workspace.take<T>(size).data(), workspace.take<T>(size).data()};
  }
  SEQMIX_ALWAYS_INLINE Point<T> at(Index i) const { return {load(real + i * lanes<T>), load(imag + i * lanes<T>)}; }
  SEQMIX_ALWAYS_INLINE void put(Index i, const Point<T>& value) const {
    store(real + i * lanes<T>, value.real);
    store(imag + i * lanes<T>, value.imag);
  }
  Planes swapped() const { return {imag, real}; }
};

inline constexpr Index largest_radix = 31;

}  // namespace detail

/// A plan for transforms of one length. It lives as long as the frame that it was made in.
template <std::floating_point T>
class LaneFourier {
 public:
  /// Takes O(n) scratch of the workspace, O(n) time, O(n log n) where n has primes beyond 31.
  LaneFourier(Index length, Workspace& workspace) : length_(length) {
    assert(length > 0);
    Index rest = length;
    for (const Index radix : {4, 2, 3, 5}) divide_by(radix, rest);
    for (Index radix = 7; radix <= detail::largest_radix; radix += 2) divide_by(radix, rest);
    if (rest == 1) {
      make_roots(workspace);
    } else {
      make_chirp(workspace);
    }
  }

  Index length() const { return length_; }
  /// Rows that both pairs of planes must have room for.
  Index room() const { return chirp_.empty() ? length_ : padded(); }

  /// Transforms the first n rows of `x`; uses `other` too. Gives back which of the two holds the result; the other's content
  /// is lost. O(n log n) time; allocates nothing.
  detail::Planes<T> run(detail::Planes<T> x, detail::Planes<T> other) const {
    return chirp_.empty() ? passes(x, other) : by_chirp(x, other);
  }

 private:
  using Planes = detail::Planes<T>;
  using Point = detail::Point<T>;
  static constexpr Index width = lanes<T>;

  Index padded() const { return Index(std::bit_ceil(std::size_t(2 * length_ - 1))); }

  void divide_by(Index radix, Index& rest) {
    while (rest % radix == 0 && rest > 1) {
      radices_[std::size_t(radix_count_++)] = radix;
      rest /= radix;
    }
  }

  /// roots_[2 j] and [2 j + 1]: e^{-2 pi i j / n}.
  void make_roots(Workspace& workspace) {
    roots_ = workspace.take<T>(2 * length_);
    // As products of about sqrt(n) powers each, in double.
    const Index step = Index(std::ceil(std::sqrt(double(length_))));
    const auto low_powers = workspace.take<double>(2 * step);
    const auto power = [&](Index j) {
      const double angle = -2 * std::numbers::pi * double(j) / double(length_);
      return std::pair(std::cos(angle), std::sin(angle));
    };
    for (Index low = 0; low < step; ++low) {
      const auto [real, imag] = power(low);
      low_powers[std::size_t(2 * low)] = real, low_powers[std::size_t(2 * low) + 1] = imag;
    }
    for (Index high = 0; high < length_; high += step) {
      const auto [a, b] = power(high);
      for (Index low = 0; low < step && high + low < length_; ++low) {
        const double c = low_powers[std::size_t(2 * low)], d = low_powers[std::size_t(2 * low) + 1];
        roots_[std::size_t(2 * (high + low))] = T(a * c - b * d);
        roots_[std::size_t(2 * (high + low)) + 1] = T(a * d + b * c);
      }
    }
  }

  SEQMIX_ALWAYS_INLINE Point root(Index j) const { return Point::broadcast_of(roots_.data() + 2 * j); }

  // --- passes ---

  Planes passes(Planes from, Planes to) const {
    Index n = length_, stride = 1;
    for (Index i = 0; i < radix_count_; ++i) {
      const Index radix = radices_[std::size_t(i)];
      switch (radix) {
        case 2:
          pass<2>(n, stride, from, to);
          break;
        case 3:
          pass<3>(n, stride, from, to);
          break;
        case 4:
          pass<4>(n, stride, from, to);
          break;
        case 5:
          pass<5>(n, stride, from, to);
          break;
        default:
          pass_of_any_radix(radix, n, stride, from, to);
      }
      std::swap(from, to);
      n /= radix, stride *= radix;
    }
    return from;
  }

  /// `stride` transforms of n points, side by side: from[q + stride (p + j n / R)] to to[q + stride (R p + k)].
  template <Index R>
  void pass(Index n, Index stride, Planes from, Planes to) const {
    const Index part = n / R;
    for (Index p = 0; p < part; ++p) {
      Point factor[R];
      unroll<R>([&](auto k) SEQMIX_INLINE_LAMBDA { factor[k] = root(stride * p * k); });
      for (Index q = 0; q < stride; ++q) {
        Point a[R];
        unroll<R>([&](auto j) SEQMIX_INLINE_LAMBDA { a[j] = from.at(q + stride * (p + j * part)); });
        transform(a);
        to.put(q + stride * R * p, a[0]);
        unroll<R - 1>(
            [&](auto k) SEQMIX_INLINE_LAMBDA { to.put(q + stride * (R * p + k + 1), a[k + 1].times(factor[k + 1])); });
      }
    }
  }

  static SEQMIX_ALWAYS_INLINE Point scaled(const Point& x, T factor) {
    return {x.real * broadcast(factor), x.imag * broadcast(factor)};
  }
  static SEQMIX_ALWAYS_INLINE void transform(Point (&a)[2]) {
    const Point sum = a[0] + a[1];
    a[1] = a[0] - a[1];
    a[0] = sum;
  }
  static SEQMIX_ALWAYS_INLINE void transform(Point (&a)[3]) {
    constexpr T sine = T(0.86602540378443864676);
    const Point sum = a[1] + a[2], turned = scaled(a[1] - a[2], sine), rest = a[0] + scaled(sum, T(-0.5));
    a[0] = a[0] + sum;
    a[1] = rest.minus_i(turned);
    a[2] = rest.plus_i(turned);
  }
  static SEQMIX_ALWAYS_INLINE void transform(Point (&a)[4]) { detail::transform_four<false>(a); }
  static SEQMIX_ALWAYS_INLINE void transform(Point (&a)[5]) {
    constexpr T cosine[] = {T(0.30901699437494742410), T(-0.80901699437494742410)};  // of 2 pi / 5 and twice that
    constexpr T sine[] = {T(0.95105651629515357212), T(0.58778525229247312917)};
    const Point outer = a[1] + a[4], inner = a[2] + a[3], outer_rest = a[1] - a[4], inner_rest = a[2] - a[3];
    const Point first = a[0] + scaled(outer, cosine[0]) + scaled(inner, cosine[1]);
    const Point second = a[0] + scaled(outer, cosine[1]) + scaled(inner, cosine[0]);
    const Point first_turned = scaled(outer_rest, sine[0]) + scaled(inner_rest, sine[1]);
    const Point second_turned = scaled(outer_rest, sine[1]) - scaled(inner_rest, sine[0]);
    a[0] = a[0] + outer + inner;
    a[1] = first.minus_i(first_turned);
    a[4] = first.plus_i(first_turned);
    a[2] = second.minus_i(second_turned);
    a[3] = second.plus_i(second_turned);
  }

  /// The same from the definition, for radices without a formula.
  void pass_of_any_radix(Index radix, Index n, Index stride, Planes from, Planes to) const {
    const Index part = n / radix, turn = length_ / radix;
    for (Index p = 0; p < part; ++p) {
      for (Index q = 0; q < stride; ++q) {
        for (Index k = 0; k < radix; ++k) {
          Point sum = from.at(q + stride * p);
          for (Index j = 1; j < radix; ++j) {
            sum = sum + from.at(q + stride * (p + j * part)).times(root(turn * (j * k % radix)));
          }
          to.put(q + stride * (radix * p + k), sum.times(root(stride * p * k)));
        }
      }
    }
  }

  // --- chirps ---

  /// j k = (j^2 + k^2 - (k - j)^2) / 2: with c[j] = e^{-i pi j^2 / n}, X[k] = c[k] sum over j of (x[j] c[j]) conj(c[k - j]).
  void make_chirp(Workspace& workspace) {
    const Index m = padded();
    chirp_ = workspace.take<T>(2 * length_);
    for (Index j = 0; j < length_; ++j) {
      const double angle = -std::numbers::pi * double(j * j % (2 * length_)) / double(length_);
      chirp_[std::size_t(2 * j)] = T(std::cos(angle)), chirp_[std::size_t(2 * j) + 1] = T(std::sin(angle));
    }
    inner_ = std::construct_at(workspace.take<LaneFourier>(1).data(), m, workspace);
    const Planes filter = Planes::take(m, workspace), other = Planes::take(m, workspace);
    for (Index j = 0; j < m; ++j) {
      const Index lag = std::min(j, m - j);
      const Point tap = lag < length_ ? chirp(lag) : Point{broadcast(T(0)), broadcast(T(0))};
      filter.put(j, scaled({tap.real, -tap.imag}, T(1) / T(m)));
    }
    spectrum_ = inner_->run(filter, other);
  }

  SEQMIX_ALWAYS_INLINE Point chirp(Index j) const { return Point::broadcast_of(chirp_.data() + 2 * j); }

  Planes by_chirp(Planes x, Planes other) const {
    const Index m = padded();
    for (Index j = 0; j < length_; ++j) x.put(j, x.at(j).times(chirp(j)));
    std::fill(x.real + length_ * width, x.real + m * width, T(0));
    std::fill(x.imag + length_ * width, x.imag + m * width, T(0));
    const Planes product = inner_->run(x, other), free = product.real == x.real ? other : x;
    for (Index j = 0; j < m; ++j) product.put(j, product.at(j).times(spectrum_.at(j)));
    // With real and imaginary parts changed over, a transform is the inverse one.
    const Planes result = inner_->run(product.swapped(), free.swapped()).swapped();
    for (Index k = 0; k < length_; ++k) result.put(k, result.at(k).times(chirp(k)));
    return result;
  }

  Index length_;
  std::array<Index, 64> radices_{};
  Index radix_count_ = 0;
  std::span<T> roots_, chirp_;          // [n][real, imaginary]; one is empty
  const LaneFourier* inner_ = nullptr;  // of the convolution with the chirp
  Planes spectrum_{nullptr, nullptr};   // its filter
};

/// y[t, c] = Re(sum over s and d of x[s, d] e^{-2 pi i (s t / L + d c / D)}). x, y [L, D]; y may be x. O(L D log(L D)) time,
/// about L D numbers of scratch. The same bits for any number of threads. Allocates nothing once `workspace` is warm.
///
/// The transform A - i B of a row is needed for frequencies up to D / 2 only: that of a column with both signs of B is y[t, c]
/// and y[L - t, D - c]. Rows are transformed in pairs, one as the imaginary part of the other.
template <std::floating_point T>
void fourier_real_part(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) {
  using Planes = detail::Planes<T>;
  constexpr Index width = lanes<T>;
  const Index L = x.length(), D = x.channels(), frequencies = D / 2 + 1, groups = (frequencies + width - 1) / width;
  assert(y.length() == L && y.channels() == D);
  if (L == 0 || D == 0) return;
  const auto frame = workspace.frame();
  const LaneFourier<T> of_row(D, workspace), of_column(L, workspace);
  const Planes spectra = Planes::take(groups * L, workspace);  // [groups][L]: lanes are frequencies

  workspace.parallel_for((L + 2 * width - 1) / (2 * width), [&](Index piece, Workspace& local) {
    const Index begin = piece * 2 * width;
    const Planes rows = Planes::take(of_row.room(), local), other = Planes::take(of_row.room(), local);
    const Index counts[] = {std::min(width, L - begin), std::clamp(L - begin - width, Index(0), width)};
    for (Index half = 0; half < 2; ++half) {
      detail::LanesOfRows<T>::load_rows(x.row(std::min(begin + half * width, L)), x.stride(), counts[half], D,
                                        half == 0 ? rows.real : rows.imag);
    }
    const Planes mixed = of_row.run(rows, other);
    const Planes halves[] = {Planes::take(groups * width, local), Planes::take(groups * width, local)};
    const Batch<T> half = broadcast(T(0.5)), zero = broadcast(T(0));
    for (Index k = 0; k < groups * width; ++k) {
      detail::Point<T> first{zero, zero}, second{zero, zero};
      if (k < frequencies) {
        const auto a = mixed.at(k), b = mixed.at(k == 0 ? 0 : D - k);
        first = {(a.real + b.real) * half, (a.imag - b.imag) * half};
        second = {(a.imag + b.imag) * half, (b.real - a.real) * half};
      }
      halves[0].put(k, first);
      halves[1].put(k, second);
    }
    for (Index i = 0; i < 2; ++i) {
      for (Index g = 0; g < groups && counts[i] > 0; ++g) {
        const Index from = g * width * width, to = (g * L + begin + i * width) * width;
        detail::LanesOfRows<T>::store_rows(halves[i].real + from, spectra.real + to, width, counts[i], width);
        detail::LanesOfRows<T>::store_rows(halves[i].imag + from, spectra.imag + to, width, counts[i], width);
      }
    }
  });

  workspace.parallel_for(groups, [&](Index g, Workspace& local) {
    Planes column{spectra.real + g * L * width, spectra.imag + g * L * width};
    const Planes other = Planes::take(of_column.room(), local);
    if (of_column.room() > L) {
      const Planes copy = Planes::take(of_column.room(), local);
      std::copy_n(column.real, L * width, copy.real);
      std::copy_n(column.imag, L * width, copy.imag);
      column = copy;
    }
    const Planes result = of_column.run(column, other);
    const Index first = g * width, count = std::min(width, frequencies - first);
    for (Index t = 0; t < L; ++t) {
      const T* const from = result.real + t * width;
      T* const mirrored = y.row(t == 0 ? 0 : L - t);
      detail::store_some(y.row(t) + first, load(from), count);
      for (Index c = std::max(first, Index(1)); c < std::min(first + count, (D + 1) / 2); ++c) {
        mirrored[D - c] = from[c - first];
      }
    }
  });
}

}  // namespace seqmix::inline SEQMIX_ARCH
