// Filters that are functions of time: a small perceptron with sines maps features of a moment to one tap of every channel, and
// a window fades them.
//
//   Source    Poli et al. 2023, arXiv:2302.10866, section 3.3; HazyResearch/safari, standalone_hyena.py (HyenaFilter,
//             PositionalEmbedding, ExponentialModulation)
//   Glossary  n samples   E = 1 + 2 bands features   R width of the perceptron   C channels
//
//   a = sin(frequency * (W_0 z_l + b_0)),   a = sin(frequency * (W_i a + b_i)) for each inner layer,   h_l = W a
//   h_l[c] *= exp(-t_l |delta_c|) + shift,   and if normalised h_l /= sum over c of |h_l[c]|
//
// z begins as t_l = l / (n - 1), then cos(f_b w_l), then -sin(f_b w_l), with w_l = 2 pi l / n and f from 1e-4 to bands - 1; it is
// trained, t and delta are not. All layers share one trained frequency. All of this happens once, when a mixer is made, in double.
#pragma once

#include <array>
#include <cmath>
#include <numbers>
#include <seqmix/core/error.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <string>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

struct ImplicitFilterConfig {
  Index samples = 0;        ///< n
  Index features = 3;       ///< E, odd
  Index width = 64;         ///< R
  Index inner_layers = 2;   ///< at most 6
  bool modulate = true;     ///< apply the window
  double shift = 0;         ///< of the window
  bool normalize = false;   ///< taps of a moment sum to 1 in magnitude
  double frequency = 1;     ///< where it begins
  double target = 1e-2;     ///< what the window fades to, ...
  double fast_decay = 0.3;  ///< in this part of the samples in the quickest channel
  double slow_decay = 1.5;  ///< and in this in the slowest
};

template <class T>
struct ImplicitFilterWeights {
  static constexpr std::size_t most_layers = 8;

  Matrix<T> features;                        // z [n, E]
  Matrix<T> time;                            // t [n, 1]
  Vector<T> deltas;                          // [C]
  Matrix<T> frequency;                       // [1, R]
  std::array<Matrix<T>, most_layers> layer;  // [R, E], [R, R] .. [C, R]
  std::array<Vector<T>, most_layers> bias;   // [R]; the last layer has none

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor& visitor) {
    constexpr std::string_view names[] = {"filter_fn.implicit_filter.0.weight",  "filter_fn.implicit_filter.0.bias",
                                          "filter_fn.implicit_filter.2.weight",  "filter_fn.implicit_filter.2.bias",
                                          "filter_fn.implicit_filter.4.weight",  "filter_fn.implicit_filter.4.bias",
                                          "filter_fn.implicit_filter.6.weight",  "filter_fn.implicit_filter.6.bias",
                                          "filter_fn.implicit_filter.8.weight",  "filter_fn.implicit_filter.8.bias",
                                          "filter_fn.implicit_filter.10.weight", "filter_fn.implicit_filter.10.bias",
                                          "filter_fn.implicit_filter.12.weight", "filter_fn.implicit_filter.12.bias",
                                          "filter_fn.implicit_filter.14.weight", "filter_fn.implicit_filter.14.bias"};
    visitor("filter_fn.pos_emb.z", self.features, Presence::required);
    visitor("filter_fn.pos_emb.t", self.time, Presence::optional);
    visitor("filter_fn.modulation.deltas", self.deltas, Presence::optional);
    visitor("filter_fn.implicit_filter.1.freq", self.frequency, Presence::required);
    for (std::size_t i = 0; i < most_layers; ++i) {
      visitor(names[2 * i], self.layer[i], i < 2 ? Presence::required : Presence::optional);
      visitor(names[2 * i + 1], self.bias[i], i < 1 ? Presence::required : Presence::optional);
    }
  }
};

/// Throws std::invalid_argument unless there are such filters.
inline void expect_implicit_filter(std::string_view operation, const ImplicitFilterConfig& config) {
  expect(config.samples > 0 && config.width > 0, operation, "config.filter.samples", "must be positive, as must width");
  expect(config.features > 0 && config.features % 2 == 1, operation, "config.filter.features", "must be odd");
  expect(config.inner_layers >= 0 && config.inner_layers <= 6, operation, "config.filter.inner_layers",
         "must be 0 to 6");
}

