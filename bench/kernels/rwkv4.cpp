#include <algorithm>
#include <cmath>
#include <memory>
#include <seqmix/recurrent/rwkv4.hpp>
#include <string>

#include "support/data.hpp"

namespace seqmix::bench {
namespace {

struct Data {
  Data(Index length, Index of_channels, int threads)
      : channels(of_channels),
        key(length, 1, channels, -3, 3, rng),
        value(length, 1, channels, -1, 1, rng),
        output(length, 1, channels),
        log_decay(1, 1, channels, -0.5, -0.001, rng),
        bonus(1, 1, channels, -1, 1, rng),
        state(LogAverage::state_rows, 1, channels),
        workspace(executor(threads)) {
    clear();
  }
  void clear() {
    std::fill(state.numbers().begin(), state.numbers().end(), 0.0f);
    std::fill_n(state.numbers().begin(), channels, log_average_empty<float>);
  }
  void run(Index begin, Index count) {
    const auto rows = [&](Tensor& tensor) { return tensor.flat().rows(begin, count); };
    rwkv4<float>(rows(key), rows(value), log_decay.flat().token(0), bonus.flat().token(0), state.flat(), rows(output),
                 workspace);
  }

  /// Compares tokens begin .. length - 1 with the equations in double, for some channels. Keys are small enough for that.
  void check(Index begin, Index length) {
    Comparison comparison;
    for (const Index c : {Index(0), channels / 3, channels - 1}) {
      double above = 0, below = 0;
      for (Index t = 0; t < length; ++t) {
        const double weight = std::exp(double(key.flat()(t, c))), v = value.flat()(t, c);
        const double now = weight * std::exp(double(bonus.flat()(0, c)));
        const double expected = (above + now * v) / (below + now);
        if (t >= begin) comparison.add(&output.flat()(t, c), &expected, 1);
        const double fade = std::exp(double(log_decay.flat()(0, c)));
        above = fade * above + weight * v, below = fade * below + weight;
      }
    }
    comparison.expect_within(1e-5, "the running average");
  }

  Rng rng{3};
  Index channels;
  Tensor key, value, output, log_decay, bonus, state;
  Workspace workspace;
};

/// A whole sequence, or with `context` > 0 a single token after that many.
Case average(Index length, Index context, Index channels, int threads) {
  constexpr Index spare = 16;  // steps go round these tokens, which follow the context
  const auto data = std::make_shared<Data>(context > 0 ? context + spare : length, channels, threads);
  Case result;
  if (context > 0) {
    data->run(0, context);
    const auto steps = std::make_shared<Index>(0);
    result.run = [=] { data->run(context + (*steps)++ % spare, 1); };
    result.check = [=] { data->check(context, context + 1); };
    result.work = work::log_average_step(channels);
    result.tokens = 1;
  } else {
    result.prepare = [=] { data->clear(); };
    result.run = [=] { data->run(0, length); };
    result.check = [=] { data->check(0, length); };
    result.work = work::log_average(length, channels);
    result.tokens = length;
  }
  result.state_bytes = Index(data->state.numbers().size() * sizeof(float));
  result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
  return result;
}

const bool registered = [] {
  for (const Index length : {Index(2048), Index(8192)}) {
    if (length > effort().longest_core) continue;
    add_benchmark("core/rwkv4/length:" + std::to_string(length),
                  [=](int threads) { return average(length, 0, 768, threads); });
  }
  add_benchmark("core_step/rwkv4/context:2048", [](int threads) { return average(1, 2048, 768, threads); });
  return true;
}();

}  // namespace
}  // namespace seqmix::bench
