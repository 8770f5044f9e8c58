// Random numbers that are the same on every platform, for initial weights and tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <seqmix/core/view.hpp>

namespace seqmix {

/// SplitMix64 (Steele, Lea, Flood 2014): 64 random bits per call, the same for the same seed everywhere.
class Rng {
 public:
  explicit Rng(std::uint64_t seed = 0) : state_(seed) {}

  /// 64 random bits.
  std::uint64_t bits() {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }

  /// Uniform in [0, 1).
  double uniform() { return double(bits() >> 11) * 0x1p-53; }

  /// Uniform in [low, high).
  double uniform(double low, double high) { return low + (high - low) * uniform(); }

  /// Uniform in low .. high, both included.
  Index integer(Index low, Index high) { return low + Index(bits() % std::uint64_t(high - low + 1)); }

  /// Normal with mean 0 and deviation 1 (Box and Muller 1958).
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return radius * std::cos(2.0 * std::numbers::pi * uniform());
  }

 private:
  std::uint64_t state_;
};

/// A matrix [rows, columns] of normal numbers with the given deviation.
template <class T>
Matrix<T> normal_matrix(Index rows, Index columns, double deviation, Rng& rng) {
  return Matrix<T>::NullaryExpr(rows, columns, [&] { return T(deviation * rng.normal()); });
}

/// A matrix [rows, columns] of numbers uniform in [-bound, bound).
template <class T>
Matrix<T> uniform_matrix(Index rows, Index columns, double bound, Rng& rng) {
  return Matrix<T>::NullaryExpr(rows, columns, [&] { return T(rng.uniform(-bound, bound)); });
}

/// A uniform weight [outputs, inputs] in +-inputs^-1/2, as torch initialises projections.
template <class T>
Matrix<T> random_projection(Index outputs, Index inputs, Rng& rng) {
  return uniform_matrix<T>(outputs, inputs, std::pow(double(inputs), -0.5), rng);
}

/// A vector of numbers uniform in [low, high).
template <class T>
Vector<T> uniform_vector(Index size, double low, double high, Rng& rng) {
  return Vector<T>::NullaryExpr(size, [&] { return T(rng.uniform(low, high)); });
}

}  // namespace seqmix
