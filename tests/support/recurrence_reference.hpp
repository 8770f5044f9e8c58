// What naive references of layers with a matrix memory share, in double and from the equations.
#pragma once

#include <seqmix/core/random.hpp>

#include "support/reference.hpp"

namespace seqmix::test {

/// c_t = bias + sum over j of weight[:, j] u_{t - W + 1 + j}, zeros before the start. An empty weight: u itself.
inline Matrixd short_convolution(const Matrixd& u, const Matrixd& weight, const Vectord& bias) {
  if (weight.size() == 0) return u;
  Matrixd y = Matrixd::Zero(u.rows(), u.cols());
  for (Index t = 0; t < u.rows(); ++t) {
    for (Index c = 0; c < u.cols(); ++c) {
      if (bias.size() > 0) y(t, c) = bias[c];
      for (Index j = 0; j < weight.cols(); ++j) {
        const Index s = t - weight.cols() + 1 + j;
        if (s >= 0) y(t, c) += weight(c, j) * u(s, c);
      }
    }
  }
  return y;
}

/// The memory [K, V] of one head, token by token.
class MemoryLoop {
 public:
  MemoryLoop(Index key_dim, Index value_dim) : memory_(Matrixd::Zero(key_dim, value_dim)) {}

  /// S = diag(exp(log_decay)) S; a single number decays all rows.
  void decay(const Matrixd& log_decay) {
    for (Index i = 0; i < memory_.rows(); ++i) {
      for (Index j = 0; j < memory_.cols(); ++j) {
        memory_(i, j) *= std::exp(log_decay.data()[log_decay.size() == 1 ? 0 : i]);
      }
    }
  }
  /// S += key value^T.
  void add(const Matrixd& key, const Matrixd& value) {
    for (Index i = 0; i < memory_.rows(); ++i) {
      for (Index j = 0; j < memory_.cols(); ++j) memory_(i, j) += key.data()[i] * value.data()[j];
    }
  }
  /// Row i of S.
  Matrixd row(Index i) const { return memory_.row(i); }
  /// query^T S.
  Matrixd read(const Matrixd& query) const {
    Matrixd result = Matrixd::Zero(1, memory_.cols());
    for (Index i = 0; i < memory_.rows(); ++i) {
      for (Index j = 0; j < memory_.cols(); ++j) result(0, j) += query.data()[i] * memory_(i, j);
    }
    return result;
  }

 private:
  Matrixd memory_;
};

/// Rates of decay heads, in turn: infinite, some hundreds, about one, and about 1e-7 (from the bias).
inline void extreme_decays(Vectord& log_rate, Vectord& bias, Rng& rng) {
  const Index channels = bias.size() / log_rate.size();
  for (Index h = 0; h < log_rate.size(); ++h) {
    log_rate[h] = h % 4 == 0 ? std::log(300.0) : h % 4 == 1 ? 800.0 : h % 4 == 2 ? 0.0 : -1.0;
    for (Index i = h * channels; i < (h + 1) * channels; ++i) {
      bias[i] = h % 4 == 3 ? rng.uniform(-16, -12) : rng.uniform(-3, 1);
    }
  }
}

}  // namespace seqmix::test
