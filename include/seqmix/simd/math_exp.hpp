// exp2, exp, expm1 and their restricted, quicker forms, for batches and scalars of float and double.
//
// All split x into an integer n and a fraction: n by adding 1.5 * 2^mantissa_bits (the sum's low bits are n), 2^n by
// shifting these bits into the exponent field. The result is a product, never an addition to the exponent field, which
// could turn NaN into a number. Polynomials are minimax in relative error; constant term 1 wherever f(0) = 1, because
// decays are multiplied thousands of times. Error bounds are in units in the last place (ulp) of the result, measured
// densely; they hold with and without fused multiply-add. The environment must round to nearest.
//
// The functions are objects: passable by name, and not found by argument-dependent lookup beside xsimd's.
// A scalar argument gives the same bits as a lane of a batch.
#pragma once

#include <seqmix/simd/batch.hpp>

#include <concepts>
#include <cstdint>
#include <limits>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// Turns a kernel with `static Batch evaluate(Batch)` into a function of batches and scalars.
template <class Kernel>
struct Elementwise {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE Batch<T, Arch> operator()(const xsimd::batch<T, Arch>& x) const {
    return Kernel::evaluate(x);
  }
  template <std::floating_point T>
  SEQMIX_ALWAYS_INLINE T operator()(T x) const {
    return Kernel::evaluate(broadcast(x)).get(0);
  }
};

template <class T>
struct FloatFormat;

template <>
struct FloatFormat<float> {
  using Bits = std::uint32_t;
  static constexpr int mantissa_bits = 23;
  static constexpr int exponent_bias = 127;
  static constexpr float round_magic = 0x1.8p23f;  // x + round_magic has ulp 1: its low bits are the rounded x
};

template <>
struct FloatFormat<double> {
  using Bits = std::uint64_t;
  static constexpr int mantissa_bits = 52;
  static constexpr int exponent_bias = 1023;
  static constexpr double round_magic = 0x1.8p52;
};

template <class T, class Arch>
SEQMIX_ALWAYS_INLINE auto to_bits(const xsimd::batch<T, Arch>& x) {
  return xsimd::bitwise_cast<typename FloatFormat<T>::Bits>(x);
}

template <class T, class Arch>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> from_bits(const xsimd::batch<typename FloatFormat<T>::Bits, Arch>& bits) {
  return xsimd::bitwise_cast<T>(bits);
}

/// c[0] + c[1] x + c[2] x^2 + ... with x^2 given, as a polynomial in x^2 of pairs of coefficients.
template <class T, class Arch, std::same_as<T>... More>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> polynomial_of_pairs(const xsimd::batch<T, Arch>& x,
                                                        const xsimd::batch<T, Arch>& square, T first, T second,
                                                        More... more) {
  const auto pair = xsimd::fma(x, Batch<T, Arch>(second), Batch<T, Arch>(first));
  if constexpr (sizeof...(More) == 0) {
    return pair;
  } else if constexpr (sizeof...(More) == 1) {
    return xsimd::fma(square, Batch<T, Arch>(more...), pair);
  } else {
    return xsimd::fma(square, polynomial_of_pairs(x, square, more...), pair);
  }
}

/// c[0] + x (c[1] + c[2] x + ...). A chain of dependent FMAs half as long as Horner's for one multiplication more: with
/// Horner's the scheduler is full of waiting FMAs before the chains of neighbouring batches overlap. The last step is
/// Horner's, so that c[0] is rounded into the result once.
template <class T, class Arch, std::same_as<T>... More>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> polynomial(const xsimd::batch<T, Arch>& x, T first, More... more) {
  static_assert(sizeof...(More) >= 2);
  return xsimd::fma(x, polynomial_of_pairs(x, x * x, more...), Batch<T, Arch>(first));
}

/// 2^n where `shifted` = round_magic + exponent_bias + n; 0 at n = -bias, infinity at n = bias + 1.
template <class T, class Arch>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> power_of_two(const xsimd::batch<T, Arch>& shifted) {
  return from_bits<T, Arch>(to_bits(shifted) << FloatFormat<T>::mantissa_bits);
}

/// The factors 2^n1, 2^n2, n1 + n2 = n, both normal for any n whose power of two is finite, denormal or just beyond:
/// a product (p * first) * second is rounded once. `shifted` = round_magic + 2 * exponent_bias + n.
template <class T, class Arch>
struct TwoPowers {
  Batch<T, Arch> first, second;
  SEQMIX_ALWAYS_INLINE explicit TwoPowers(const xsimd::batch<T, Arch>& shifted) {
    const auto biased = to_bits(shifted);
    const auto half = biased >> 1;
    first = from_bits<T, Arch>(half << FloatFormat<T>::mantissa_bits);
    second = from_bits<T, Arch>((biased - half) << FloatFormat<T>::mantissa_bits);
  }
};

