#include <seqmix/recurrent/mega_ema.hpp>

#include <cmath>
#include <memory>

#include "support/data.hpp"

namespace seqmix::bench {
namespace {

constexpr Index channels = 768, averages = 16;

struct Data {
  Data(Index length, int threads)
      : x(length, 1, channels, -1, 1, rng),
        y(length, 1, channels),
        weights(MegaEma<float>::random_weights({.channels = channels, .averages = averages}, rng)),
        mixer({.channels = channels, .averages = averages}, weights),
        state(mixer.initial_state()),
        workspace(executor(threads)) {}

  void run(Index begin, Index count) {
    mixer.prefill(state, x.flat().rows(begin, count), y.flat().rows(begin, count), workspace);
  }

  /// The averages of some channels, in double.
  void check(Index length) const {
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
        sum *= logistic(sum);
        outputs.add(y.flat().row(t) + c, &sum, 1);
      }
    }
    outputs.expect_within(1e-5, "the averages");
  }

  Rng rng{5};
  Tensor x, y;
  MegaEma<float>::Weights weights;
  MegaEma<float> mixer;
  MegaEma<float>::State state;
  Workspace workspace;
};

Case sequence(Index length, int threads) {
  const auto data = std::make_shared<Data>(length, threads);
  Case result;
  result.prepare = [=] { data->state = data->mixer.initial_state(); };
  result.run = [=] { data->run(0, length); };
  result.check = [=] { data->check(length); };
  result.work = work::damped_averages(length, channels, averages);
  result.tokens = length;
  result.state_bytes = Index(data->state.memory.size() * sizeof(float));
  result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
  return result;
}

Case step(int threads) {
  constexpr Index context = 64, spare = 16;
  const auto data = std::make_shared<Data>(context + spare, threads);
  data->run(0, context);
  const auto steps = std::make_shared<Index>(0);
  Case result;
  result.run = [=] { data->run(context + (*steps)++ % spare, 1); };
  result.check = [=] { data->check(context + 1); };
  result.work = work::damped_averages(1, channels, averages);
  result.work.streamed_bytes = 0;
  result.work.footprint_bytes = 4.0 * channels * averages * (1 + 3);  // the state, and the coefficients
  result.work.resident_bytes = 4.0 * channels * averages * (2 + 3);
  result.tokens = 1;
  return result;
}

const bool registered = [] {
  for (const Index length : {Index(2048), Index(8192)}) {
    if (length > effort().longest_core) continue;
    add_benchmark("core/mega_ema/length:" + std::to_string(length),
                  [=](int threads) { return sequence(length, threads); });
  }
  add_benchmark("core_step/mega_ema/context:64", [](int threads) { return step(threads); });
  return true;
}();

}  // namespace
}  // namespace seqmix::bench
