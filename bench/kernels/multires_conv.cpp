#include <seqmix/convolution/multires_conv.hpp>

#include <cmath>
#include <memory>
#include <vector>

#include "support/cores.hpp"
#include "support/data.hpp"

namespace seqmix::bench {
namespace {

constexpr Index channels = 768, taps = 2, depth = 10;

struct Data {
  Data(Index length, int threads)
      : x(length, 1, channels, -1, 1, rng),
        y(length, 1, channels),
        weights(MultiresConv<float>::random_weights({.channels = channels, .kernel_size = taps, .depth = depth}, rng)),
        mixer({.channels = channels, .kernel_size = taps, .depth = depth}, weights),
        state(mixer.initial_state()),
        workspace(executor(threads)) {}

  void run(Index begin, Index count) {
    mixer.prefill(state, x.flat().rows(begin, count), y.flat().rows(begin, count), workspace);
  }

  void clear() { state = mixer.initial_state(); }

  /// The cascades of some channels, level by level in double.
  void check(Index begin, Index length) const {
    Comparison outputs;
    for (const Index c : {Index(0), Index(5), channels - 1}) {
      std::vector<double> low(std::size_t(length), 0.0), sum(low), next(low);
      for (Index t = 0; t < length; ++t) {
        low[std::size_t(t)] = double(x.flat()(t, c));
        sum[std::size_t(t)] = double(weights.weight(c, depth + 1)) * low[std::size_t(t)];
      }
      for (Index i = 0; i < depth; ++i) {
        for (Index t = 0; t < length; ++t) {
          const double now = low[std::size_t(t)], past = t >> i > 0 ? low[std::size_t(t - (Index(1) << i))] : 0;
          next[std::size_t(t)] = double(weights.low(c, 1)) * now + double(weights.low(c, 0)) * past;
          sum[std::size_t(t)] += double(weights.weight(c, depth - i)) *
                                 (double(weights.high(c, 1)) * now + double(weights.high(c, 0)) * past);
        }
        std::swap(low, next);
      }
      for (Index t = begin; t < length; ++t) {
        double z = sum[std::size_t(t)] + double(weights.weight(c, 0)) * low[std::size_t(t)];
        z *= 0.5 * (1 + std::erf(z / std::sqrt(2.0)));
        outputs.add(y.flat().row(t) + c, &z, 1);
      }
    }
    outputs.expect_within(1e-5, "the cascade");
  }

  Index state_bytes() const { return Index(state.past.size() * sizeof(float)); }

  Rng rng{5};
  Tensor x, y;
  MultiresConv<float>::Weights weights;
  MultiresConv<float> mixer;
  MultiresConv<float>::State state;
  Workspace workspace;
};

// A multiply-add for each tap of two filters and for the weight of each level; an exponential in the activation.
Work least_work(Index length) {
  const double numbers = double(length * channels);
  return numbers * Work{.flops = depth * (4.0 * taps + 2) + 4, .exps = 1, .streamed_bytes = 4 * 2};
}

Work step_work() {
  Work work = least_work(1);
  work.streamed_bytes = 0;
  work.footprint_bytes = 4.0 * channels * (2 * taps + depth + 2 + 2 * depth);  // filters, and what is read and written
  work.resident_bytes = work.footprint_bytes;
  return work;
}

const bool registered = add_core(
    "multires_conv", [](Index tokens, int threads) { return std::make_shared<Data>(tokens, threads); }, least_work,
    step_work());

}  // namespace
}  // namespace seqmix::bench
