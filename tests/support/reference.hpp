// Small functions in double for naive references: written for the eye, and from the equations alone. This header
// includes nothing of the library but the matrix types.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <seqmix/core/view.hpp>
#include <vector>

namespace seqmix::test {

using Matrixd = Matrix<double>;
using Vectord = Vector<double>;

/// x W^T + b for x [length, in], W [out, in], b [out] or empty.
inline Matrixd linear(const Matrixd& x, const Matrixd& weight, const Vectord& bias = {}) {
  Matrixd y = x * weight.transpose();
  if (bias.size() > 0) y.rowwise() += bias.transpose();
  return y;
}

inline double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }
inline double silu(double z) { return z * sigmoid(z); }
inline double gelu(double z) { return 0.5 * z * (1 + std::erf(z / std::numbers::sqrt2)); }  // exact form
inline double softplus(double z) { return std::max(z, 0.0) + std::log1p(std::exp(-std::abs(z))); }
inline double log_sigmoid(double z) { return -softplus(-z); }

/// Applies f to every element.
template <class F>
Matrixd map(const Matrixd& x, F f) {
  return x.unaryExpr(f);
}

/// Columns of head h where every row holds `heads` heads side by side.
inline Matrixd head(const Matrixd& x, Index h, Index heads) {
  const Index width = x.cols() / heads;
  return x.middleCols(h * width, width);
}
inline void set_head(Matrixd& x, Index h, Index heads, const Matrixd& part) {
  const Index width = x.cols() / heads;
  x.middleCols(h * width, width) = part;
}

/// Each row over its root mean square: x / sqrt(mean(x^2) + eps), times weight [columns] unless that is empty.
inline Matrixd rms_norm(const Matrixd& x, double eps, const Vectord& weight = {}) {
  Matrixd y = x;
  for (Index t = 0; t < x.rows(); ++t) {
    y.row(t) /= std::sqrt(x.row(t).squaredNorm() / double(x.cols()) + eps);
    if (weight.size() > 0) y.row(t).array() *= weight.transpose().array();
  }
  return y;
}

/// Each row with mean 0 and variance 1: (x - mean) / sqrt(var + eps) * weight + bias; weight and bias may be empty.
inline Matrixd layer_norm(const Matrixd& x, double eps, const Vectord& weight = {}, const Vectord& bias = {}) {
  Matrixd y = x;
  for (Index t = 0; t < x.rows(); ++t) {
    y.row(t).array() -= x.row(t).mean();
    y.row(t) /= std::sqrt(y.row(t).squaredNorm() / double(x.cols()) + eps);
    if (weight.size() > 0) y.row(t).array() *= weight.transpose().array();
    if (bias.size() > 0) y.row(t) += bias.transpose();
  }
  return y;
}

/// layer_norm of every head by itself; weight and bias [columns of x] or empty.
inline Matrixd group_norm(const Matrixd& x, Index heads, double eps, const Vectord& weight = {},
                          const Vectord& bias = {}) {
  Matrixd y = x;
  for (Index h = 0; h < heads; ++h) set_head(y, h, heads, layer_norm(head(x, h, heads), eps));
  for (Index t = 0; t < x.rows(); ++t) {
    if (weight.size() > 0) y.row(t).array() *= weight.transpose().array();
    if (bias.size() > 0) y.row(t) += bias.transpose();
  }
  return y;
}

/// The softmax of the finite and infinite logits of a row; minus infinity masks. All masked, or no logit: all zero.
/// `sink` joins the denominator only.
inline std::vector<double> softmax(const std::vector<double>& logits,
                                   double sink = -std::numeric_limits<double>::infinity()) {
  double largest = sink;
  for (const double logit : logits) largest = std::max(largest, logit);
  std::vector<double> weights(logits.size(), 0.0);
  if (largest == -std::numeric_limits<double>::infinity()) return weights;
  double sum = std::exp(sink - largest);
  for (std::size_t j = 0; j < logits.size(); ++j) sum += weights[j] = std::exp(logits[j] - largest);
  for (double& weight : weights) weight /= sum;
  return weights;
}

/// Rotates the pairs of the first rotary_dim columns by position * theta^(-2m / rotary_dim), m = 0 .. rotary_dim/2 - 1.
/// Row t stands at position first + t. Pairs (m, m + rotary_dim/2), or (2m, 2m + 1) where interleaved.
inline Matrixd rotate(const Matrixd& x, Index first, double theta, Index rotary_dim, bool interleaved) {
  Matrixd y = x;
  for (Index t = 0; t < x.rows(); ++t) {
    for (Index m = 0; m < rotary_dim / 2; ++m) {
      const double angle = double(first + t) * std::pow(theta, -2.0 * double(m) / double(rotary_dim));
      const Index i = interleaved ? 2 * m : m, j = interleaved ? 2 * m + 1 : m + rotary_dim / 2;
      y(t, i) = x(t, i) * std::cos(angle) - x(t, j) * std::sin(angle);
      y(t, j) = x(t, j) * std::cos(angle) + x(t, i) * std::sin(angle);
    }
  }
  return y;
}

/// x one row later: row t is x[t - 1], row 0 is zero. The token shift of the RWKV family.
inline Matrixd shifted(const Matrixd& x) {
  Matrixd y = Matrixd::Zero(x.rows(), x.cols());
  if (x.rows() > 1) y.bottomRows(x.rows() - 1) = x.topRows(x.rows() - 1);
  return y;
}

}  // namespace seqmix::test
