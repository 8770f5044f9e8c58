// sincos for batches and scalars of float and double. Conventions as in math_exp.hpp.
#pragma once

#include <seqmix/simd/math_exp.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// What sincos returns.
template <class Value>
struct SinCos {
  Value sin, cos;
};

namespace detail {

struct SinCosKernel {
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE SinCos<Batch<T, Arch>> operator()(const xsimd::batch<T, Arch>& x) const {
    using Format = FloatFormat<T>;
    using Bits = typename Format::Bits;
    // pi/2 in three parts; the first two have so few bits that n times them is exact.
    constexpr T part0 = sizeof(T) == 4 ? T(1.5703125) : T(0x1.921fb54400000p+0);
    constexpr T part1 = sizeof(T) == 4 ? T(0.00048351287841796875) : T(0x1.0b4611a600000p-34);
    constexpr T part2 = sizeof(T) == 4 ? T(3.1391647326017846e-07) : T(0x1.3198a2e037073p-69);
    const auto magic = broadcast<Arch>(Format::round_magic);
    const auto shifted = xsimd::fma(x, broadcast<Arch>(T(0.63661977236758134)), magic);
    const auto n = shifted - magic;
    auto f = xsimd::fnma(n, broadcast<Arch>(part0), x);
    f = xsimd::fnma(n, broadcast<Arch>(part1), f);
    f = xsimd::fnma(n, broadcast<Arch>(part2), f);

    const auto square = f * f;
    const auto sin = xsimd::fma(f * square, sin_series(square), f);
    const auto cos = xsimd::fma(square * square, cos_series(square),
                                xsimd::fnma(square, broadcast<Arch>(T(0.5)), broadcast<Arch>(T(1))));

    // Quadrant n mod 4: odd ones exchange sine and cosine, 2 and 3 negate the sine, 1 and 2 the cosine.
    const auto quadrant = to_bits(shifted);
    constexpr int to_sign = static_cast<int>(sizeof(Bits)) * 8 - 2;
    const Batch<Bits, Arch> one(Bits(1)), two(Bits(2));
    const auto odd = xsimd::batch_bool_cast<T>((quadrant & one) == one);
    const auto sin_sign = from_bits<T, Arch>((quadrant & two) << to_sign);
    const auto cos_sign = from_bits<T, Arch>(((quadrant + one) & two) << to_sign);
    return {xsimd::select(odd, cos, sin) ^ sin_sign, xsimd::select(odd, sin, cos) ^ cos_sign};
  }

  template <std::floating_point T>
  SEQMIX_ALWAYS_INLINE SinCos<T> operator()(T x) const {
    const auto both = (*this)(broadcast(x));
    return {both.sin.get(0), both.cos.get(0)};
  }

 private:
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> sin_series(const xsimd::batch<T, Arch>& square) {
    if constexpr (std::same_as<T, float>) {
      return polynomial(square, -0.166666552f, 0.00833218731f, -0.00019517896f);
    } else {
      return polynomial(square, -0.1666666666666663, 0.0083333333333218407, -0.00019841269829358503,
                        2.7557313538492232e-06, -2.505073438344601e-08, 1.5895432818302604e-10);
    }
  }
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> cos_series(const xsimd::batch<T, Arch>& square) {
    if constexpr (std::same_as<T, float>) {
      return polynomial(square, 0.0416666456f, -0.00138873095f, 2.44323273e-05f);
    } else {
      return polynomial(square, 0.041666666666666595, -0.0013888888888873338, 2.4801587288997482e-05,
                        -2.755731421529825e-07, 2.0875705114657976e-09, -1.1358732743887792e-11);
    }
  }
};

}  // namespace detail

/// sincos(x) gives {sin, cos} of x radians, |x| <= 10,000 in float and 1,000,000 in double (beyond: no promise; callers
/// with larger angles reduce them in double first). NaN and infinity give NaN.
/// Absolute error at most 2^-23 in float, 2^-52 in double; for |x| <= pi/4 at most 2 ulp of each result.
inline constexpr detail::SinCosKernel sincos{};

}  // namespace seqmix::inline SEQMIX_ARCH
