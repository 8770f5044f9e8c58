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
#include <seqmix/simd/row_map.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// How the rows of queries and keys are normalised, over the key channels of one head:
/// none, l2: x / sqrt(sum(x^2) + epsilon), or sum: x / sum(x).
struct QueryKeyNorm {
  enum class Kind { none, l2, sum };

  Kind kind = Kind::none;
  double epsilon = 1e-6;

  static const QueryKeyNorm none, l2, sum;  ///< with the epsilon of every implementation of these layers

  bool operator==(const QueryKeyNorm&) const = default;
};

inline constexpr QueryKeyNorm QueryKeyNorm::none{};
inline constexpr QueryKeyNorm QueryKeyNorm::l2{.kind = Kind::l2};
inline constexpr QueryKeyNorm QueryKeyNorm::sum{.kind = Kind::sum};

namespace detail {

/// to[i] = factor * from[i] for i < count, and zeros up to whole vectors. `to` may be `from`.
template <class T>
void scale_padded_row(const T* from, Index count, T factor, T* to) {
  const Index whole = count / lanes<T> * lanes<T>;
  for (Index i = 0; i < whole; i += lanes<T>) store(to + i, load(from + i) * broadcast(factor));
  if (whole < count) {
    const Batch<T> rest = load_partial(from + whole, count - whole) * broadcast(factor);
    store(to + whole, broadcast(T(0)));
    store_partial(to + whole, rest, count - whole);
  }
}

template <class T>
void l2_normalize_padded_row(const void* norm, const T* from, Index count, T scale, T* to) {
  const T epsilon = T(static_cast<const QueryKeyNorm*>(norm)->epsilon);
  const T squares = sum_row(
      count, [](const Batch<T>& x) SEQMIX_INLINE_LAMBDA { return x * x; }, from);
  scale_padded_row(from, count, scale / std::sqrt(squares + epsilon), to);
}

template <class T>
void sum_normalize_padded_row(const void* /*norm*/, const T* from, Index count, T scale, T* to) {
  const T sum = sum_row(
      count, [](const Batch<T>& x) SEQMIX_INLINE_LAMBDA { return x; }, from);
  scale_padded_row(from, count, scale / sum, to);
}

}  // namespace detail

/// The map that normalises rows. `norm` must outlive the calls that the map is given to.
template <class T>
RowMap<T> query_key_norm_map(const QueryKeyNorm& norm) {
  switch (norm.kind) {
    case QueryKeyNorm::Kind::l2:
      return {&detail::l2_normalize_padded_row<T>, &norm};
    case QueryKeyNorm::Kind::sum:
      return {&detail::sum_normalize_padded_row<T>, &norm};
    case QueryKeyNorm::Kind::none:
      break;
  }
  return {};
}

}  // namespace seqmix::inline SEQMIX_ARCH
