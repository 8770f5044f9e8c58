// Features of queries and keys whose product is a polynomial of the product of the query and the key: maps for the query_map
// and key_map of a linear recurrence.
//
// With s = scale q . k, the products x_i x_j of keys (i <= j, each pair once), the keys and 1 are features of keys, and the
// same of queries, with the coefficients of the polynomial, those of queries. So the rows of the memory are moments of the
// keys, sum k_i k_j v^T, sum k_i v^T and sum v^T, in this order, those of second degree as symmetric_products packs them.
#pragma once

#include <seqmix/parts/symmetric_products.hpp>
#include <seqmix/simd/row_map.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Polynomials of s, as policies. features(d) is the number of features of d numbers.
namespace polynomial {

/// 1 + s + s^2 / 2, the exponential to second order.
struct Taylor {
  static constexpr double square = 0.5;      ///< coefficient of s^2
  static constexpr bool lower_terms = true;  ///< s and 1 take part, with the coefficient 1
  static constexpr bool vanishes = false;    ///< for some s
  static constexpr Index features(Index count) { return symmetric_products_of(count) + count + 1; }
};

/// s^2.
struct Square {
  static constexpr double square = 1;
  static constexpr bool lower_terms = false;
  static constexpr bool vanishes = true;
  static constexpr Index features(Index count) { return symmetric_products_of(count); }
};

}  // namespace polynomial

namespace detail {

/// The features of x[0 .. count), those of each degree times its factor, and zeros up to whole vectors.
template <class Polynomial, class T>
void map_polynomial_row(const T* x, Index count, T square, T mixed, T linear, T constant, T* to) {
  constexpr Index width = lanes<T>;
  const Index features = Polynomial::features(count), capacity = (features + width - 1) / width * width;
  symmetric_products(x, count, square, mixed, to, capacity);
  if constexpr (Polynomial::lower_terms) {
    const Index begin = symmetric_products_of(count);
    for (Index i = 0; i < count; i += width) {
      const Batch<T> numbers = i + width <= count ? load(x + i) : load_partial(x + i, count - i);
      store_products(numbers * broadcast(linear), count - i, to + begin + i, capacity - begin - i);
    }
    to[begin + count] = constant;
  }
  for (Index i = features; i < capacity; ++i) to[i] = T(0);
}

/// The features of a key, which are the moments that the memory holds.
template <class Polynomial, class T>
void map_polynomial_key(const void* /*parameters*/, const T* key, Index count, T scale, T* to) {
  map_polynomial_row<Polynomial>(key, count, scale, scale, scale, scale, to);
}

/// The features of a query; the parameter is the scale of s.
template <class Polynomial, class T>
void map_polynomial_query(const void* parameters, const T* query, Index count, T scale, T* to) {
  const T linear = *static_cast<const T*>(parameters), square = T(Polynomial::square) * linear * linear;
  map_polynomial_row<Polynomial>(query, count, scale * square, scale * 2 * square, scale * linear, scale, to);
}

}  // namespace detail

/// The map of keys.
template <class T, class Polynomial>
inline constexpr RowMap<T> polynomial_key_map = {&detail::map_polynomial_key<Polynomial, T>};

/// The map of queries, for s = scale q . k. `scale` must outlive the calls that the map is given to.
template <class Polynomial, class T>
RowMap<T> polynomial_query_map(const T& scale) {
  return {&detail::map_polynomial_query<Polynomial, T>, &scale};
}

}  // namespace seqmix::inline SEQMIX_ARCH
