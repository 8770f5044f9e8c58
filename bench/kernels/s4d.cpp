#include <seqmix/ssm/s4d.hpp>

#include <memory>

#include "support/data.hpp"

namespace seqmix::bench {
namespace {

constexpr Index channels = 768, modes = 32;

struct Data {
  explicit Data(Index length, int threads)
      : x(length, 1, channels, -1, 1, rng),
        y(length, 1, channels),
        weights(random_state_space<float>(config(), rng, Direction::causal)),
        core(config(), weights, Direction::causal),
        state(std::size_t(2 * channels * modes)),
        workspace(executor(threads)) {}

  static StateSpaceConfig config() { return {.channels = channels, .modes = modes}; }

  void run(Index begin, Index count) {
    core.run(x.flat().rows(begin, count), HeadSequence<float>(state.data(), 2, channels, modes),
             y.flat().rows(begin, count), workspace);
  }

  /// The convolution with the kernel, for some rows of some channels.
  void check() const {
    const Index length = x.view().length();
    const Matrix<double> kernel = core.kernel(length);
    Comparison outputs;
    for (const Index h : {Index(0), Index(5), channels - 1}) {
      for (const Index t : sampled_rows(length)) {
        double expected = double(weights.d(0, h)) * double(x.flat()(t, h));
        for (Index s = 0; s <= t; ++s) expected += kernel(h, t - s) * double(x.flat()(s, h));
        outputs.add(y.flat().row(t) + h, &expected, 1);
      }
    }
    outputs.expect_within(1e-3, "the convolution");
  }

  Rng rng{5};
  Tensor x, y;
  StateSpaceWeights<float> weights;
  S4dCore<float> core;
  Buffer<float> state;
  Workspace workspace;
};

/// A token takes, for every mode, a complex multiply-add (four real ones), and one for each part of the input and of the
/// output.
Work least_work(Index length) {
  const double tokens = double(length * channels);
  return {.flops = tokens * (16.0 * modes + 2), .streamed_bytes = 8 * tokens};
}

Case sequence(Index length, int threads) {
  const auto data = std::make_shared<Data>(length, threads);
  Case result;
  result.prepare = [=] { std::fill(data->state.begin(), data->state.end(), 0.0f); };
  result.run = [=] { data->run(0, length); };
  result.check = [=] { data->check(); };
  result.work = least_work(length);
  result.tokens = length;
  result.state_bytes = Index(data->state.size() * sizeof(float));
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
  result.check = [=] { expect_finite(data->y.flat().rows(0, context + 1), "a step"); };
  result.work = least_work(1);
  result.work.streamed_bytes = 0;
  result.work.footprint_bytes = 4.0 * channels * modes * (2 + 6);  // the state, and the coefficients
  result.work.resident_bytes = 4.0 * channels * modes * (4 + 6);
  result.tokens = 1;
  return result;
}

const bool registered = [] {
  for (const Index length : {Index(2048), Index(8192)}) {
    if (length > effort().longest_core) continue;
    add_benchmark("core/s4d/length:" + std::to_string(length), [=](int threads) { return sequence(length, threads); });
  }
  add_benchmark("core_step/s4d/context:64", [](int threads) { return step(threads); });
  return true;
}();

}  // namespace
}  // namespace seqmix::bench
