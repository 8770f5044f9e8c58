// Activations and gates for batches and scalars of float and double: sigmoid, tanh, silu, softplus, logsigmoid, erf and
// both forms of gelu. Conventions as in math_exp.hpp.
#pragma once

#include <seqmix/simd/math_log.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

struct Sigmoid {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> evaluate(const xsimd::batch<T, Arch>& x) {
    const auto one = broadcast<Arch>(T(1));
    return divide(one, one + exp_negated(x));
  }
};

struct Silu {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> evaluate(const xsimd::batch<T, Arch>& x) {
    return divide(x, broadcast<Arch>(T(1)) + exp_negated(x));
  }
};

struct Tanh {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> evaluate(const xsimd::batch<T, Arch>& x) {
    // (e^2x - 1) / (e^2x + 1) with e^2x - 1 = 2^n p + (2^n - 1), p = e^f - 1: accurate around 0 without a case.
    // Beyond the bound the result has rounded to 1.
    const auto bound = broadcast<Arch>(sizeof(T) == 4 ? T(9.2) : T(20));
    const auto bounded = min_propagating(max_propagating(x, -bound), bound);
    const ExpReduction<false, FloatFormat<T>::exponent_bias, T, Arch> reduced(bounded + bounded);
    const auto& f = reduced.fraction;
    const auto scale = power_of_two(reduced.shifted);
    const auto p = expm1_fraction(f);
    const auto one = broadcast<Arch>(T(1));
    return divide(xsimd::fma(p, scale, scale - one), xsimd::fma(p, scale, scale + one));
  }
};

struct Softplus {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> evaluate(const xsimd::batch<T, Arch>& x) {
    return max_propagating(x, broadcast<Arch>(T(0))) + log1p_unit(exp_nonpositive(-xsimd::abs(x)));
  }
};

struct LogSigmoid {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> evaluate(const xsimd::batch<T, Arch>& x) {
    return min_propagating(x, broadcast<Arch>(T(0))) - log1p_unit(exp_nonpositive(-xsimd::abs(x)));
  }
};

/// erfc(a / sqrt(2)) / (2 e^(-a^2/2)) for 0 <= a <= 14 (double: 39) as t times a polynomial, t = 1 / (1 + slope a).
/// In float the polynomial is in 1 - t = slope a t, which is more accurate around a = 0; in double it is in t, because
/// at the high degree the other would cancel in the tail.
template <class T, class Arch>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> tail_ratio(const xsimd::batch<T, Arch>& a) {
  const auto one = broadcast<Arch>(T(1));
  if constexpr (std::same_as<T, float>) {
    const auto scaled = a * broadcast<Arch>(0.3f);
    const auto t = divide(one, one + scaled);
    return t * polynomial(scaled * t, 0.5f, -0.829807281f, 0.618146777f, -0.0810297132f, -0.139710203f, 0.0233890507f,
                          0.00989052281f, 0.0716256201f, -0.0735757276f, 0.020758545f);
  } else {
    const auto t = one / xsimd::fma(a, broadcast<Arch>(0.25), one);
    return t * polynomial(t, 0.099735570102641849, 0.099735569929791462, 0.093502102821123506, 0.081035028084673361,
                          0.063505267359433473, 0.043226333059970465, 0.023544940410852581, 0.006298770992612516,
                          0.0011688771554502061, -0.022547464074311342, 0.042225962002060469, -0.10965482237344648,
                          0.19257941262523257, -0.22809639207672699, 0.14369847538441047, 0.10307989498179097,
                          -0.39306183626178565, 0.51355971337372264, -0.40619729525884202, 0.21042885056962998,
                          -0.070491333735313272, 0.013979028489677118, -0.0012546535626478841);
  }
}

/// e^(-factor a^2) for a >= 0, factor 1 or 1/2. Rounding a^2 would cost a^2/2 ulp: it is formed as the exact square of
/// the upper half of a's digits plus a rest.
template <class T, class Arch>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> exp_negated_square(const xsimd::batch<T, Arch>& a, T factor) {
  using Bits = typename FloatFormat<T>::Bits;
  constexpr Bits upper_half = ~Bits(0) << (sizeof(T) == 4 ? 12 : 27);
  const auto high = from_bits<T, Arch>(to_bits(a) & Batch<Bits, Arch>(upper_half));
  const auto scale = broadcast<Arch>(-factor);
  const auto exponent = max_propagating(scale * (high * high), broadcast<Arch>(ExpBounds<T>::lowest));
  const ExpReduction<false, FloatFormat<T>::exponent_bias, T, Arch> reduced(exponent);
  const auto rest = (a - high) * (a + high);
  return exp_fraction(xsimd::fma(scale, rest, reduced.fraction)) * power_of_two(reduced.shifted);
}

