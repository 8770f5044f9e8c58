// The gate that turns a projection into log decays: a rate for each head, times a step of time for each token.
//
//   Source    Gu, Dao 2023, arXiv:2312.00752; Yang et al. 2024, arXiv:2412.06464; Kimi Team 2025, arXiv:2510.26692
#pragma once

#include <cmath>
#include <concepts>
#include <optional>
#include <seqmix/core/random.hpp>
#include <seqmix/parts/row.hpp>
#include <seqmix/simd/math.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// The log decays of a layer, from a projection f of its input:
///   g = -exp(log_rate) softplus(f + bias), or, bounded below,   g = lower_bound * sigmoid(exp(log_rate) (f + bias))
/// log_rate [heads], bias [heads * n]: one decay for each head (n = 1) or for each key channel.
template <std::floating_point T>
class DecayGate {
 public:
  DecayGate() = default;

  /// lower_bound < 0, where given. Allocates. bias must hold a multiple of the number of heads.
  DecayGate(const Vector<T>& log_rate, const Vector<T>& bias, std::optional<T> lower_bound = {})
      : rate_(bias.size()), bias_(bias), lower_bound_(lower_bound) {
    const Index channels = bias.size() / log_rate.size();
    for (Index i = 0; i < rate_.size(); ++i) rate_[i] = std::exp(log_rate[i / channels]);
  }

  /// In place, f [length, heads * n]. Allocates nothing.
  void apply(Sequence<T> f) const {
    for (Index t = 0; t < f.length(); ++t) {
      if (lower_bound_) {
        const Batch<T> bound = broadcast(*lower_bound_);
        const auto bounded = [&](const Batch<T>& x, const Batch<T>& rate, const Batch<T>& bias)
                                 SEQMIX_INLINE_LAMBDA { return bound * sigmoid(rate * (x + bias)); };
        map_row(f.channels(), f.row(t), bounded, f.row(t), rate_.data(), bias_.data());
      } else {
        const auto decay = [](const Batch<T>& x, const Batch<T>& rate, const Batch<T>& bias)
                               SEQMIX_INLINE_LAMBDA { return -rate * softplus(x + bias); };
        map_row(f.channels(), f.row(t), decay, f.row(t), rate_.data(), bias_.data());
      }
    }
  }

  /// exp(log_rate) uniform in [lowest, highest).
  static Vector<T> random_log_rate(Index heads, double lowest, double highest, Rng& rng) {
    return Vector<T>::NullaryExpr(heads, [&] { return T(std::log(rng.uniform(lowest, highest))); });
  }

  /// softplus(bias) log-uniform in [0.001, 0.1).
  static Vector<T> random_bias(Index size, Rng& rng) {
    return Vector<T>::NullaryExpr(size, [&] {
      const double step = std::exp(rng.uniform(std::log(0.001), std::log(0.1)));
      return T(step + std::log(-std::expm1(-step)));
    });
  }

 private:
  Vector<T> rate_, bias_;  // [heads * n]
  std::optional<T> lower_bound_;
};

}  // namespace seqmix::inline SEQMIX_ARCH