/// 2^f for |f| <= 1/2, exactly 1 at 0. Relative error of the polynomial 7e-9 in float, 4e-17 in double.
template <class T, class Arch>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> exp2_fraction(const xsimd::batch<T, Arch>& f) {
  if constexpr (std::same_as<T, float>) {
    return polynomial(f, 1.0f, 0.693147182f, 0.240226507f, 0.0555036068f, 0.00961789023f, 0.00133921998f,
                      0.000155718357f);
  } else {
    return polynomial(f, 1.0, 0.69314718055994573, 0.24022650695910097, 0.0555041086647904, 0.0096181291076070027,
                      0.0013333558153439007, 0.00015403530441571913, 1.5252727386049409e-05, 1.3215442675241801e-06,
                      1.0180647315962098e-07, 7.0725704601418889e-09, 4.0781227418696e-10);
  }
}

/// (e^f - 1 - f) / f^2 for |f| <= ln(2) / 2. Error of 1 + f + f^2 q: 2e-9 in float, 4e-17 in double.
template <class T, class Arch>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> exp_quadratic_part(const xsimd::batch<T, Arch>& f) {
  if constexpr (std::same_as<T, float>) {
    return polynomial(f, 0.49999997f, 0.16666539f, 0.0416677445f, 0.00836705696f, 0.00138394139f);
  } else {
    return polynomial(f, 0.50000000000000056, 0.16666666666666588, 0.041666666666576743, 0.0083333333333895573,
                      0.0013888888931567036, 0.00019841269718979732, 2.4801505271629876e-05, 2.7557407577940926e-06,
                      2.7626038626974827e-07, 2.5053761047656857e-08);
  }
}

/// x or -x = n ln(2) + fraction, |fraction| <= ln(2) / 2; `shifted` = round_magic + offset + n.
/// ln(2) is taken in two parts, of which the first has so few bits that n times it is exact.
template <bool negate, int offset, class T, class Arch>
struct ExpReduction {
  static constexpr T log2_e = T(1.4426950408889634);
  static constexpr T ln2_high = sizeof(T) == 4 ? T(0.693359375) : T(6.93147180369123816490e-01);
  static constexpr T ln2_low = sizeof(T) == 4 ? T(-2.12194440054690583e-4) : T(1.90821492927058770002e-10);

  Batch<T, Arch> shifted, fraction;

  SEQMIX_ALWAYS_INLINE explicit ExpReduction(const xsimd::batch<T, Arch>& x) {
    const auto magic = broadcast<Arch>(FloatFormat<T>::round_magic + T(offset));
    shifted = xsimd::fma(x, broadcast<Arch>(negate ? -log2_e : log2_e), magic);
    const auto n = shifted - magic;
    const auto rest =
        negate ? xsimd::fnms(n, broadcast<Arch>(ln2_high), x) : xsimd::fnma(n, broadcast<Arch>(ln2_high), x);
    fraction = xsimd::fnma(n, broadcast<Arch>(ln2_low), rest);
  }
};

template <class T, class Arch>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> exp_fraction(const xsimd::batch<T, Arch>& f) {
  const auto one = broadcast<Arch>(T(1));
  return xsimd::fma(f, xsimd::fma(f, exp_quadratic_part(f), one), one);
}

/// e^f - 1 for |f| <= ln(2) / 2, without cancellation around 0: at most 1.5 ulp.
template <class T, class Arch>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> expm1_fraction(const xsimd::batch<T, Arch>& f) {
  return xsimd::fma(f * f, exp_quadratic_part(f), f);
}

/// Bounds between which e^x needs a single power of two: exactly 0 at `lowest`, infinity at `highest`.
template <class T>
struct ExpBounds;
template <>
struct ExpBounds<float> {
  static constexpr float lowest = -88.0f, highest = 88.73f;
};
template <>
struct ExpBounds<double> {
  static constexpr double lowest = -709.09, highest = 709.79;
};

/// e^x for x <= `highest` only (not checked).
template <class T, class Arch>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> exp_nonpositive(const xsimd::batch<T, Arch>& x) {
  const auto bounded = max_propagating(x, broadcast<Arch>(ExpBounds<T>::lowest));
  const ExpReduction<false, FloatFormat<T>::exponent_bias, T, Arch> reduced(bounded);
  return exp_fraction(reduced.fraction) * power_of_two(reduced.shifted);
}

/// e^-x, 0 where that is denormal and infinity where it exceeds 2^127.5 (2^1023.5).
template <class T, class Arch>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> exp_negated(const xsimd::batch<T, Arch>& x) {
  const auto bounded = min_propagating(max_propagating(x, broadcast<Arch>(-ExpBounds<T>::highest)),
                                       broadcast<Arch>(-ExpBounds<T>::lowest));
  const ExpReduction<true, FloatFormat<T>::exponent_bias, T, Arch> reduced(bounded);
  return exp_fraction(reduced.fraction) * power_of_two(reduced.shifted);
}

/// 2^x for x < bias + 1/2; see exp2_decay.
template <class T, class Arch, class Fraction>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> exp2_single_scale(const xsimd::batch<T, Arch>& x, Fraction fraction) {
  constexpr T bias = T(FloatFormat<T>::exponent_bias);
  const auto magic = broadcast<Arch>(FloatFormat<T>::round_magic + bias);
  const auto bounded = max_propagating(x, broadcast<Arch>(-bias));
  const auto shifted = bounded + magic;
  return fraction(bounded - (shifted - magic)) * power_of_two(shifted);
}

