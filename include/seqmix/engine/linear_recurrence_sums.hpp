// Sums over all tokens that keep their digits, however many tokens there are: memories without decay, or with hardly any, and
// sums of keys.
//
// Such a sum is held in two parts. Tokens read settled + recent and are added to the recent part, which stays small and so
// exact; after every settle_interval tokens it is moved into the settled part, and what rounding the new sum takes away
// stays behind as the beginning of the next recent part. So errors don't grow with the number of tokens.
#pragma once

#include <algorithm>
#include <limits>
#include <seqmix/engine/linear_recurrence_fading.hpp>
#include <seqmix/engine/linear_recurrence_problem.hpp>
#include <seqmix/parts/row.hpp>
#include <seqmix/simd/batch.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// Tokens, about, that the recent part of a sum takes before it is moved into the settled one. More would lose digits: a
/// sum of n equal numbers is up to n / 2 units in the last place off. Fewer would cost time: moving it takes about as long
/// as a pass over the memory.
inline constexpr Index settle_interval = 256;

/// Moves recent[0 .. count) into settled[0 .. count) as far as it is large enough to count there.
template <class T>
SEQMIX_ALWAYS_INLINE void settle(T* recent, T* settled, Index count) {
  constexpr Index width = lanes<T>;
  Index i = 0;
  for (; i + width <= count; i += width) {
    const auto [sum, error] = two_sum<T>(load(settled + i), load(recent + i));
    store(settled + i, sum);
    store(recent + i, error);
  }
  if (i < count) {
    const auto [sum, error] = two_sum<T>(load_partial(settled + i, count - i), load_partial(recent + i, count - i));
    store_partial(settled + i, sum, count - i);
    store_partial(recent + i, error, count - i);
  }
}

/// Multiplies the settled part of a sum by `factor`, the recent one having been: 1, but at few tokens.
template <class T>
SEQMIX_ALWAYS_INLINE void rescale(T* settled, Index count, T factor) {
  if (factor == T(1)) [[likely]]
    return;
  map_row(
      count, settled, [&](const Batch<T>& x) SEQMIX_INLINE_LAMBDA { return x * broadcast(factor); },
      static_cast<const T*>(settled));
}

/// x, and 0 where that has become infinite: it stays so, and loses nothing.
template <class T>
SEQMIX_ALWAYS_INLINE Batch<T> finite_or_zero(const Batch<T>& x) {
  const Batch<T> zero = broadcast(T(0));
  return select(abs(x) == broadcast(std::numeric_limits<T>::infinity()), zero, x);
}

/// The same for a panel [key_dim][2 vectors] whose rows decay by factors[0 .. lanes), the next ones by those `stride` further
/// on. What a row loses, where that is little, is taken from its recent part, which has the digits for it.
template <class T>
[[gnu::noinline]] void decay_settled(T* recent, T* settled, Index key_dim, const T* factors, Index stride) {
  constexpr Index width = lanes<T>, columns = 2 * width;
  for (Index first = 0; first < key_dim; first += width, factors += stride) {
    if (all(load(factors) == broadcast(T(1)))) continue;
    for (Index i = first; i < std::min(first + width, key_dim); ++i) {
      const T factor = factors[i - first];
      for (Index j = i * columns; j < (i + 1) * columns; j += width) {
        const Batch<T> x = load(settled + j);
        if (factor > T(1) - strong_decay<T>) {
          store(recent + j, fma(finite_or_zero(x), broadcast(factor - T(1)), load(recent + j)));
        } else {
          store(settled + j, x * broadcast(factor));
        }
      }
    }
  }
}

/// Head h of the normalizer's sum in a kernel's scratch: [recent, padded key_dim][settled, padded key_dim]. With a decay all
/// of it is recent: it forgets rounding errors as it forgets keys.
template <class Decay, class T>
void load_key_sum(const normalizer::KeySum<T>& from, Index h, T* key_sum) {
  const Index key_dim = from.sum.channels(), pitch = padded<T>(key_dim);
  std::fill_n(key_sum, 2 * pitch, T(0));
  std::copy_n(from.sum.row(h), key_dim, key_sum + (Decay::any ? 0 : pitch));
  if (!Decay::any && from.compensation.data()) std::copy_n(from.compensation.row(h), key_dim, key_sum);
}

/// And back.
template <class Decay, class T>
void save_key_sum(T* key_sum, const normalizer::KeySum<T>& to, Index h) {
  const Index key_dim = to.sum.channels(), pitch = padded<T>(key_dim);
  if (!Decay::any) settle(key_sum, key_sum + pitch, pitch);
  std::copy_n(key_sum + (Decay::any ? 0 : pitch), key_dim, to.sum.row(h));
  if (!Decay::any && to.compensation.data()) std::copy_n(key_sum, key_dim, to.compensation.row(h));
}

/// What tokens read of vector i of a sum of keys whose recent part is z.
template <class Decay, class T>
SEQMIX_ALWAYS_INLINE Batch<T> whole_key_sum(const Batch<T>& z, const T* key_sum, Index pitch, Index i) {
  if constexpr (Decay::any) {
    return z;
  } else {
    return z + load(key_sum + pitch + i);
  }
}

}  // namespace detail

}  // namespace seqmix::inline SEQMIX_ARCH
