#include <algorithm>
#include <cmath>
#include <memory>
#include <seqmix/ssm/mamba.hpp>
#include <string>

#include "support/data.hpp"

namespace seqmix::bench {
namespace {

struct Data {
  Data(Index length, Index of_channels, Index of_states, int threads)
      : channels(of_channels),
        states(of_states),
        input(length, 1, channels, -1, 1, rng),
        delta(length, 1, channels, -1, 1, rng),
        gate(length, 1, channels, -2, 2, rng),
        write(length, 1, states, -1, 1, rng),
        read(length, 1, states, -1, 1, rng),
        output(length, 1, channels),
        decay(channels, 1, states),
        skip(1, 1, channels, -1, 1, rng),
        delta_bias(1, 1, channels, -5, -2, rng),
        state(channels, 1, states),
        workspace(executor(threads)) {
    for (Index c = 0; c < channels; ++c) {
      for (Index n = 0; n < states; ++n) decay.view()(c, 0, n) = float(double(n + 1) * rng.uniform(-1.5, -0.5));
    }
  }

  void run(Index begin, Index count) {
    const auto rows = [&](Tensor& tensor) { return tensor.flat().rows(begin, count); };
    mamba<float>(rows(input), rows(delta), decay.flat(), write.view().rows(begin, count),
                 read.view().rows(begin, count), {skip.flat().token(0), delta_bias.flat().token(0), rows(gate)},
                 state.flat(), rows(output), workspace);
  }

  /// Compares tokens begin .. length - 1 with the equations in double, for some channels.
  void check(Index begin, Index length) {
    Comparison comparison;
    for (const Index c : {Index(0), channels / 3, channels - 1}) {
      std::vector<double> s(static_cast<std::size_t>(states));
      for (Index t = 0; t < length; ++t) {
        const double d = std::log1p(std::exp(double(delta.flat()(t, c)) + double(delta_bias.flat()(0, c))));
        const double u = input.flat()(t, c), z = gate.flat()(t, c);
        double sum = double(skip.flat()(0, c)) * u;
        for (Index n = 0; n < states; ++n) {
          double& state_n = s[std::size_t(n)];
          state_n = std::exp(d * double(decay.flat()(c, n))) * state_n + d * u * double(write.flat()(t, n));
          sum += state_n * double(read.flat()(t, n));
        }
        const double expected = sum * z / (1 + std::exp(-z));
        if (t >= begin) comparison.add(&output.flat()(t, c), &expected, 1);
      }
    }
    comparison.expect_within(1e-5, "the selective scan");
  }

  Rng rng{3};
  Index channels, states;
  Tensor input, delta, gate, write, read, output, decay, skip, delta_bias, state;
  Workspace workspace;
};

/// A whole sequence, or with `context` > 0 a single token after that many.
Case selective(Index length, Index context, Index channels, Index states, int threads) {
  constexpr Index spare = 16;  // steps go round these tokens, which follow the context
  const auto data = std::make_shared<Data>(context > 0 ? context + spare : length, channels, states, threads);
  Case result;
  if (context > 0) {
    data->run(0, context);
    const auto steps = std::make_shared<Index>(0);
    result.run = [=] { data->run(context + (*steps)++ % spare, 1); };
    result.check = [=] { data->check(context, context + 1); };
    result.work = work::selective_scan_step(channels, states);
    result.tokens = 1;
  } else {
    result.prepare = [=] { std::fill(data->state.numbers().begin(), data->state.numbers().end(), 0.0f); };
    result.run = [=] { data->run(0, length); };
    result.check = [=] { data->check(0, length); };
    result.work = work::selective_scan(length, channels, states);
    result.tokens = length;
  }
  result.state_bytes = Index(data->state.numbers().size() * sizeof(float));
  result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
  return result;
}

const bool registered = [] {
  constexpr Index channels = 1536, states = 16;
  for (const Index length : {Index(2048), Index(8192)}) {
    if (length > effort().longest_core) continue;
    add_benchmark("core/mamba/length:" + std::to_string(length),
                  [=](int threads) { return selective(length, 0, channels, states, threads); });
  }
  add_benchmark("core/mamba/channels:8/length:8192",
                [](int threads) { return selective(8192, 0, 8, states, threads); });
  add_benchmark("core_step/mamba/context:2048",
                [](int threads) { return selective(1, 2048, channels, states, threads); });
  return true;
}();

}  // namespace
}  // namespace seqmix::bench