struct Erf {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> evaluate(const xsimd::batch<T, Arch>& x) {
    const auto one = broadcast<Arch>(T(1));
    // Beyond the bound the result has rounded to 1.
    const auto magnitude = min_propagating(xsimd::abs(x), broadcast<Arch>(sizeof(T) == 4 ? T(4.2) : T(6.2)));
    const auto square = magnitude * magnitude;
    const auto small = xsimd::fma(magnitude, series(square), magnitude);
    const auto tail =
        tail_ratio(magnitude * broadcast<Arch>(T(1.4142135623730951))) * exp_negated_square(magnitude, T(1));
    const auto large = xsimd::fnma(broadcast<Arch>(T(2)), tail, one);
    return xsimd::copysign(xsimd::select(magnitude < one, small, large), x);
  }

 private:
  /// erf(x) / x - 1 as a function of x^2, for |x| <= 1.
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> series(const xsimd::batch<T, Arch>& square) {
    if constexpr (std::same_as<T, float>) {
      return polynomial(square, 0.128379166f, -0.37612626f, 0.112835787f, -0.0268533472f, 0.0051871622f,
                        -0.00079978531f, 7.80690316e-05f);
    } else {
      return polynomial(square, 0.12837916709551259, -0.37612638903183748, 0.11283791670954857, -0.026866170645072903,
                        0.0052239776247809382, -0.00085483269787462498, 0.00012055331037042933, -1.4925593510203918e-05,
                        1.6460972867792408e-06, -1.6350025733547259e-07, 1.4657883087466361e-08,
                        -1.1365677755618263e-09, 5.9452804320380004e-11);
    }
  }
};

struct Gelu {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> evaluate(const xsimd::batch<T, Arch>& x) {
    const auto one = broadcast<Arch>(T(1));
    // Beyond the bound the tail is 0.
    const auto magnitude = min_propagating(xsimd::abs(x), broadcast<Arch>(sizeof(T) == 4 ? T(14) : T(39)));
    const auto ratio = tail_ratio(magnitude), power = exp_negated_square(magnitude, T(0.5));
    // x times the ratio first: the tail alone is denormal long before its product with x.
    return xsimd::select(x < broadcast<Arch>(T(0)), (x * ratio) * power, x * (one - ratio * power));
  }
};

struct GeluTanh {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> evaluate(const xsimd::batch<T, Arch>& x) {
    // (1 + tanh(u)) / 2 = 1 / (1 + e^-2u), 2u = sqrt(8/pi) (x + 0.044715 x^3)
    constexpr T slope = T(1.5957691216057308), cubic = T(1.5957691216057308 * 0.044715);
    const auto twice_u = x * xsimd::fma(x * x, broadcast<Arch>(cubic), broadcast<Arch>(slope));
    return divide(x, broadcast<Arch>(T(1)) + exp_negated(twice_u));
  }
};

}  // namespace detail

/// 1 / (1 + e^-x), any x; exactly 0 below -88.37 (double: -709.4), where the result would be denormal.
/// NaN stays NaN. At most 2.5 ulp in float, 2.5 in double.
inline constexpr detail::Elementwise<detail::Sigmoid> sigmoid{};

/// x / (1 + e^-x), any x; zero below -88.37 (double: -709.4), where it is above -4e-37 (-1e-305). NaN at -infinity
/// (infinity times zero) and for NaN. At most 2.5 ulp in float, 2.5 in double.
inline constexpr detail::Elementwise<detail::Silu> silu{};

/// The hyperbolic tangent, any x, accurate around 0. NaN stays NaN. At most 3.5 ulp in float, 3.5 in double.
inline constexpr detail::Elementwise<detail::Tanh> tanh{};

/// log(1 + e^x), any x, without overflow; exactly 0 below -87.68 (double: -708.74), where the result would be denormal.
/// NaN stays NaN. At most 2.5 ulp in float, 2.5 in double.
inline constexpr detail::Elementwise<detail::Softplus> softplus{};

/// log(sigmoid(x)) = -softplus(-x), any x, accurate in both tails; exactly 0 above 87.68 (double: 708.74).
/// NaN stays NaN. At most 2.5 ulp in float, 2.5 in double.
inline constexpr detail::Elementwise<detail::LogSigmoid> logsigmoid{};

/// The error function, any x. NaN stays NaN. At most 2 ulp in float, 2 in double.
inline constexpr detail::Elementwise<detail::Erf> erf{};

/// x (1 + erf(x / sqrt(2))) / 2, any x, with a relative error bound in the negative tail too; zero below -13.2
/// (double: -37.6), where it is denormal. NaN at -infinity (infinity times zero) and for NaN.
/// At most 8 ulp in float, 9 in double.
inline constexpr detail::Elementwise<detail::Gelu> gelu{};

/// x (1 + tanh(u)) / 2, u = sqrt(2/pi) (x + 0.044715 x^3), any x; zero where e^-2u overflows (x < -10, double: -21).
/// NaN at -infinity and for NaN. At most 4 + 6 |u| ulp: e^-2u amplifies the
/// rounding of u.
inline constexpr detail::Elementwise<detail::GeluTanh> gelu_tanh{};

}  // namespace seqmix::inline SEQMIX_ARCH
