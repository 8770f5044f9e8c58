// Mega's damped average, in both directions.
#include <cmath>
#include <seqmix/recurrent/mega_ema.hpp>

#include "support/golden.hpp"
#include "support/long_sequences.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

template <class T, Direction way>
struct MegaEmaGolden final : GoldenLayer<MegaEma<T, way>> {
  using Mixer = MegaEma<T, way>;
  using State = typename detail::StateType<Mixer>::Type;

  explicit MegaEmaGolden(GoldenCase& golden) : GoldenLayer<Mixer>(golden, config(golden)) {}

  static typename Mixer::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    config.expect("bidirectional", way == Direction::bidirectional);
    config.expect("causal", way == Direction::causal);
    config.expect("scale", "sqrt(1/ndim)");
    config.expect("output", "silu(ema + x*omega)");
    config.ignore("state_layout");
    // Steps don't truncate, so neither does what a file with a state comes from.
    const Index truncation = config.integer("truncation", Index(0));
    const bool steps = golden.has("input.state.h") || golden.has("output.state.h");
    return {.channels = config.integer("embed_dim"),
            .averages = config.integer("ndim"),
            .truncation = steps ? 0 : truncation};
  }
  void read_state([[maybe_unused]] GoldenCase& golden, [[maybe_unused]] State& state) override {
    if constexpr (way == Direction::causal) {
      if (golden.has("input.state.h")) golden.copy("input.state.h", state.memory);
    }
  }
  void collect_state([[maybe_unused]] const State& state, [[maybe_unused]] GoldenOutputs& outputs) const override {
    if constexpr (way == Direction::causal) outputs.add("state.h", state.memory);
  }
};

template <class T>
struct MegaEmaAnyGolden {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    if (!golden.config().boolean("bidirectional", false)) {
      return std::make_unique<MegaEmaGolden<T, Direction::causal>>(golden);
    }
    return std::make_unique<MegaEmaGolden<T, Direction::bidirectional>>(golden);
  }
};

const GoldenRegistration<MegaEmaAnyGolden> golden{"mega_ema", "core"};

template <Direction way>
struct MegaEmaTests {
  static constexpr const char* name = way == Direction::causal ? "mega_ema" : "mega_ema, bidirectional";
  template <class T>
  using Mixer = MegaEma<T, way>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    return {{"one channel, one average", {.channels = 1, .averages = 1}},
            {"19 channels of 5 averages", {.channels = 19, .averages = 5}},
            {"long memories", {.channels = 6, .averages = 3}},
            {"8 channels, truncated to 1", {.channels = 8, .averages = 2, .truncation = 1}},
            {"17 channels, truncated to 7", {.channels = 17, .averages = 4, .truncation = 7}},
            {"3 channels, truncated to 200", {.channels = 3, .averages = 2, .truncation = 200}},
            {"random", {.channels = rng.integer(1, 40), .averages = rng.integer(1, 20)}}};
  }

  static typename Mixer<double>::Weights weights(const typename Mixer<double>::Config& config, Rng& rng) {
    auto result = Mixer<double>::random_weights(config, rng);
    if (config.averages == 3) {
      // Decays from nearly 0 to 1 - 1e-9.
      const Index count = result.delta.size();
      result.delta = uniform_vector<double>(count, -20, 20, rng);
      result.alpha = uniform_vector<double>(count, -8, 20, rng);
    }
    return result;
  }

  /// Sums over all tokens that a token sees, lag by lag.
  static Matrixd reference(const typename Mixer<double>::Config& config, const typename Mixer<double>::Weights& weights,
                           const Matrixd& x) {
    const Index L = x.rows(), D = config.channels, N = config.averages;
    const Index lags = config.truncation > 0 ? std::min(config.truncation, L) : L;
    Matrixd y(L, D);
    for (Index c = 0; c < D; ++c) {
      const auto kernel = [&](Index row) {
        std::vector<double> result(std::size_t(lags), 0.0);
        for (Index n = 0; n < N; ++n) {
          const Index i = row * N + n;
          const double p = sigmoid(weights.delta(i, 0)), q = 1 - p * sigmoid(weights.alpha(i, 0));
          for (Index l = 0; l < lags; ++l) {
            result[std::size_t(l)] +=
                weights.gamma(row, n) / std::sqrt(double(N)) * p * weights.beta(i, 0) * std::pow(q, double(l));
          }
        }
        return result;
      };
      const std::vector<double> forward = kernel(c);
      std::vector<double> backward;
      if (way == Direction::bidirectional) backward = kernel(D + c);
      for (Index t = 0; t < L; ++t) {
        double sum = weights.omega[c] * x(t, c);
        for (Index l = 0; l < lags && l <= t; ++l) sum += forward[std::size_t(l)] * x(t - l, c);
        for (Index l = 0; l < lags && t + l < L && way == Direction::bidirectional; ++l) {
          sum += backward[std::size_t(l)] * x(t + l, c);
        }
        y(t, c) = silu(sum);
      }
    }
    return y;
  }
};

const MixerRegistration<MegaEmaTests<Direction::causal>> causal;
const MixerRegistration<MegaEmaTests<Direction::bidirectional>> bidirectional;

template <class T, Direction way>
void check_convolutions() {
  if constexpr (scalar_tested<T>) {
    check_convolution<MegaEma<T, way>>({.channels = 11, .averages = 3});
    check_convolution<MegaEma<T, way>>({.channels = 5, .averages = 2, .truncation = 40});
    // Against the equations, decays from nearly 0 to 1 - 1e-9.
    using Tests = MegaEmaTests<way>;
    for (const Index truncation : {Index(0), Index(7)}) {
      const typename MegaEma<double, way>::Config config{.channels = 6, .averages = 3, .truncation = truncation};
      Rng rng(8);
      const auto weights = Tests::weights(config, rng);
      const Matrixd x = normal_matrix<double>(400, 6, 1.0, rng), expected = Tests::reference(config, weights, x);
      typename MegaEma<T, way>::Weights rounded;
      rounded.delta = weights.delta.template cast<T>(), rounded.alpha = weights.alpha.template cast<T>();
      rounded.beta = weights.beta.template cast<T>(), rounded.gamma = weights.gamma.template cast<T>();
      rounded.omega = weights.omega.template cast<T>();
      const MegaEma<T, way> mixer({6, 3, truncation, 400}, rounded);
      const Matrix<T> input = x.template cast<T>();
      Matrix<T> y(400, 6);
      Workspace workspace;
      mixer.convolve(input, y, workspace);
      const double largest = expected.cwiseAbs().maxCoeff();
      CHECK((y.template cast<double>() - expected).cwiseAbs().maxCoeff() <= ten_times_golden<T> / 10 * largest);
    }
  }
}

TEST_CASE("mega_ema: the convolution with the kernel gives what the scan gives", "[mega_ema]") {
  check_convolutions<float, Direction::causal>();
  check_convolutions<double, Direction::causal>();
  check_convolutions<float, Direction::bidirectional>();
  check_convolutions<double, Direction::bidirectional>();
}

TEST_CASE("mega_ema: steps through many tokens give what the scan gives", "[mega_ema]") {
  check_long_steps<MegaEma<float>>({.channels = 3, .averages = 4});
  check_long_steps<MegaEma<double>>({.channels = 3, .averages = 4});
}

}  // namespace
}  // namespace seqmix::test
