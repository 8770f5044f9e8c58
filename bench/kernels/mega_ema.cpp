#include <seqmix/recurrent/mega_ema.hpp>

#include <cmath>
#include <memory>

#include "support/cores.hpp"
#include "support/data.hpp"

namespace seqmix::bench {
namespace {

constexpr Index all_channels = 768, convolved_channels = 64, averages = 16;

/// `convolves` whole sequences, instead of averaging token by token.
struct Data {
  Data(Index length, Index of_channels, bool of_convolves, int threads)
      : channels(of_channels),
        convolves(of_convolves),
        x(length, 1, channels, -1, 1, rng),
        y(length, 1, channels),
        weights(MegaEma<float>::random_weights({.channels = channels, .averages = averages}, rng)),
        mixer({.channels = channels, .averages = averages, .convolution_length = convolves ? length : 0}, weights),
        state(mixer.initial_state()),
        workspace(executor(threads)) {}

  void run(Index begin, Index count) {
    if (convolves) {
      mixer.convolve(x.flat(), y.flat(), workspace);
    } else {
      mixer.prefill(state, x.flat().rows(begin, count), y.flat().rows(begin, count), workspace);
    }
  }

  void clear() { state = mixer.initial_state(); }

  /// The averages of some channels, in double.
  void check(Index begin, Index length) const {
    const auto logistic = [](double z) { return 1 / (1 + std::exp(-z)); };
    Comparison outputs;
    for (const Index c : {Index(0), Index(5), channels - 1}) {
      std::vector<double> h(std::size_t(averages), 0.0);
      for (Index t = 0; t < length; ++t) {
        double sum = double(weights.omega[c]) * double(x.flat()(t, c));
        for (Index n = 0; n < averages; ++n) {
          const Index i = c * averages + n;
          const double p = logistic(double(weights.delta(i, 0))), q = 1 - p * logistic(double(weights.alpha(i, 0)));
          double& average = h[std::size_t(n)];
          average = q * average + p * double(weights.beta(i, 0)) * double(x.flat()(t, c));
          sum += double(weights.gamma(c, n)) / std::sqrt(double(averages)) * average;
        }
        if (t < begin) continue;
        sum *= logistic(sum);
        outputs.add(y.flat().row(t) + c, &sum, 1);
      }
    }
    outputs.expect_within(1e-5, "the averages");
  }

  Index state_bytes() const { return Index(state.memory.size() * sizeof(float)); }

  Index channels;
  bool convolves;
  Rng rng{5};
  Tensor x, y;
  MegaEma<float>::Weights weights;
  MegaEma<float> mixer;
  MegaEma<float>::State state;
  Workspace workspace;
};

const bool registered = [] {
  Work step = work::damped_averages(1, all_channels, averages);
  step.streamed_bytes = 0;
  step.footprint_bytes = 4.0 * all_channels * averages * (1 + 3);  // the state, and the coefficients
  step.resident_bytes = 4.0 * all_channels * averages * (2 + 3);
  const auto make = [](Index tokens, int threads) {
    return std::make_shared<Data>(tokens, all_channels, false, threads);
  };
  const auto whole = [](Index length) { return work::damped_averages(length, all_channels, averages); };
  const auto convolved = [](Index tokens, int threads) {
    return std::make_shared<Data>(tokens, convolved_channels, true, threads);
  };
  const auto convolution = [](Index length) {
    return work::long_convolution(length, convolved_channels) + Work{.exps = double(length * convolved_channels)};
  };
  return add_core_sequences("mega_ema", make, whole) && add_core_step("mega_ema", make, step, 64) &&
         add_core_sequences("mega_ema/convolve/channels:64", convolved, convolution);
}();

}  // namespace
}  // namespace seqmix::bench
