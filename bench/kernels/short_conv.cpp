#include <seqmix/convolution/short_conv.hpp>

#include <cmath>
#include <memory>

#include "support/cores.hpp"
#include "support/data.hpp"

namespace seqmix::bench {
namespace {

constexpr Index channels = 1536, width = 4;

struct Data {
  Data(Index length, int threads)
      : x(length, 1, channels, -1, 1, rng),
        y(length, 1, channels),
        weights(ShortConv<float>::random_weights({.channels = channels, .width = width}, rng)),
        mixer({.channels = channels, .width = width}, weights),
        state(mixer.initial_state()),
        workspace(executor(threads)) {}

  void run(Index begin, Index count) {
    mixer.prefill(state, x.flat().rows(begin, count), y.flat().rows(begin, count), workspace);
  }

  void clear() { state = mixer.initial_state(); }

  void check(Index, Index length) const {
    Comparison outputs;
    for (const Index t : sampled_rows(length)) {
      for (Index c = 0; c < channels; ++c) {
        double sum = double(weights.bias[c]);
        for (Index j = 0; j < width; ++j) {
          const Index s = t - width + 1 + j;
          if (s >= 0) sum += double(weights.weight(c, j)) * double(x.flat()(s, c));
        }
        sum /= 1 + std::exp(-sum);
        outputs.add(y.flat().row(t) + c, &sum, 1);
      }
    }
    outputs.expect_within(1e-6, "the convolution");
  }

  Index state_bytes() const { return Index(state.inputs.size() * sizeof(float)); }

  Rng rng{5};
  Tensor x, y;
  ShortConv<float>::Weights weights;
  ShortConv<float> mixer;
  ShortConv<float>::State state;
  Workspace workspace;
};

// The first stays in a cache, the others stream.
const bool registered = add_core_sequences(
    "short_conv", [](Index tokens, int threads) { return std::make_shared<Data>(tokens, threads); },
    [](Index length) { return work::short_convolution(length, channels, width); }, {64, 2048, 8192});

}  // namespace
}  // namespace seqmix::bench
