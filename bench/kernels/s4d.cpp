#include <seqmix/ssm/s4d.hpp>

#include <memory>

#include "support/cores.hpp"
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

  void clear() { std::fill(state.begin(), state.end(), 0.0f); }

  /// The convolution with the kernel, for some rows of some channels; of steps, that they are finite.
  void check(Index begin, Index length) const {
    if (begin > 0) return expect_finite(y.flat().rows(0, length), "a step");
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

  Index state_bytes() const { return Index(state.size() * sizeof(float)); }

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

Work step_work() {
  Work work = least_work(1);
  work.streamed_bytes = 0;
  work.footprint_bytes = 4.0 * channels * modes * (2 + 6);  // the state, and the coefficients
  work.resident_bytes = 4.0 * channels * modes * (4 + 6);
  return work;
}

const auto make = [](Index tokens, int threads) { return std::make_shared<Data>(tokens, threads); };
const bool registered = add_core_sequences("s4d", make, least_work) && add_core_step("s4d", make, step_work(), 64);

}  // namespace
}  // namespace seqmix::bench
