// Positive random features, whose products estimate a kernel of query and key: the feature maps of Performers.
//
//   Source    Choromanski et al. 2020, arXiv:2009.14794, sections 2.3 and 2.4; lucidrains/performer-pytorch
//   Glossary  K channels of a query or key x   m features   P [m, K] random directions   x' = K^-1/4 x
//
// u = P x',   and of u the features: exp(u - |x'|^2 / 2 - c) + epsilon (softmax) or max(u, 0) + epsilon (relu). Products
// of the first estimate exp(q . k / sqrt(K)) times a constant; c keeps them from overflowing.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <seqmix/core/random.hpp>
#include <seqmix/parts/row.hpp>
#include <seqmix/simd/gemm.hpp>
#include <seqmix/simd/math.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Kernels that random features estimate, as policies. `stabilized` says whether an offset takes part:
/// map(u, offset), on batches, with offset = |x'|^2 / 2 + c.
namespace random_feature {

/// exp(u - offset), for u <= offset.
struct Softmax {
  static constexpr bool stabilized = true;
  static constexpr double epsilon = 1e-4;  ///< as published
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> map(const Batch<T, Arch>& u, const Batch<T, Arch>& offset) {
    return exp_decay(u - offset);
  }
};

/// max(u, 0).
struct Relu {
  static constexpr bool stabilized = false;
  static constexpr double epsilon = 1e-3;
  template <class T, class Arch>
  SEQMIX_ALWAYS_INLINE static Batch<T, Arch> map(const Batch<T, Arch>& u, const Batch<T, Arch>&) {
    return max_propagating(u, Batch<T, Arch>(T(0)));
  }
};

}  // namespace random_feature

/// How long the rows of P are.
enum class RandomFeatureNorms {
  gaussian,  ///< as long as rows of K normal numbers, independently
  constant   ///< sqrt(K)
};

/// P: orthogonal rows in blocks of K, each block uniform among all such, the last one cut. Allocates. O(m K^2) time.
template <std::floating_point T>
Matrix<T> orthogonal_random_features(Index features, Index channels, RandomFeatureNorms norms, Rng& rng) {
  // Gram and Schmidt, twice over: the second time takes away what rounding left. (The QR decompositions of Eigen take the
  // compiler longer than all else here.)
  Matrix<double> rows = normal_matrix<double>(features, channels, 1.0, rng);
  for (Index i = 0; i < features; ++i) {
    for (int repeat = 0; repeat < 2; ++repeat) {
      for (Index j = i / channels * channels; j < i; ++j) rows.row(i) -= rows.row(i).dot(rows.row(j)) * rows.row(j);
    }
    rows.row(i).normalize();
  }
  for (Index i = 0; i < features; ++i) {
    rows.row(i) *= norms == RandomFeatureNorms::constant ? std::sqrt(double(channels))
                                                         : normal_matrix<double>(1, channels, 1.0, rng).norm();
  }
  return rows.template cast<T>();
}

/// P, packed for products.
template <std::floating_point T>
class RandomFeatures {
 public:
  /// No features.
  RandomFeatures() = default;

  /// Packs `projection` [m, K]. Allocates.
  explicit RandomFeatures(const Matrix<T>& projection)
      : scaled_(Matrix<T>(projection * T(std::pow(double(projection.cols()), -0.25)))),
        half_scale_(T(0.5 / std::sqrt(double(projection.cols())))) {}

  Index features() const { return scaled_.outputs(); }
  Index channels() const { return scaled_.inputs(); }

  /// u [rows, m] of x [rows, K], not overlapping. 2 m K operations for each row, which has the same bits in any company.
  void project(ConstSequence<T> x, Sequence<T> u, Workspace& workspace) const {
    multiply(x, scaled_, FromZero{}, u, workspace);
  }

  /// |x'|^2 / 2 of one row x [K].
  SEQMIX_ALWAYS_INLINE T half_square(const T* x) const {
    return half_scale_ * sum_row(
                             channels(), [](const Batch<T>& z) SEQMIX_INLINE_LAMBDA { return z * z; }, x);
  }

 private:
  PackedMatrix<T> scaled_;
  T half_scale_ = T(0);
};

/// The largest of u[0 .. count), NaNs left out, or minus infinity. The row must be there up to whole vectors.
template <class T>
T largest_of_row(const T* u, Index count) {
  const Batch<T> least = broadcast(-std::numeric_limits<T>::infinity());
  Batch<T> most = least;
  for_padded_row<T>(
      count, [&](Index i, auto keep) SEQMIX_INLINE_LAMBDA { most = max_propagating(most, keep(load(u + i), least)); });
  return reduce_max(most);
}

/// From u[0 .. count) to features, in place, and zeros up to whole vectors. Returns the sum of the features.
template <class Kernel, class T>
T map_features(Index count, T offset, T epsilon, T* u) {
  Batch<T> sum = broadcast(T(0));
  for_padded_row<T>(count, [&](Index i, auto keep) SEQMIX_INLINE_LAMBDA {
    const Batch<T> feature = keep(Kernel::map(load(u + i), broadcast(offset)) + broadcast(epsilon), broadcast(T(0)));
    store(u + i, feature);
    sum += feature;
  });
  return reduce_add(sum);
}

/// The same for a query x, whose c is the largest of its u.
template <class Kernel, class T>
T map_query_features(Index count, T half_square, T epsilon, T* u) {
  return map_features<Kernel>(count, Kernel::stabilized ? half_square + largest_of_row<T>(u, count) : T(0), epsilon, u);
}

}  // namespace seqmix::inline SEQMIX_ARCH
