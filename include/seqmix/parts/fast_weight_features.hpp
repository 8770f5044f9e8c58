// The features that fast weight programmers make of queries and keys, row by row as a linear recurrence reads them.
//
//   Source    Schlag, Irie and Schmidhuber 2021, arXiv:2102.11174 (dpfp, sum normalisation); Katharopoulos et al. 2020,
//             arXiv:2006.16236 (elu1)
//   Glossary  d channels of a query or key   F features
//
// elu1   elu(x) + 1, F = d
// dpfp   r = [max(x, 0), max(-x, 0)],   f_i[j] = r[j] r[j - i mod 2d],   f = f_1 .. f_nu side by side, F = 2 d nu
#pragma once

#include <algorithm>
#include <seqmix/core/view.hpp>
#include <seqmix/parts/feature_map.hpp>
#include <seqmix/parts/query_key_norm.hpp>
#include <seqmix/parts/row.hpp>
#include <seqmix/simd/row_map.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Which features.
struct FastWeightFeatures {
  enum class Kind { elu1, dpfp };

  Kind kind = Kind::elu1;
  Index nu = 1;          ///< of dpfp, at least 1
  bool sum_norm = true;  ///< features over their sum: |k| <= 1, so the memory is stable for any length
  /// Features that all vanish stay 0; else 0 / 0 makes them NaN, as in the authors' code. Under dpfp with nu = 1 and
  /// odd d that happens to rows whose signs alternate.
  bool keep_zeros = false;

  /// F for rows of `channels` numbers.
  constexpr Index size(Index channels) const { return kind == Kind::elu1 ? channels : 2 * channels * nu; }

  bool operator==(const FastWeightFeatures&) const = default;
};

namespace detail {

/// to[n] = max(a_sign a[n], 0) max(b_sign b[n], 0) for n < count.
template <class T>
void multiply_halves(const T* a, T a_sign, const T* b, T b_sign, Index count, T* to) {
  const auto product = [&](const Batch<T>& x, const Batch<T>& y) SEQMIX_INLINE_LAMBDA {
    const Batch<T> zero = broadcast(T(0));
    return max_propagating(x * broadcast(a_sign), zero) * max_propagating(y * broadcast(b_sign), zero);
  };
  if (count < lanes<T>) {
    map_row(count, to, product, a, b);
    return;
  }
  // The last vector overlaps the one before: what it computes again comes out the same.
  for (Index n = 0; n < count; n += lanes<T>) {
    const Index i = std::min(n, count - lanes<T>);
    store(to + i, product(load(a + i), load(b + i)));
  }
}

/// to = f of x [d], 2 d nu numbers. With i = a d + c, feature j = s d + n of f_i is the product of channel n in half s
/// of r and channel n - c in half s - a, or where n < c channel n - c + d in the half before.
template <class T>
void dpfp_row(const T* x, Index d, Index nu, T* to) {
  for (Index i = 1; i <= nu; ++i) {
    const Index a = i % (2 * d) / d, c = i % d;
    for (Index s = 0; s < 2; ++s, to += d) {
      const T sign = s == 0 ? T(1) : T(-1), other = s == a ? T(1) : T(-1);
      multiply_halves(x, sign, x + d - c, -other, c, to);
      multiply_halves(x + c, sign, x, other, d - c, to + c);
    }
  }
}

template <class T>
void fast_weight_features_padded_row(const void* parameters, const T* from, Index count, T scale, T* to) {
  const auto& features = *static_cast<const FastWeightFeatures*>(parameters);
  const bool elementwise = features.kind == FastWeightFeatures::Kind::elu1;
  const Index size = features.size(count);
  if (elementwise) {
    map_padded_row<T, feature_map::Elu1>(nullptr, from, count, T(1), to);
  } else {
    dpfp_row(from, count, features.nu, to);
  }
  if (features.sum_norm) {
    const T sum = sum_row(
        size, [](const Batch<T>& x) SEQMIX_INLINE_LAMBDA { return x; }, static_cast<const T*>(to));
    scale = sum == T(0) && features.keep_zeros ? T(0) : scale / sum;
  }
  scale_padded_row(static_cast<const T*>(to), size, scale, to);
}

}  // namespace detail

/// The map from rows of d channels to their F features. `features` must outlive the calls that the map is given to.
template <class T>
RowMap<T> fast_weight_map(const FastWeightFeatures& features) {
  return {&detail::fast_weight_features_padded_row<T>, &features};
}

}  // namespace seqmix::inline SEQMIX_ARCH
