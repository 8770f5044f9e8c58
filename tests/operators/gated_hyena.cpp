// Gated Hyena: the core of the authors, and the layer around it.
#include <complex>
#include <seqmix/convolution/gated_hyena.hpp>

#include "support/golden.hpp"
#include "support/recurrence_golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

template <class T>
struct GatedHyenaGolden final : GoldenRunner<T> {
  explicit GatedHyenaGolden(GoldenCase& golden) : u(golden.array<T>("input.u")) {
    auto& config = golden.config();
    config.expect("causal", true);
    config.ignore("input");
    GatedHyenaWeights<T> weights;
    golden.read_weights(weights);
    const GatedHyenaConfig sizes{.channels = config.integer("dim"),
                                 .heads = config.integer("heads"),
                                 .modes = config.integer("state_dim"),
                                 .short_width = config.integer("short_filter_order"),
                                 .column_split = config.boolean("column_split"),
                                 .filter_groups = config.integer("filter_groups")};
    core = GatedHyenaCore<T>(sizes, weights);
    y = GoldenArray<T>({u.size(0), sizes.channels});
    initial = core.initial_state();
    if (!golden.has("input.state.fir")) return;
    Tensor<T> given({initial.inputs.shape()[1], initial.inputs.shape()[0]});
    golden.copy("input.state.fir", given);
    initial.inputs = transposed(given);
    const std::size_t half = initial.modes.size() / 2;
    golden.copy("input.state.iir.real", std::span<T>(initial.modes.data(), half));
    golden.copy("input.state.iir.imag", std::span<T>(initial.modes.data() + half, half));
  }
  Index length() const override { return u.size(0); }
  void reset() override { state = initial; }
  void run(Index begin, Index count) override {
    const auto frame = this->workspace.frame();
    GatedHyenaState<T>* const states[] = {&state};
    const Index offsets[] = {0, count};
    core.run({states, offsets}, u.sequence().rows(begin, count), y.sequence().rows(begin, count), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", y);
    outputs.add("filter", core.filter(length()));
    outputs.add("state.fir", transposed(state.inputs));
    const std::size_t half = state.modes.size() / 2;
    outputs.add("state.iir.real", std::vector<T>(state.modes.data(), state.modes.data() + half));
    outputs.add("state.iir.imag", std::vector<T>(state.modes.data() + half, state.modes.data() + 2 * half));
  }

  GoldenArray<T> u, y;
  GatedHyenaCore<T> core;
  GatedHyenaState<T> initial, state;
};

const GoldenRegistration<GatedHyenaGolden> golden{"gated_hyena", "core"};

struct GatedHyenaTests {
  static constexpr const char* name = "gated_hyena";
  template <class T>
  using Mixer = GatedHyena<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index heads = rng.integer(1, 5);
    return {{"one channel", {.channels = 1, .modes = 1, .short_width = 1}},
            {"three heads of 5", {.channels = 15, .heads = 3, .modes = 4}},
            {"streams in blocks", {.channels = 12, .heads = 3, .modes = 2, .column_split = false}},
            {"filters for three channels", {.channels = 12, .heads = 2, .modes = 3, .filter_groups = 3}},
            {"random",
             {.channels = heads * rng.integer(1, 9),
              .heads = heads,
              .modes = rng.integer(1, 10),
              .short_width = rng.integer(2, 5)}}};
  }

  static GatedHyena<double>::Weights weights(const GatedHyenaConfig& config, Rng& rng) {
    auto result = GatedHyena<double>::random_weights(config, rng);
    const Matrixd poles = result.core.poles;
    stir(result, rng);
    result.core.poles = poles;  // inside the unit circle
    return result;
  }

  static Matrixd reference(const GatedHyenaConfig& config, const GatedHyena<double>::Weights& weights,
                           const Matrixd& x) {
    const Index L = x.rows(), D = config.channels, N = config.modes, w = config.short_width, P = D / config.heads;
    const auto& core = weights.core;
    const Matrixd projected = linear(x, weights.input, weights.input_bias);
    Matrixd u(L, 3 * D), y(L, D);
    for (Index t = 0; t < L; ++t) {
      for (Index c = 0; c < 3 * D; ++c) {
        u(t, c) = core.short_filter_bias[c];
        for (Index j = 0; j < w; ++j) {
          const Index s = t - w + 1 + j;
          if (s >= 0) u(t, c) += core.short_filter(c, j) * projected(s, c);
        }
      }
    }
    for (Index d = 0; d < D; ++d) {
      const auto column = [&](Index which) {
        return config.column_split ? d / P * 3 * P + which * P + d % P : which * D + d;
      };
      for (Index t = 0; t < L; ++t) {
        const auto gated = [&](Index s) { return u(s, column(1)) * u(s, column(2)); };
        double sum = core.skip[d] * gated(t);
        for (Index l = 0; l <= t; ++l) {
          double tap = 0;
          for (Index n = 0; n < N; ++n) {
            const Index i = d / config.filter_groups * N + n;
            const std::complex<double> pole(core.poles(i, 0), core.poles(i, 1));
            const std::complex<double> residue(core.residues(i, 0), core.residues(i, 1));
            tap += (residue * std::polar(std::pow(std::abs(pole), double(l)), double(l) * std::arg(pole))).real();
          }
          sum += tap * gated(t - l);
        }
        y(t, d) = u(t, column(0)) * sum;
      }
    }
    return linear(y, weights.output, weights.output_bias);
  }
};

const MixerRegistration<GatedHyenaTests> mixer;

}  // namespace
}  // namespace seqmix::test
