// S4: the core and the authors' block.
#include <seqmix/ssm/s4.hpp>

#include "support/long_sequences.hpp"
#include "support/registry.hpp"
#include "support/state_spaces.hpp"

namespace seqmix::test {
namespace {

template <class T>
struct S4CoreGolden final : StateSpaceCoreGolden<S4Core<T>> {
  using StateSpaceCoreGolden<S4Core<T>>::StateSpaceCoreGolden;
};

template <class T>
struct S4LayerGolden {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    if (read_direction(golden) == Direction::causal) {
      return std::make_unique<StateSpaceLayerGolden<S4Core<T>, Direction::causal>>(golden);
    }
    return std::make_unique<StateSpaceLayerGolden<S4Core<T>, Direction::bidirectional>>(golden);
  }
};

/// X in A X = B, by unitary rotations that make A upper triangular, then from the last row up.
Dense solution(Dense a, Dense b) {
  const Index size = a.rows();
  for (Index column = 0; column < size; ++column) {
    for (Index row = column + 1; row < size; ++row) {
      const std::complex<double> top = a(column, column), low = a(row, column);
      const double length = std::sqrt(std::norm(top) + std::norm(low));
      if (length == 0) continue;
      const auto rotate = [&](Dense& of) {
        for (Index j = 0; j < of.cols(); ++j) {
          const std::complex<double> first = of(column, j), second = of(row, j);
          of(column, j) = (std::conj(top) * first + std::conj(low) * second) / length;
          of(row, j) = (top * second - low * first) / length;
        }
      };
      rotate(a), rotate(b);
    }
  }
  for (Index j = 0; j < b.cols(); ++j) {
    for (Index row = size - 1; row >= 0; --row) {
      for (Index k = row + 1; k < size; ++k) b(row, j) -= a(row, k) * b(k, j);
      b(row, j) /= a(row, row);
    }
  }
  return b;
}

const GoldenRegistration<S4CoreGolden> core_golden{"s4", "core"};
const GoldenRegistration<S4LayerGolden> layer_golden{"s4", "layer"};

template <Direction way>
struct S4Tests {
  static constexpr const char* name = way == Direction::causal ? "s4" : "s4, bidirectional";
  template <class T>
  using Mixer = S4<T, way>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    return {{"one channel, one mode", {.channels = 1, .modes = 1}},
            {"five channels of 4 modes", {.channels = 5, .modes = 4}},
            {"two outputs, three sets of modes of rank 2, C for a kernel of 37",
             {.channels = 9, .modes = 3, .outputs = 2, .copies = 3, .rank = 2, .kernel_length = 37}},
            {"rank 3, no activation", {.channels = 3, .modes = 5, .rank = 3, .activate = false, .gated = false}},
            {"random", {.channels = rng.integer(1, 20), .modes = rng.integer(1, 12), .outputs = rng.integer(1, 3)}}};
  }

  /// Random ones, with long steps where C is to be recovered: with short ones decay^l is nearly 1, and C known to few digits.
  static typename Mixer<double>::Weights weights(const StateSpaceConfig& config, Rng& rng) {
    auto result = Mixer<double>::random_weights(config, rng);
    stir(result, rng);
    if (config.kernel_length > 0) result.core.inv_dt = uniform_vector<double>(config.channels, -2, 0, rng);
    return result;
  }

  /// The whole matrix of a channel, and its powers.
  static Matrixd reference(const StateSpaceConfig& config, const typename Mixer<double>::Weights& weights,
                           const Matrixd& x) {
    // Products without Eigen's kernels, which take long to compile.
    const auto times = [](const Dense& left, const Dense& right) { return Dense(left.lazyProduct(right)); };
    const auto kernel = [&](Index row, Index length) {
      const Index h = row % config.channels, M = config.modes, N = 2 * M, set = h % config.sets();
      const double dt = transformed_as(weights.core.inv_dt[h], config.dt_transform);
      const auto both = [&](const Matrixd& parts, Index first) {
        Dense result(N, 1);
        for (Index n = 0; n < M; ++n) {
          result(n, 0) = complex_number(parts, first * M + n), result(M + n, 0) = std::conj(result(n, 0));
        }
        return result;
      };
      Dense a = Dense::Zero(N, N);
      for (Index n = 0; n < M; ++n) {
        a(n, n) = pole(config, weights.core, h, n), a(M + n, M + n) = std::conj(a(n, n));
      }
      for (Index r = 0; r < config.rank; ++r) {
        const Dense p = both(weights.core.p, r * config.sets() + set);
        a -= times(p, p.adjoint());
      }
      const Dense one = Dense::Identity(N, N), decay = solution(one - dt / 2 * a, one + dt / 2 * a);
      Dense c = both(weights.core.c, row), state = solution(one - dt / 2 * a, dt * both(weights.core.b, set));
      if (config.kernel_length > 0) {
        Dense power = one;
        for (Index l = 0; l < config.kernel_length; ++l) power = times(power, decay);
        c = solution((one - power).transpose(), c);
      }
      std::vector<double> result;
      for (Index l = 0; l < length; ++l) {
        result.push_back(c.cwiseProduct(state).sum().real());
        state = times(decay, state);
      }
      return result;
    };
    return state_space_reference(config, weights.core, weights.output, weights.output_bias, x,
                                 way == Direction::bidirectional, kernel);
  }
};

const MixerRegistration<S4Tests<Direction::causal>> causal;
const MixerRegistration<S4Tests<Direction::bidirectional>> bidirectional;

TEST_CASE("s4: steps through many tokens give what the scan gives", "[s4]") {
  check_long_steps<S4<float>>({.channels = 3, .modes = 4});
  check_long_steps<S4<double>>({.channels = 3, .modes = 4});
}

TEST_CASE("s4: the convolution with the kernel gives what the scan gives", "[s4]") {
  check_convolution<S4<float>>({.channels = 11, .modes = 3, .outputs = 2});
  check_convolution<S4<double>>({.channels = 3, .modes = 3});
  check_convolution<S4<float>>({.channels = 3, .modes = 4, .rank = 2});
  check_convolution<S4<double>>({.channels = 2, .modes = 5, .rank = 3});
  check_convolution<S4<float, Direction::bidirectional>>({.channels = 5, .modes = 3, .outputs = 2});
}

}  // namespace
}  // namespace seqmix::test
