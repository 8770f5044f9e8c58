#include <seqmix/convolution/gated_hyena.hpp>

#include <memory>

#include "support/cores.hpp"
#include "support/data.hpp"

namespace seqmix::bench {
namespace {

constexpr Index channels = 768, modes = 8, width = 3;

struct Data {
  Data(Index length, int threads)
      : u(length, 1, 3 * channels, -1, 1, rng),
        y(length, 1, channels),
        weights(GatedHyena<float>::random_weights(config(), rng).core),
        core(config(), weights),
        state(core.initial_state()),
        workspace(executor(threads)) {}

  static GatedHyenaConfig config() {
    return {.channels = channels, .modes = modes, .short_width = width, .column_split = false};
  }

  void run(Index begin, Index count) {
    const auto frame = workspace.frame();
    GatedHyenaState<float>* const states[] = {&state};
    const Index offsets[] = {0, count};
    core.run({states, offsets}, u.flat().rows(begin, count), y.flat().rows(begin, count), workspace);
  }

  void clear() { state = core.initial_state(); }

  /// Some channels, token by token in double.
  void check(Index begin, Index length) const {
    Comparison outputs;
    for (const Index c : {Index(0), Index(5), channels - 1}) {
      const auto stream = [&](Index t, Index which) {
        const Index column = which * channels + c;
        double sum = double(weights.short_filter_bias[column]);
        for (Index j = 0; j < width; ++j) {
          const Index s = t - width + 1 + j;
          if (s >= 0) sum += double(weights.short_filter(column, j)) * double(u.flat()(s, column));
        }
        return sum;
      };
      std::complex<double> state_of_mode[modes] = {};
      for (Index t = 0; t < length; ++t) {
        const double gated = stream(t, 1) * stream(t, 2);
        double sum = double(weights.skip[c]) * gated;
        for (Index n = 0; n < modes; ++n) {
          const Index i = c * modes + n;
          auto& s = state_of_mode[n];
          s = s * std::complex<double>(weights.poles(i, 0), weights.poles(i, 1)) + gated;
          sum += (s * std::complex<double>(weights.residues(i, 0), weights.residues(i, 1))).real();
        }
        sum *= stream(t, 0);
        if (t >= begin) outputs.add(y.flat().row(t) + c, &sum, 1);
      }
    }
    outputs.expect_within(1e-4, "gated Hyena");
  }

  Index state_bytes() const { return Index((state.inputs.size() + state.modes.size()) * sizeof(float)); }

  Rng rng{5};
  Tensor u, y;
  GatedHyenaWeights<float> weights;
  GatedHyenaCore<float> core;
  GatedHyenaState<float> state;
  Workspace workspace;
};

Work least_work(Index length) {
  Work work = work::diagonal_system(length, channels, modes) + work::short_convolution(length, 3 * channels, width);
  work.flops += 4.0 * double(length * channels);  // the gates and D
  work.streamed_bytes = 4.0 * 4 * double(length * channels);
  return work;
}

Work step_work() {
  Work work = least_work(1);
  work.streamed_bytes = 0;
  const double numbers = double(channels) * (2 * modes + 3 * (width - 1));
  work.footprint_bytes = 4 * (numbers + double(channels) * (4 * modes + 3 * width));  // the state, and the coefficients
  work.resident_bytes = work.footprint_bytes + 4 * numbers;
  return work;
}

const bool registered = add_core(
    "gated_hyena", [](Index tokens, int threads) { return std::make_shared<Data>(tokens, threads); }, least_work,
    step_work());

}  // namespace
}  // namespace seqmix::bench
