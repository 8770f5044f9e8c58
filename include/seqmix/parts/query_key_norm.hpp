// Normalisation of queries and keys, row by row as a linear recurrence reads them: maps for the query_map and key_map of
// its problem.
//
//   Source    Yang et al. 2024, arXiv:2406.06484, section 3.3 (l2); Schlag et al. 2021, arXiv:2102.11174, section 4.2
//             (sum); fla-org/flash-linear-attention, fla/modules/l2norm.py
#pragma once

#include <cmath>
#include <seqmix/core/view.hpp>
#include <seqmix/parts/row.hpp>
#include <seqmix/simd/arch.hpp>
#include <seqmix/simd/batch.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// How the rows of queries and keys are normalised, over the key channels of one head:
/// none, l2: x / sqrt(sum(x^2) + 1e-6), or sum: x / sum(x).
enum class QueryKeyNorm { none, l2, sum };

namespace detail {

/// to[i] = factor * from[i] for i < count, and zeros up to whole vectors.
template <class T>
void scale_padded_row(const T* from, Index count, T factor, T* to) {
  const Index whole = count / lanes<T> * lanes<T>;
  for (Index i = 0; i < whole; i += lanes<T>) store(to + i, load(from + i) * broadcast(factor));
  if (whole < count) {
    store(to + whole, broadcast(T(0)));
    store_partial(to + whole, load_partial(from + whole, count - whole) * broadcast(factor), count - whole);
  }
}

template <class T>
void l2_normalize_padded_row(const T* from, Index count, T scale, T* to) {
  constexpr T epsilon = T(1e-6);  // the one of every implementation of these layers
  const T squares = sum_row(
      count, [](const Batch<T>& x) SEQMIX_INLINE_LAMBDA { return x * x; }, from);
  scale_padded_row(from, count, scale / std::sqrt(squares + epsilon), to);
}

template <class T>
void sum_normalize_padded_row(const T* from, Index count, T scale, T* to) {
  const T sum = sum_row(
      count, [](const Batch<T>& x) SEQMIX_INLINE_LAMBDA { return x; }, from);
  scale_padded_row(from, count, scale / sum, to);
}

}  // namespace detail

/// The function that writes scale * normalised(from[0 .. count)) to `to`, and zeros up to whole vectors.
template <class T>
auto query_key_norm_map(QueryKeyNorm norm) {
  return norm == QueryKeyNorm::l2    ? &detail::l2_normalize_padded_row<T>
         : norm == QueryKeyNorm::sum ? &detail::sum_normalize_padded_row<T>
                                     : &detail::scale_padded_row<T>;
}

}  // namespace seqmix::inline SEQMIX_ARCH
