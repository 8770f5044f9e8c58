// Comparisons of the ways to evaluate a layer over more tokens than the laws take.
#pragma once

#include <catch2/catch_test_macros.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <stdexcept>
#include <type_traits>

#include "scalars.hpp"

namespace seqmix::test {

/// Golden cases allow 1e-5 of the largest number in float, 1e-9 in double, for a few dozen tokens.
template <class T>
constexpr double ten_times_golden = std::is_same_v<T, float> ? 1e-4 : 1e-8;

/// Steps through 100,000 tokens against forward.
template <class Mixer>
void check_long_steps(const typename Mixer::Config& config) {
  using T = typename Mixer::Scalar;
  if constexpr (scalar_tested<T>) {
    constexpr Index length = 100000;
    Rng rng(6);
    const Mixer mixer(config, Mixer::random_weights(config, rng));
    const Matrix<T> x = normal_matrix<T>(length, config.channels, 1.0, rng);
    Matrix<T> y(length, config.channels), steps(length, config.channels);
    Workspace workspace;
    mixer.forward(x, y, workspace);
    auto state = mixer.initial_state();
    for (Index t = 0; t < length; ++t) mixer.step(state, x.row(t), steps.row(t), workspace);
    CHECK((y - steps).cwiseAbs().maxCoeff() <= T(ten_times_golden<T>) * y.cwiseAbs().maxCoeff());
  }
}

/// convolve of a structured state space against forward, for sequences as long as possible, and shorter.
template <class Mixer>
void check_convolution(typename Mixer::Config config) {
  using T = typename Mixer::Scalar;
  if constexpr (scalar_tested<T>) {
    // Where causal, few taps are summed directly.
    for (const Index longest : {1, 31, 33, 300, 5000}) {
      config.convolution_length = longest;
      Rng rng(7);
      auto weights = Mixer::random_weights(config, rng);
      // A second rank begins with zeros.
      if constexpr (requires { config.rank; }) {
        auto& p = weights.core.p;
        if (config.rank > 1) p = normal_matrix<T>(p.rows(), p.cols(), 0.3, rng);
      }
      const Mixer mixer(config, weights);
      Workspace workspace;
      for (const Index length : {Index(0), Index(1), longest / 2, longest}) {
        INFO(longest << ", " << length);
        const Matrix<T> x = normal_matrix<T>(length, config.channels, 1.0, rng);
        Matrix<T> y(length, config.channels), convolved = y;
        mixer.forward(x, y, workspace);
        mixer.convolve(x, convolved, workspace);
        if (length == 0) continue;
        CHECK((y - convolved).cwiseAbs().maxCoeff() <= T(ten_times_golden<T>) * y.cwiseAbs().maxCoeff());
      }
      const Matrix<T> x = Matrix<T>::Zero(longest + 1, config.channels);
      Matrix<T> y(longest + 1, config.channels);
      CHECK_THROWS_AS(mixer.convolve(x, y, workspace), std::invalid_argument);
    }
  }
}

}  // namespace seqmix::test
