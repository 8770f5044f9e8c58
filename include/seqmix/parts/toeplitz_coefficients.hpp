// Coefficients of a Toeplitz matrix: a small perceptron of the distance, for every channel.
//
//   Source    Qin et al. 2023, arXiv:2305.04749, section 3.3; Doraemonzzz/tnn-pytorch, tnn_pytorch/rpe.py and tno.py
//   Glossary  n lags   E channels of H heads   R width of the perceptron
//
//   a = W_0 p_i + b_0,   a = W_j act(norm(a)) + b_j (+ a if residual) for each layer,   c_i = act'(g^|i| (W act(norm(a)) + b))
//   norm(a) = a / (rms(a) + 1e-8);   p_i = i, or i / (n - 1);   g of a channel: gamma, or lambda + (1 - lambda) sigmoid(gamma)
//
// All of this happens once, when a mixer is made, in double.
#pragma once

#include <array>
#include <cmath>
#include <seqmix/core/error.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/parts/linear.hpp>
#include <string>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

enum class ToeplitzDecay { none, fixed, learned };
enum class ToeplitzPosition { lag, part_of_length };
/// What is applied in the perceptron, or to the coefficients.
enum class ToeplitzActivation { none, relu, swish, logistic, exponential };

struct ToeplitzConfig {
  Index lags = 0;    ///< n
  Index heads = 1;   ///< H, of the decays
  Index width = 64;  ///< R
  Index layers = 3;  ///< inner ones, at most 8
  bool residual = false;
  ToeplitzActivation inner_activation = ToeplitzActivation::relu;
  ToeplitzActivation activation = ToeplitzActivation::none;  ///< of coefficients
  ToeplitzPosition position = ToeplitzPosition::lag;
  ToeplitzDecay decay = ToeplitzDecay::none;
  double gamma = 0.99;     ///< where a fixed decay begins, or lambda
  bool normalize = false;  ///< rows of the matrix sum to 1
};

template <class T>
struct ToeplitzWeights {
  static constexpr std::size_t most_layers = 8;

  Matrix<T> first;                           // W_0 [R, 1]
  std::array<Matrix<T>, most_layers> layer;  // [R, R]
  Matrix<T> last;                            // [E, R]
  Vector<T> first_bias, last_bias;           // [R], [E], or absent
  std::array<Vector<T>, most_layers> bias;   // [R], or absent
  Matrix<T> gamma;                           // [H, E / H], or absent

  /// Names as in checkpoints after `prefix`.
  template <class Self, class Visitor>
  static void visit_as(const std::string& prefix, Self& self, Visitor& visitor) {
    visitor(prefix + "gamma", self.gamma, Presence::optional);
    visitor(prefix + "rpe.pos_proj.weight", self.first, Presence::required);
    visitor(prefix + "rpe.pos_proj.bias", self.first_bias, Presence::optional);
    for (std::size_t i = 0; i < most_layers; ++i) {
      const std::string layer = prefix + "rpe.layers." + std::to_string(i) + ".2.";
      visitor(layer + "weight", self.layer[i], Presence::optional);
      visitor(layer + "bias", self.bias[i], Presence::optional);
    }
    visitor(prefix + "rpe.out.2.weight", self.last, Presence::required);
    visitor(prefix + "rpe.out.2.bias", self.last_bias, Presence::optional);
  }
  template <class Self, class Visitor>
  static void visit(Self& self, Visitor&& visitor) {
    visit_as("", self, visitor);
  }
};

/// Throws std::invalid_argument unless there are such coefficients.
inline void expect_toeplitz(std::string_view operation, const ToeplitzConfig& config, Index channels) {
  expect(config.lags > 0 && config.width > 0, operation, "config.toeplitz.lags", "must be positive, as must width");
  expect(config.layers >= 0 && config.layers <= 8, operation, "config.toeplitz.layers", "must be 0 to 8");
  expect_divides(operation, "config.toeplitz.heads", config.heads, "inner channels", channels);
}

namespace detail {

inline double activated(double z, ToeplitzActivation activation) {
  switch (activation) {
    case ToeplitzActivation::relu:
      return z < 0 ? 0 : z;
    case ToeplitzActivation::swish:
      return z / (1 + std::exp(-z));
    case ToeplitzActivation::logistic:
      return 1 / (1 + std::exp(-z));
    case ToeplitzActivation::exponential:
      return std::exp(z);
    case ToeplitzActivation::none:
      break;
  }
  return z;
}

}  // namespace detail