struct Exp2Decay {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> evaluate(const xsimd::batch<T, Arch>& x) {
    return exp2_single_scale(x, [](const Batch<T, Arch>& f) SEQMIX_INLINE_LAMBDA { return exp2_fraction(f); });
  }
};

struct Exp2Softmax {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> evaluate(const xsimd::batch<T, Arch>& x) {
    return exp2_single_scale(x, [](const Batch<T, Arch>& f) SEQMIX_INLINE_LAMBDA {
      if constexpr (std::same_as<T, float>) {
        return polynomial(f, 1.0f, 0.693142831f, 0.240223512f, 0.0555740148f, 0.00966627151f, 0.00111252104f);
      } else {
        return exp2_fraction(f);
      }
    });
  }
};

struct Exp2 {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> evaluate(const xsimd::batch<T, Arch>& x) {
    constexpr T bias = T(FloatFormat<T>::exponent_bias);
    constexpr T mantissa = T(FloatFormat<T>::mantissa_bits);
    const auto magic = broadcast<Arch>(FloatFormat<T>::round_magic + 2 * bias);
    const auto bounded =
        min_propagating(max_propagating(x, broadcast<Arch>(-(bias + mantissa + 1))), broadcast<Arch>(bias + 2));
    const auto shifted = bounded + magic;
    const TwoPowers<T, Arch> scale(shifted);
    return exp2_fraction(bounded - (shifted - magic)) * scale.first * scale.second;
  }
};

struct Exp {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> evaluate(const xsimd::batch<T, Arch>& x) {
    constexpr T lowest = sizeof(T) == 4 ? T(-105) : T(-746), highest = sizeof(T) == 4 ? T(89.5) : T(710.5);
    const auto bounded = min_propagating(max_propagating(x, broadcast<Arch>(lowest)), broadcast<Arch>(highest));
    const ExpReduction<false, 2 * FloatFormat<T>::exponent_bias, T, Arch> reduced(bounded);
    const TwoPowers<T, Arch> scale(reduced.shifted);
    return exp_fraction(reduced.fraction) * scale.first * scale.second;
  }
};

struct ExpDecay {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> evaluate(const xsimd::batch<T, Arch>& x) {
    return exp_nonpositive(x);
  }
};

struct Expm1 {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> evaluate(const xsimd::batch<T, Arch>& x) {
    // The lower bound is where the result has rounded to -1 already.
    const auto bounded =
        min_propagating(max_propagating(x, broadcast<Arch>(T(-40))), broadcast<Arch>(ExpBounds<T>::highest));
    // Half of the power of two, so that results in the last binade don't overflow on the way.
    const ExpReduction<false, FloatFormat<T>::exponent_bias - 1, T, Arch> reduced(bounded);
    const auto& f = reduced.fraction;
    // The reduction's magic number lacks 1 against power_of_two's: this is 2^(n-1).
    const auto half_scale = power_of_two(reduced.shifted);
    const auto half = xsimd::fma(expm1_fraction(f), half_scale, half_scale - broadcast<Arch>(T(0.5)));
    return half + half;
  }
};

}  // namespace detail

/// 2^x, any x: denormal results, 0 and infinity beyond the range; exactly 1 at 0; NaN stays NaN.
/// At most 1.5 ulp in float, 1.7 in double.
inline constexpr detail::Elementwise<detail::Exp2> exp2{};

/// e^x, any x: denormal results, 0 and infinity beyond the range; exactly 1 at 0; NaN stays NaN.
/// At most 1.5 ulp in float, 1.5 in double.
inline constexpr detail::Elementwise<detail::Exp> exp{};

/// 2^x for decays: x <= 127 (double: 1023; not checked, and meant for x <= 0). Exactly 1 at 0; exactly 0 from -126.5
/// (-1022.5) down to -infinity; NaN stays NaN. At most 1.5 ulp in float, 1.7 in double.
inline constexpr detail::Elementwise<detail::Exp2Decay> exp2_decay{};

/// 2^x for softmax weights: as exp2_decay, one polynomial degree less in float. At most 9 ulp in float (relative error
/// 6e-7), 1.7 in double.
inline constexpr detail::Elementwise<detail::Exp2Softmax> exp2_softmax{};

/// e^x for decays and gates: x <= 88 (double: 709; not checked, and meant for x <= 0). Exactly 1 at 0; exactly 0 from
/// -87.68 (-708.74) down to -infinity; NaN stays NaN. Needs a quarter fewer instructions than exp.
/// At most 1.5 ulp in float, 1.5 in double.
inline constexpr detail::Elementwise<detail::ExpDecay> exp_decay{};

/// e^x - 1, any x, without cancellation around 0. NaN stays NaN. At most 2.5 ulp in float, 2.5 in double.
inline constexpr detail::Elementwise<detail::Expm1> expm1{};

}  // namespace seqmix::inline SEQMIX_ARCH
