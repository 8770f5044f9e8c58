#include <seqmix/convolution/short_conv.hpp>

#include <cmath>
#include <memory>

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

  void check(Index length) const {
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

  Rng rng{5};
  Tensor x, y;
  ShortConv<float>::Weights weights;
  ShortConv<float> mixer;
  ShortConv<float>::State state;
  Workspace workspace;
};

Case sequence(Index length, int threads) {
  const auto data = std::make_shared<Data>(length, threads);
  Case result;
  result.prepare = [=] { data->state = data->mixer.initial_state(); };
  result.run = [=] { data->run(0, length); };
  result.check = [=] { data->check(length); };
  result.work = work::short_convolution(length, channels, width);
  result.tokens = length;
  result.state_bytes = Index(data->state.inputs.size() * sizeof(float));
  result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
  return result;
}

const bool registered = [] {
  // The first stays in a cache, the others stream.
  for (const Index length : {Index(64), Index(2048), Index(8192)}) {
    if (length > effort().longest_core) continue;
    add_benchmark("core/short_conv/length:" + std::to_string(length),
                  [=](int threads) { return sequence(length, threads); });
  }
  return true;
}();

}  // namespace
}  // namespace seqmix::bench
