// Several exponentials at once, with their instructions mixed: a processor overlaps what stands near together, and not the
// whole of one exponential with the next. The results are those of math_exp.hpp, to the bit.
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

struct Exp2DecayEach {
  template <class T, class Arch, std::size_t N>
  SEQMIX_ALWAYS_INLINE void operator()(xsimd::batch<T, Arch> (&x)[N]) const {
    constexpr Index n = Index(N);
    constexpr T bias = T(FloatFormat<T>::exponent_bias);
    const auto magic = broadcast<Arch>(FloatFormat<T>::round_magic + bias);
    Batch<T, Arch> shifted[N], square[N], y[N];
    unroll<n>([&](auto i) SEQMIX_INLINE_LAMBDA { x[i] = max_propagating(x[i], broadcast<Arch>(-bias)); });
    unroll<n>([&](auto i) SEQMIX_INLINE_LAMBDA { shifted[i] = x[i] + magic; });
    unroll<n>([&](auto i) SEQMIX_INLINE_LAMBDA { x[i] = x[i] - (shifted[i] - magic); });
    unroll<n>([&](auto i) SEQMIX_INLINE_LAMBDA { square[i] = x[i] * x[i]; });
    with_exp2_coefficients<T>([&](T first, auto... more) SEQMIX_INLINE_LAMBDA {
      polynomials_of_pairs(x, square, y, more...);
      unroll<n>([&](auto i) SEQMIX_INLINE_LAMBDA { y[i] = xsimd::fma(x[i], y[i], broadcast<Arch>(first)); });
    });
    unroll<n>([&](auto i) SEQMIX_INLINE_LAMBDA { x[i] = y[i] * power_of_two(shifted[i]); });
  }
};

}  // namespace detail

/// exp2_decay_each(Batch<T> (&x)[N]): x[i] = exp2_decay(x[i]) for all i. Registers limit N to 2 or so.
inline constexpr detail::Exp2DecayEach exp2_decay_each{};

}  // namespace seqmix::inline SEQMIX_ARCH