/// c_0, c_{side}, c_{2 side} .. [n, channels], side 1 or -1. O(n R (R layers + channels)). Throws std::invalid_argument, in the
/// name of `operation`, unless the shapes of `weights` follow from the others.
template <class T>
Matrix<double> toeplitz_coefficients(std::string_view operation, const ToeplitzConfig& config,
                                     const ToeplitzWeights<T>& weights, Index channels, int side) {
  expect_toeplitz(operation, config, channels);
  const Index n = config.lags, R = config.width, H = config.heads;
  const auto linear = [&](const std::string& name, const Matrix<T>& weight, const Vector<T>& bias, Index rows,
                          Index columns) {
    expect_tensor(operation, name + ".weight", {rows, columns}, weight);
    if (bias.size() > 0) expect_tensor(operation, name + ".bias", {rows}, bias);
    return Linear<double>(Matrix<double>(weight.template cast<double>()), Vector<double>(bias.template cast<double>()));
  };
  const Linear<double> first = linear("rpe.pos_proj", weights.first, weights.first_bias, R, 1);
  const Linear<double> last = linear("rpe.out.2", weights.last, weights.last_bias, channels, R);
  Matrix<double> a(n, R), next(n, R), result(n, channels);
  Workspace workspace;
  Matrix<double> position(n, 1);
  const bool part = config.position == ToeplitzPosition::part_of_length;
  for (Index i = 0; i < n; ++i) position(i, 0) = side * double(i) / (part && n > 1 ? double(n - 1) : 1.0);
  first.apply(position, a, workspace);
  const auto normalized = [&] {
    for (Index i = 0; i < n; ++i) {
      const double rms = std::sqrt(a.row(i).squaredNorm() / double(R));
      for (Index r = 0; r < R; ++r) next(i, r) = detail::activated(a(i, r) / (rms + 1e-8), config.inner_activation);
    }
    return ConstSequence<double>(next);
  };
  for (std::size_t i = 0; i < std::size_t(config.layers); ++i) {
    const Linear<double> layer =
        linear("rpe.layers." + std::to_string(i) + ".2", weights.layer[i], weights.bias[i], R, R);
    const Matrix<double> before = config.residual ? a : Matrix<double>();
    const auto from = normalized();
    layer.apply(from, a, workspace);
    if (config.residual) a += before;
  }
  last.apply(normalized(), result, workspace);
  if (config.decay != ToeplitzDecay::none) expect_tensor(operation, "gamma", {H, channels / H}, weights.gamma);
  for (Index c = 0; c < channels; ++c) {
    double g = 1;
    if (config.decay != ToeplitzDecay::none) g = double(weights.gamma.data()[c]);
    if (config.decay == ToeplitzDecay::learned) g = config.gamma + (1 - config.gamma) / (1 + std::exp(-g));
    for (Index i = 0; i < n; ++i) {
      if (i > 0 && config.decay != ToeplitzDecay::none) result(i, c) *= std::pow(g, double(i));
      result(i, c) = detail::activated(result(i, c), config.activation);
    }
  }
  return result;
}

/// The authors': layers as torch begins them; decays all config.gamma, or learned ones normal.
template <class T>
ToeplitzWeights<T> random_toeplitz(std::string_view operation, const ToeplitzConfig& config, Index channels, Rng& rng) {
  expect_toeplitz(operation, config, channels);
  const Index R = config.width;
  const double limit = std::pow(double(R), -0.5);
  ToeplitzWeights<T> weights;
  weights.first = random_projection<T>(R, 1, rng), weights.first_bias = uniform_vector<T>(R, -1, 1, rng);
  for (std::size_t i = 0; i < std::size_t(config.layers); ++i) {
    weights.layer[i] = random_projection<T>(R, R, rng), weights.bias[i] = uniform_vector<T>(R, -limit, limit, rng);
  }
  weights.last = random_projection<T>(channels, R, rng),
  weights.last_bias = uniform_vector<T>(channels, -limit, limit, rng);
  if (config.decay == ToeplitzDecay::fixed) {
    weights.gamma = Matrix<T>::Constant(config.heads, channels / config.heads, T(config.gamma));
  } else if (config.decay == ToeplitzDecay::learned) {
    weights.gamma = normal_matrix<T>(config.heads, channels / config.heads, 1.0, rng);
  }
  return weights;
}

}  // namespace seqmix::inline SEQMIX_ARCH
