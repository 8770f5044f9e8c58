// The shift system of H3, what is new in it: the rest is the diagonal system of S4D.
#include <seqmix/engine/shift_system.hpp>

#include <algorithm>
#include <memory>

#include "support/cores.hpp"
#include "support/data.hpp"

namespace seqmix::bench {
namespace {

constexpr Index channels = 768, states = 64;

struct Data {
  Data(Index length, int threads)
      : x(length, 1, channels, -1, 1, rng),
        y(length, 1, channels),
        input(normal_matrix<float>(channels, states, 0.1, rng)),
        output(normal_matrix<float>(channels, states, 1.0, rng)),
        skip(uniform_vector<float>(channels, -1, 1, rng)),
        system("shift", input, output, skip),
        state(std::size_t(channels * states)),
        workspace(executor(threads)) {}

  void run(Index begin, Index count) {
    const auto frame = workspace.frame();
    system.run(x.flat().rows(begin, count), state.data(), y.flat().rows(begin, count), workspace);
  }

  void clear() { std::fill(state.begin(), state.end(), 0.0f); }

  /// The convolution that it is.
  void check(Index begin, Index length) const {
    Comparison outputs;
    for (const Index c : {Index(0), Index(5), channels - 1}) {
      for (const Index t : sampled_rows(length)) {
        if (t < begin) continue;
        double sum = double(skip[c]) * double(x.flat()(t, c));
        for (Index l = 0; l < states && l <= t; ++l) {
          for (Index n = 0; n + l < states; ++n) {
            sum += double(input(c, n)) * double(output(c, n + l)) * double(x.flat()(t - l, c));
          }
        }
        outputs.add(y.flat().row(t) + c, &sum, 1);
      }
    }
    outputs.expect_within(1e-5, "the shift system");
  }

  Index state_bytes() const { return Index(state.size() * sizeof(float)); }

  Rng rng{5};
  Tensor x, y;
  Matrix<float> input, output;
  Vector<float> skip;
  ShiftSystem<float> system;
  Buffer<float> state;
  Workspace workspace;
};

// As a convolution with as many taps.
Work least_work(Index length) { return work::short_convolution(length, channels, states + 1); }

Work step_work() {
  Work work = least_work(1);
  work.streamed_bytes = 0;
  work.footprint_bytes = 4.0 * channels * states * 3;  // the state, and the coefficients
  work.resident_bytes = 4.0 * channels * states * 4;
  return work;
}

const bool registered = add_core(
    "h3_shift", [](Index tokens, int threads) { return std::make_shared<Data>(tokens, threads); }, least_work,
    step_work());

}  // namespace
}  // namespace seqmix::bench
