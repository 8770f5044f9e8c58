// Small functions in double for naive references: written for the eye, and from the equations alone. This header
// includes nothing of the library but the matrix types.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numbers>
#include <seqmix/core/view.hpp>
#include <vector>

namespace seqmix::test {

using Matrixd = Matrix<double>;
using Vectord = Vector<double>;

/// a b. Products of references come from here, so that Eigen's kernels are compiled once.
Matrixd product(const Matrixd& a, const Matrixd& b);

/// x W^T + b for x [length, in], W [out, in], b [out] or empty.
Matrixd linear(const Matrixd& x, const Matrixd& weight, const Vectord& bias = {});

inline double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }
inline double silu(double z) { return z * sigmoid(z); }
inline double gelu(double z) { return 0.5 * z * (1 + std::erf(z / std::numbers::sqrt2)); }  // exact form
inline double softplus(double z) { return std::max(z, 0.0) + std::log1p(std::exp(-std::abs(z))); }
inline double log_sigmoid(double z) { return -softplus(-z); }

/// Applies f to every element.
Matrixd map(const Matrixd& x, const std::function<double(double)>& f);

/// Columns of head h where every row holds `heads` heads side by side.
Matrixd head(const Matrixd& x, Index h, Index heads);
void set_head(Matrixd& x, Index h, Index heads, const Matrixd& part);

/// Each row over its root mean square: x / sqrt(mean(x^2) + eps), times weight [columns] unless that is empty.
Matrixd rms_norm(const Matrixd& x, double eps, const Vectord& weight = {});

/// Each row with mean 0 and variance 1: (x - mean) / sqrt(var + eps) * weight + bias; weight and bias may be empty.
Matrixd layer_norm(const Matrixd& x, double eps, const Vectord& weight = {}, const Vectord& bias = {});

/// layer_norm of every head by itself; weight and bias [columns of x] or empty.
Matrixd group_norm(const Matrixd& x, Index heads, double eps, const Vectord& weight = {}, const Vectord& bias = {});

/// The softmax of the finite and infinite logits of a row; minus infinity masks. All masked, or no logit: all zero.
/// `sink` joins the denominator only.
std::vector<double> softmax(const std::vector<double>& logits, double sink = -std::numeric_limits<double>::infinity());

/// Rotates the pairs of the first rotary_dim columns by position * theta^(-2m / rotary_dim), m = 0 .. rotary_dim/2 - 1.
/// Row t stands at position first + t. Pairs (m, m + rotary_dim/2), or (2m, 2m + 1) where interleaved.
Matrixd rotate(const Matrixd& x, Index first, double theta, Index rotary_dim, bool interleaved);

/// x one row later: row t is x[t - 1], row 0 is zero. The token shift of the RWKV family.
Matrixd shifted(const Matrixd& x);

}  // namespace seqmix::test
