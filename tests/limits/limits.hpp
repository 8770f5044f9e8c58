// What the tests of limits share.
#pragma once

#include <limits>
#include <seqmix/core/random.hpp>
#include <seqmix/core/view.hpp>

namespace seqmix::test::limits {

inline constexpr Index heads = 3, key_dim = 11, value_dim = 19;

/// Random numbers [length, heads, dim] and a view of them.
template <class T>
struct Stream {
  Stream(Index length, Index head_count, Index dim, Rng& rng, double scale = 1.0)
      : numbers(normal_matrix<T>(length, head_count * dim, scale, rng)), view(Sequence<T>(numbers).heads(head_count)) {}
  Matrix<T> numbers;
  HeadSequence<T> view;
};

/// Largest difference, as a share of the largest value of `a`.
template <class T>
double difference(const Matrix<T>& a, const Matrix<T>& b) {
  return double((a - b).cwiseAbs().maxCoeff()) / double(a.cwiseAbs().maxCoeff());
}

/// Both sides round every one of at most `length` sums and products once: their errors add up, at worst, to twice that
/// many half-units, of terms that are no larger than the largest output times a small constant (normal inputs).
template <class T>
double tolerance(Index length) {
  return 4.0 * double(length) * double(std::numeric_limits<T>::epsilon());
}

}  // namespace seqmix::test::limits
