// Rotary position embedding: pairs of channels turned by an angle that grows with the position.
//
//   Source    Su et al. 2021, arXiv:2104.09864 (RoPE); Sun et al. 2023, arXiv:2307.08621 (the angles of retention)
//
//   (a, b) -> (a cos(p f_i) - b sin(p f_i),  b cos(p f_i) + a sin(p f_i))   for pair i at position p
//
// The angle p f_i is formed in double and reduced modulo 2 pi before it is rounded to T: at position 10^6 a float product
// is off by 0.06. Both steps work on split numbers whose products are exact, with and without fused multiply-adds, so that
// cos and sin are as accurate at position 10^6 as at 0. (Up to angles of 2 * 10^8 and positions of 5 * 10^8; beyond, the
// error grows to that of a plain product in double.)
#pragma once

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numbers>
#include <seqmix/core/error.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/simd/arch.hpp>
#include <seqmix/simd/math.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Which channels of a head, of the first R = rotary_dim, form pair i.
enum class RotaryPairs {
  half,        ///< i and i + R/2
  interleaved  ///< 2i and 2i + 1
};

/// Turns the first `count` pairs of x, [rotary_dim], in place.
template <class T>
void turn_pairs(T* x, RotaryPairs pairs, Index rotary_dim, Index count, const T* sine, const T* cosine) {
  const auto turn = [](T& a, T& b, T s, T c) {
    const T turned = a * c - b * s;
    b = b * c + a * s;
    a = turned;
  };
  if (pairs == RotaryPairs::half) {
    for (Index i = 0; i < count; ++i) turn(x[i], x[i + rotary_dim / 2], sine[i], cosine[i]);
  } else {
    for (Index i = 0; i < count; ++i) turn(x[2 * i], x[2 * i + 1], sine[i], cosine[i]);
  }
}

/// The rotation of queries and keys by their positions.
class Rotary {
 public:
  /// Turns nothing.
  Rotary() = default;

  /// Pair i turns by inverse_frequencies[i] radians per position.
  Rotary(const Vector<double>& inverse_frequencies, RotaryPairs pairs)
      : high_(inverse_frequencies.cast<float>().cast<double>()), low_(inverse_frequencies - high_), pairs_(pairs) {}

  /// RoPE: theta^(-2i / rotary_dim). Throws std::invalid_argument if rotary_dim is odd or negative.
  static Rotary standard(Index rotary_dim, double theta, RotaryPairs pairs) {
    expect(rotary_dim >= 0 && rotary_dim % 2 == 0, "Rotary", "rotary_dim", "must be even");
    Vector<double> frequencies(rotary_dim / 2);
    for (Index i = 0; i < frequencies.size(); ++i)
      frequencies[i] = std::pow(theta, -2.0 * double(i) / double(rotary_dim));
    return Rotary(frequencies, pairs);
  }

  /// The rotation of torchscale's retention: 10000^(-i / (key_dim/2 - 1)), both ends included, so 1 .. 1/10000;
  /// interleaved pairs. Throws std::invalid_argument if key_dim is odd or negative.
  static Rotary retention(Index key_dim) {
    expect(key_dim >= 0 && key_dim % 2 == 0, "Rotary", "key_dim", "must be even");
    Vector<double> frequencies(key_dim / 2);
    const double last = double(std::max<Index>(frequencies.size() - 1, 1));
    for (Index i = 0; i < frequencies.size(); ++i) frequencies[i] = std::pow(10000.0, -double(i) / last);
    return Rotary(frequencies, RotaryPairs::interleaved);
  }

  /// Channels of a head that take part; those beyond pass unchanged.
  Index rotary_dim() const { return 2 * high_.size(); }

  /// Turns row t of x to position + t, in place. x [length, heads, head_dim], head_dim >= rotary_dim(). O(length *
  /// rotary_dim) sines and cosines, shared by the heads. Allocates nothing once `workspace` is warm.
  template <class T>
  void apply(HeadSequence<T> x, Index position, Workspace& workspace) const {
    const Index pairs = high_.size();
    assert(x.head_dim() >= 2 * pairs);
    if (pairs == 0) return;
    const auto frame = workspace.frame();
    double* const angle = workspace.take<double>(pairs).data();
    T* const sine = workspace.take<T>(pairs).data();
    T* const cosine = workspace.take<T>(pairs).data();
    for (Index t = 0; t < x.length(); ++t) {
      set_turn(double(position + t), angle, sine, cosine);
      for (Index h = 0; h < x.heads(); ++h) {
        turn_pairs(x.row(t, h), pairs_, 2 * pairs, pairs, sine, cosine);
      }
    }
  }

 private:
  /// position * f_i, less whole turns.
  void set_angles(double position, double* angle) const {
    // 2 pi in three parts: 28 bits, 27 bits, the rest. Their first two products with the number of turns are exact, as is
    // that of the position with the 24 bits of high_.
    constexpr double part[3] = {0x1.921fb54p+2, 0x1.10b4610000000p-28, 0x1.a62633145c06ep-56};
    constexpr double round_magic = 0x1.8p+52;
    const auto p = broadcast(position), magic = broadcast(round_magic);
    for (Index i = 0; i < high_.size(); i += lanes<double>) {
      const Index count = std::min(lanes<double>, high_.size() - i);
      const auto product = p * load_partial(high_.data() + i, count);
      const auto turns = (product * broadcast(0.5 / std::numbers::pi) + magic) - magic;
      auto rest = product - turns * broadcast(part[0]);
      rest = rest - turns * broadcast(part[1]);
      rest = rest + (p * load_partial(low_.data() + i, count) - turns * broadcast(part[2]));
      store_partial(angle + i, rest, count);
    }
  }

  /// sine and cosine of the angles of a row.
  template <class T>
  void set_turn(double position, double* angle, T* sine, T* cosine) const {
    const Index pairs = high_.size();
    set_angles(position, angle);
    for (Index i = 0; i < pairs; ++i) sine[i] = T(angle[i]);
    for (Index i = 0; i < pairs; i += lanes<T>) {
      const Index count = std::min(lanes<T>, pairs - i);
      const auto [s, c] = sincos(load_partial(sine + i, count));
      store_partial(sine + i, s, count);
      store_partial(cosine + i, c, count);
    }
  }

  Vector<double> high_, low_;  // [pairs]: the frequencies are high + low, high has 24 bits
  RotaryPairs pairs_ = RotaryPairs::half;
};

}  // namespace seqmix::inline SEQMIX_ARCH
