#include <seqmix/ssm/s5.hpp>

#include <algorithm>
#include <complex>
#include <memory>
#include <vector>

#include "support/cores.hpp"
#include "support/data.hpp"

namespace seqmix::bench {
namespace {

constexpr Index channels = 768, modes = 192;

using Core = S5Core<float>;

Core::Config config() { return {.channels = channels, .modes = modes}; }

struct Data {
  Data(Index length, int threads)
      : x(length, 1, channels, -1, 1, rng),
        y(length, 1, channels),
        weights(Core::random_weights("s5", config(), rng, Direction::causal)),
        core("s5", config(), weights, Direction::causal),
        state(1, 2, modes),
        workspace(executor(threads)) {}

  void run(Index begin, Index count) {
    core.run(x.flat().rows(begin, count), {state.numbers().data(), 2, modes}, y.flat().rows(begin, count), workspace);
  }

  void clear() { std::fill(state.numbers().begin(), state.numbers().end(), 0.0f); }

  /// The recurrence in double, for the first tokens; of the others, that they are finite.
  void check(Index begin, Index length) const {
    expect_finite(y.flat().rows(begin, length - begin), "an output");
    if (begin > 0) return;
    std::vector<Complex> s(std::size_t(modes), 0.0);
    Comparison outputs;
    for (Index t = 0; t < std::min(length, Index(64)); ++t) {
      for (Index p = 0; p < modes; ++p) {
        const Complex lambda(double(weights.lambda_real[p]), double(weights.lambda_imag[p]));
        const Complex decay = std::exp(lambda * std::exp(double(weights.log_step[p])));
        Complex sum = 0;
        for (Index h = 0; h < channels; ++h) sum += number(weights.b, p * channels + h) * double(x.flat()(t, h));
        s[std::size_t(p)] = decay * s[std::size_t(p)] + (decay - 1.0) / lambda * sum;
      }
      for (const Index h : {Index(0), Index(5), channels - 1}) {
        double expected = double(weights.d[h]) * double(x.flat()(t, h));
        for (Index p = 0; p < modes; ++p) expected += 2 * (number(weights.c, h * modes + p) * s[std::size_t(p)]).real();
        outputs.add(y.flat().row(t) + h, &expected, 1);
      }
    }
    outputs.expect_within(1e-4, "the recurrence");
  }

  static Complex number(const Matrix<float>& parts, Index row) {
    return {double(parts(row, 0)), double(parts(row, 1))};
  }
  Index state_bytes() const { return Index(2 * modes * Index(sizeof(float))); }

  Rng rng{5};
  Tensor x, y;
  Core::Weights weights;
  Core core;
  Tensor state;
  Workspace workspace;
};

/// A token takes, for every mode, a complex multiply-add, and one for each part and channel of the input and of the output.
Work least_work(Index length) {
  return double(length) *
         Work{.flops = 8.0 * modes * (channels + 1) + 2.0 * channels, .streamed_bytes = 8.0 * channels};
}

Work step_work() {
  Work work = least_work(1);
  work.streamed_bytes = 0;
  work.footprint_bytes = work.resident_bytes = 4.0 * modes * (4 * channels + 4);
  return work;
}

const auto make = [](Index tokens, int threads) { return std::make_shared<Data>(tokens, threads); };
const bool registered = add_core("s5", make, least_work, step_work());

}  // namespace
}  // namespace seqmix::bench
