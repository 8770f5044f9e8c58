// Several exponentials at once, with their instructions mixed: a processor overlaps what stands near together, and not the
// whole of one exponential with the next.
#pragma once

#include <seqmix/simd/math_exp.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// Calls f with the coefficients of exp2_fraction.
template <class T, class F>
SEQMIX_ALWAYS_INLINE void with_exp2_coefficients(F&& f) {
  if constexpr (std::same_as<T, float>) {
    f(1.0f, 0.693147182f, 0.240226507f, 0.0555036068f, 0.00961789023f, 0.00133921998f, 0.000155718357f);
  } else {
    f(1.0, 0.69314718055994573, 0.24022650695910097, 0.0555041086647904, 0.0096181291076070027, 0.0013333558153439007,
      0.00015403530441571913, 1.5252727386049409e-05, 1.3215442675241801e-06, 1.0180647315962098e-07,
      7.0725704601418889e-09, 4.0781227418696e-10);
  }
}

/// y[i] = polynomial_of_pairs(x[i], square[i], first, second, more...), to the bit.
template <class T, class Arch, std::size_t N, class... More>
SEQMIX_ALWAYS_INLINE void polynomials_of_pairs(const xsimd::batch<T, Arch> (&x)[N],
                                               const xsimd::batch<T, Arch> (&square)[N], Batch<T, Arch> (&y)[N],
                                               T first, T second, More... more) {
  const auto pair = [&](auto i) SEQMIX_INLINE_LAMBDA -> Batch<T, Arch> {
    return xsimd::fma(x[i], Batch<T, Arch>(second), Batch<T, Arch>(first));
  };
  if constexpr (sizeof...(More) == 0) {
    unroll<Index(N)>([&](auto i) SEQMIX_INLINE_LAMBDA { y[i] = pair(i); });
  } else if constexpr (sizeof...(More) == 1) {
    unroll<Index(N)>([&](auto i)
                         SEQMIX_INLINE_LAMBDA { y[i] = xsimd::fma(square[i], Batch<T, Arch>(more...), pair(i)); });
  } else {
    polynomials_of_pairs(x, square, y, more...);
    unroll<Index(N)>([&](auto i) SEQMIX_INLINE_LAMBDA { y[i] = xsimd::fma(square[i], y[i], pair(i)); });
  }
}

template <bool normal>
struct Exp2ProductsEach {
  template <class T, class Arch, std::size_t N>
  SEQMIX_ALWAYS_INLINE void operator()(const xsimd::batch<T, Arch>& factor, xsimd::batch<T, Arch> (&x)[N]) const {
    using Bits = typename FloatFormat<T>::Bits;
    constexpr Index n = Index(N);
    constexpr T bias = T(FloatFormat<T>::exponent_bias);
    const auto magic = broadcast<Arch>(FloatFormat<T>::round_magic), half = broadcast<Arch>(T(0.5));
    Batch<T, Arch> shifted[N], square[N], y[N];
    const auto within = [](auto& z, const Batch<T, Arch>& least, const Batch<T, Arch>& most) SEQMIX_INLINE_LAMBDA {
      if constexpr (!normal) z = max_propagating(min_propagating(z, most), least);
    };
    unroll<n>([&](auto i) SEQMIX_INLINE_LAMBDA {
      shifted[i] = xsimd::fma(factor, x[i], magic);
      within(shifted[i], magic - broadcast<Arch>(bias), magic + broadcast<Arch>(bias + 1));
    });
    unroll<n>([&](auto i) SEQMIX_INLINE_LAMBDA {
      x[i] = xsimd::fms(factor, x[i], shifted[i] - magic);
      within(x[i], -half, half);
    });
    unroll<n>([&](auto i) SEQMIX_INLINE_LAMBDA { square[i] = x[i] * x[i]; });
    with_exp2_coefficients<T>([&](T first, auto... more) SEQMIX_INLINE_LAMBDA {
      polynomials_of_pairs(x, square, y, more...);
      unroll<n>([&](auto i) SEQMIX_INLINE_LAMBDA { y[i] = xsimd::fma(x[i], y[i], broadcast<Arch>(first)); });
    });
    unroll<n>([&](auto i) SEQMIX_INLINE_LAMBDA {
      constexpr auto bits = FloatFormat<T>::mantissa_bits;
      if constexpr (normal) {
        // A product, but by units of the processor that are not busy with the polynomials.
        x[i] = from_bits<T, Arch>(to_bits(y[i]) + (to_bits(shifted[i]) << bits));
      } else {
        x[i] = y[i] * from_bits<T, Arch>((to_bits(shifted[i]) + xsimd::batch<Bits, Arch>(Bits(bias))) << bits);
      }
    });
  }
};

}  // namespace detail

/// exp2_products_each(Batch<T> factor, Batch<T> (&x)[N]): x[i] = 2^(factor x[i]) for all i, with one rounding of the product
/// where the processor fuses multiply and add. Exactly 1 at 0; exactly 0 from -126.5 (double: -1022.5) down to -infinity;
/// infinity from 127.5 (1023.5) on; NaN stays NaN. At most 1.5 ulp in float, 1.7 in double, of 2 to the product so rounded.
/// Registers limit N to 2 or so.
inline constexpr detail::Exp2ProductsEach<false> exp2_products_each{};

/// The same, to the bit, for products of at most 125 (1021) in size (not checked; of others, and of NaN, it makes anything), in
/// two thirds of the time.
inline constexpr detail::Exp2ProductsEach<true> exp2_normal_products_each{};

}  // namespace seqmix::inline SEQMIX_ARCH
