// The products of all pairs of numbers of a row, each pair once: what a memory must hold so that the square of the product
// of a query and a key can be read from it.
#pragma once

#include <algorithm>
#include <cassert>
#include <seqmix/core/view.hpp>
#include <seqmix/simd/arch.hpp>
#include <seqmix/simd/batch.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Number of products x_i x_j, i <= j, of `count` numbers.
constexpr Index symmetric_products_of(Index count) { return count * (count + 1) / 2; }

/// Most numbers that symmetric_products takes.
inline constexpr Index most_symmetric_numbers = 256;

namespace detail {

/// Stores `pairs` products or, where there is room for it, a whole vector: what that writes beyond a row of products, the
/// next row overwrites.
template <class T>
SEQMIX_ALWAYS_INLINE void store_products(const Batch<T>& products, Index pairs, T* to, Index room) {
  if (room >= lanes<T>) {
    store(to, products);
  } else {
    store_partial(to, products, std::min(pairs, lanes<T>));
  }
}

/// symmetric_products of numbers that fill `Vectors` vectors. Partners come from turning the row round by one number for
/// each lag: read from memory, they would have to wait for what was just stored there.
template <Index Vectors, class T>
void symmetric_products_of_vectors(const T* x, T square, T mixed, T* to, Index capacity) {
  constexpr Index width = lanes<T>, count = Vectors * width;
  Batch<T> numbers[Vectors], partners[Vectors];
  unroll<Vectors>([&](auto v) SEQMIX_INLINE_LAMBDA {
    numbers[v] = partners[v] = load(x + v * width);
    store(to + v * width, numbers[v] * broadcast(square) * numbers[v]);
    numbers[v] *= broadcast(mixed);
  });
  const auto turn = [&]() SEQMIX_INLINE_LAMBDA {
    const Batch<T> first = partners[0];
    unroll<Vectors - 1>([&](auto v) SEQMIX_INLINE_LAMBDA { partners[v] = next_lanes(partners[v], partners[v + 1]); });
    partners[Vectors - 1] = next_lanes(partners[Vectors - 1], first);
  };
  for (Index lag = 1; 2 * lag < count; ++lag) {
    turn();
    to += count, capacity -= count;
    unroll<Vectors>([&](auto v) SEQMIX_INLINE_LAMBDA { store(to + v * width, numbers[v] * partners[v]); });
  }
  turn();
  to += count, capacity -= count;
  unroll<(Vectors + 1) / 2>([&](auto v) SEQMIX_INLINE_LAMBDA {
    store_products(numbers[v] * partners[v], count / 2 - v * width, to + v * width, capacity - v * width);
  });
}

/// symmetric_products of any numbers.
template <class T>
void symmetric_products_in_memory(const T* x, Index count, T square, T mixed, T* to, Index capacity) {
  constexpr Index width = lanes<T>;
  T twice[2 * most_symmetric_numbers];  // x, x again, and zeros to whole vectors
  for (Index i = 0; i < count; i += width) {
    store(twice + i, i + width <= count ? load(x + i) : load_partial(x + i, count - i));
  }
  for (Index i = 0; i < count; i += width) store(twice + count + i, load(twice + i));
  for (Index lag = 0; 2 * lag <= count; ++lag) {
    const Index pairs = 2 * lag == count ? lag : count;
    const Batch<T> factor = broadcast(lag == 0 ? square : mixed);
    for (Index i = 0; i < pairs; i += width) {
      store_products(load(twice + i) * factor * load(twice + i + lag), pairs - i, to + i, capacity - i);
    }
    to += pairs, capacity -= pairs;
  }
}

}  // namespace detail

/// Writes the symmetric_products_of(count) products of x[0 .. count): first square * x_i^2 for every i, then, for each lag
/// from 1 to count / 2, mixed * x_i x_j with j = (i + lag) mod count for every i (for lag count / 2 of an even count: for the
/// first half). So all rows but the last are as long as x is. May write beyond the last product, but not beyond
/// to[0 .. capacity). 1 <= count <= most_symmetric_numbers, symmetric_products_of(count) <= capacity.
template <class T>
void symmetric_products(const T* x, Index count, T square, T mixed, T* to, Index capacity) {
  assert(count >= 1 && count <= most_symmetric_numbers && symmetric_products_of(count) <= capacity);
  if (count == lanes<T>) {
    detail::symmetric_products_of_vectors<1>(x, square, mixed, to, capacity);
  } else if (count == 2 * lanes<T>) {
    detail::symmetric_products_of_vectors<2>(x, square, mixed, to, capacity);
  } else if (count == 4 * lanes<T>) {
    detail::symmetric_products_of_vectors<4>(x, square, mixed, to, capacity);
  } else {
    detail::symmetric_products_in_memory(x, count, square, mixed, to, capacity);
  }
}

}  // namespace seqmix::inline SEQMIX_ARCH
