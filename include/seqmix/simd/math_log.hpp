// log and log1p for batches and scalars of float and double. Conventions as in math_exp.hpp.
#pragma once

#include <seqmix/simd/math_exp.hpp>

#include <bit>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// A positive normal u = 2^exponent * mantissa, sqrt(1/2) <= mantissa < sqrt(2).
template <class T, class Arch>
struct LogReduction {
  using Format = FloatFormat<T>;
  using Bits = typename Format::Bits;
  Batch<T, Arch> exponent, mantissa;

  SEQMIX_ALWAYS_INLINE explicit LogReduction(const xsimd::batch<T, Arch>& u) {
    constexpr Bits sqrt_half = std::bit_cast<Bits>(T(0.70710678118654752));
    constexpr Bits bias = static_cast<Bits>(Format::exponent_bias) << Format::mantissa_bits;
    constexpr Bits mantissa_mask = (Bits(1) << Format::mantissa_bits) - 1;
    // An integer below 2^mantissa_bits becomes a float by or-ing it into the mantissa of 2^mantissa_bits: unlike a
    // conversion, every instruction set has this for 64 bits too.
    constexpr T integer_magic = T(Bits(1) << Format::mantissa_bits);
    const auto shifted = to_bits(u) + Batch<Bits, Arch>(bias - sqrt_half);
    const auto biased = (shifted >> Format::mantissa_bits) | Batch<Bits, Arch>(std::bit_cast<Bits>(integer_magic));
    exponent = from_bits<T, Arch>(biased) - broadcast<Arch>(integer_magic + T(Format::exponent_bias));
    mantissa = from_bits<T, Arch>((shifted & Batch<Bits, Arch>(mantissa_mask)) + Batch<Bits, Arch>(sqrt_half));
  }
};

/// exponent * ln(2) + log(1 + f) for sqrt(1/2) <= 1 + f < sqrt(2).
template <class T, class Arch>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> log_combine(const xsimd::batch<T, Arch>& exponent, const xsimd::batch<T, Arch>& f) {
  using Ln2 = ExpReduction<false, 0, T, Arch>;
  const auto ln2_high = broadcast<Arch>(Ln2::ln2_high), ln2_low = broadcast<Arch>(Ln2::ln2_low);
  if constexpr (std::same_as<T, float>) {
    // log(1 + f) = f - f^2/2 + f^3 P(f)
    const auto square = f * f;
    auto tail = f * square *
                polynomial(f, 0.333333313f, -0.250008225f, 0.200012609f, -0.166233346f, 0.142009467f, -0.131595001f,
                           0.127669275f, -0.0764307752f);
    tail = xsimd::fma(exponent, ln2_low, tail);
    tail = xsimd::fnma(square, broadcast<Arch>(0.5f), tail);
    return xsimd::fma(exponent, ln2_high, f + tail);
  } else {
    // log(1 + f) = 2 atanh(s) = f - f^2/2 + s (f^2/2 + R(s^2)), s = f / (2 + f)
    const auto s = f / (f + broadcast<Arch>(2.0));
    const auto square = s * s;
    const auto series =
        square * polynomial(square, 0.6666666666666734, 0.39999999999416413, 0.28571428742112276, 0.22222198593803388,
                            0.18183563548495879, 0.15314064506864825, 0.14795859231537201);
    const auto half_square = broadcast<Arch>(0.5) * f * f;
    const auto correction = xsimd::fma(s, half_square + series, exponent * ln2_low);
    return xsimd::fma(exponent, ln2_high, f - (half_square - correction));
  }
}

/// `result` where 0 < u < infinity, else what log(u) is there.
template <class T, class Arch>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> log_edges(const xsimd::batch<T, Arch>& u, const xsimd::batch<T, Arch>& result) {
  const auto zero = broadcast<Arch>(T(0));
  const auto infinity = broadcast<Arch>(std::numeric_limits<T>::infinity());
  const auto nan = broadcast<Arch>(std::numeric_limits<T>::quiet_NaN());
  const auto edge = xsimd::select(u == zero, -infinity, xsimd::select(u > zero, infinity, nan));
  return xsimd::select((u > zero) & (u < infinity), result, edge);
}

struct Log {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> evaluate(const xsimd::batch<T, Arch>& x) {
    constexpr T shift = T(FloatFormat<T>::mantissa_bits + 1);
    constexpr T scale = T(std::uint64_t(1) << (FloatFormat<T>::mantissa_bits + 1));
    const auto denormal = x < broadcast<Arch>(std::numeric_limits<T>::min());
    const LogReduction<T, Arch> reduced(xsimd::select(denormal, x * broadcast<Arch>(scale), x));
    const auto exponent = reduced.exponent - xsimd::select(denormal, broadcast<Arch>(shift), broadcast<Arch>(T(0)));
    return log_edges(x, log_combine(exponent, reduced.mantissa - broadcast<Arch>(T(1))));
  }
};

struct Log1p {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> evaluate(const xsimd::batch<T, Arch>& x) {
    using Format = FloatFormat<T>;
    // u + low = 1 + x exactly (Knuth's two-sum), and with u = 2^e m: 1 + x = 2^e (1 + (m - 1) + 2^-e low).
    const auto one = broadcast<Arch>(T(1));
    const auto u = one + x;
    const auto rest = u - one;
    const auto low = (one - (u - rest)) + (x - rest);
    const LogReduction<T, Arch> reduced(u);
    // 2^(2-e) is normal for every e up to bias + 1, 2^-e is not.
    const auto magic = broadcast<Arch>(Format::round_magic + T(Format::exponent_bias + 2));
    const auto scale = power_of_two(magic - reduced.exponent);
    const auto f = xsimd::fma(low * scale, broadcast<Arch>(T(0.25)), reduced.mantissa - one);
    return log_edges(u, log_combine(reduced.exponent, f));
  }
};

/// log(1 + y) for 0 <= y <= 1. NaN stays NaN.
template <class T, class Arch>
SEQMIX_ALWAYS_INLINE Batch<T, Arch> log1p_unit(const xsimd::batch<T, Arch>& y) {
  if constexpr (std::same_as<T, float>) {
    const auto series = polynomial(y, -0.499999881f, 0.333327144f, -0.249888644f, 0.198996231f, -0.161351711f,
                                   0.124795295f, -0.0832389519f, 0.0421148241f, -0.0136916712f, 0.00208454439f);
    return xsimd::fma(y * y, series, y);
  } else {
    const auto s = y / (y + broadcast<Arch>(2.0));
    const auto square = s * s;
    const auto series =
        square * polynomial(square, 0.66666666666666674, 0.39999999999995361, 0.2857142857233877, 0.22222222136534334,
                            0.18181822778275766, 0.15384462244610378, 0.13336643103473292, 0.11717615147562939,
                            0.10961916531664198, 0.070329868727584038, 0.16406486942168058);
    const auto half_square = broadcast<Arch>(0.5) * y * y;
    return y - xsimd::fnma(s, half_square + series, half_square);
  }
}

}  // namespace detail

/// The natural logarithm of any x, denormals included: -infinity at 0, NaN below and for NaN.
/// At most 1.5 ulp in float, 1.5 in double.
inline constexpr detail::Elementwise<detail::Log> log{};

/// log(1 + x) for any x, without cancellation around 0: -infinity at -1, NaN below and for NaN; log1p(-0) is +0.
/// At most 1.5 ulp in float, 1.5 in double.
inline constexpr detail::Elementwise<detail::Log1p> log1p{};

}  // namespace seqmix::inline SEQMIX_ARCH