/// h [n, channels]. O(n R (E + R + channels)). Throws std::invalid_argument, in the name of `operation`, unless the shapes of
/// `weights` follow from the others.
template <class T>
Matrix<double> implicit_filter(std::string_view operation, const ImplicitFilterConfig& config,
                               const ImplicitFilterWeights<T>& weights, Index channels) {
  expect_implicit_filter(operation, config);
  const Index n = config.samples, R = config.width;
  const auto last = std::size_t(config.inner_layers) + 1;
  expect_tensor(operation, "filter_fn.pos_emb.z", {n, config.features}, weights.features);
  expect_tensor(operation, "filter_fn.implicit_filter.1.freq", {1, R}, weights.frequency);
  const auto column = [&](std::size_t i) { return i == 0 ? config.features : R; };
  for (std::size_t i = 0; i <= last; ++i) {
    const std::string layer = "filter_fn.implicit_filter." + std::to_string(2 * i);
    expect_tensor(operation, layer + ".weight", {i < last ? R : channels, column(i)}, weights.layer[i]);
    if (i < last) expect_tensor(operation, layer + ".bias", {R}, weights.bias[i]);
  }
  if (config.modulate) {
    expect_tensor(operation, "filter_fn.pos_emb.t", {n, 1}, weights.time);
    expect_tensor(operation, "filter_fn.modulation.deltas", {channels}, weights.deltas);
  }
  const auto numbers = [](const auto& tensor) { return tensor.template cast<double>().eval(); };
  Matrix<double> layers[ImplicitFilterWeights<T>::most_layers], result(n, channels);
  for (std::size_t i = 0; i <= last; ++i) layers[i] = numbers(weights.layer[i]);
  Vector<double> a, next;
  for (Index l = 0; l < n; ++l) {
    a = numbers(weights.features.row(l).transpose());
    for (std::size_t i = 0; i < last; ++i) {
      next = layers[i].lazyProduct(a) + numbers(weights.bias[i]);
      for (Index r = 0; r < R; ++r) next[r] = std::sin(double(weights.frequency(0, r)) * next[r]);
      a = next;
    }
    result.row(l) = layers[last].lazyProduct(a);
    for (Index c = 0; c < channels && config.modulate; ++c) {
      result(l, c) *= std::exp(-double(weights.time(l, 0)) * std::abs(double(weights.deltas[c]))) + config.shift;
    }
    if (config.normalize) result.row(l) /= result.row(l).cwiseAbs().sum();
  }
  return result;
}

/// The authors': features, times and deltas as above, layers as torch begins them.
template <class T>
ImplicitFilterWeights<T> random_implicit_filter(std::string_view operation, const ImplicitFilterConfig& config,
                                                Index channels, Rng& rng) {
  expect_implicit_filter(operation, config);
  const Index n = config.samples, bands = config.features / 2;
  // A number of `count` that go evenly from one to another.
  const auto between = [](double from, double to, Index i, Index count) {
    return count > 1 ? from + (to - from) * double(i) / double(count - 1) : from;
  };
  ImplicitFilterWeights<T> weights;
  weights.features = Matrix<T>(n, config.features), weights.time = Matrix<T>(n, 1);
  for (Index l = 0; l < n; ++l) {
    weights.time(l, 0) = weights.features(l, 0) = T(between(0, 1, l, n));
    for (Index b = 0; b < bands; ++b) {
      const double angle = between(1e-4, double(bands - 1), b, bands) * 2 * std::numbers::pi * double(l) / double(n);
      weights.features(l, 1 + b) = T(std::cos(angle)), weights.features(l, 1 + bands + b) = T(-std::sin(angle));
    }
  }
  const double fade = std::log(config.target);
  weights.deltas = Vector<T>(channels);
  for (Index c = 0; c < channels; ++c) {
    weights.deltas[c] = T(between(fade / config.slow_decay, fade / config.fast_decay, c, channels));
  }
  weights.frequency = Matrix<T>::Constant(1, config.width, T(config.frequency));
  const auto last = std::size_t(config.inner_layers) + 1;
  for (std::size_t i = 0; i <= last; ++i) {
    const Index inputs = i == 0 ? config.features : config.width;
    const double limit = std::pow(double(inputs), -0.5);
    weights.layer[i] = random_projection<T>(i < last ? config.width : channels, inputs, rng);
    if (i < last) weights.bias[i] = uniform_vector<T>(config.width, -limit, limit, rng);
  }
  return weights;
}

}  // namespace seqmix::inline SEQMIX_ARCH
