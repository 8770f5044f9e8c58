// Mamba: the selective scan and the layer.
#include <cmath>
#include <seqmix/engine/memory.hpp>
#include <seqmix/ssm/mamba.hpp>

#include "support/golden.hpp"
#include "support/recurrence_golden.hpp"
#include "support/recurrence_reference.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

template <class T>
struct MambaCoreGolden final : GoldenRunner<T> {
  explicit MambaCoreGolden(GoldenCase& golden)
      : channels(golden.config().integer("dim")),
        states(golden.config().integer("state_dim")),
        groups(golden.config().integer("groups", Index(1))),
        softplus(golden.config().boolean("delta_softplus")),
        input(golden.array<T>("input.u", {-1, channels})),
        delta(golden.array<T>("input.delta", {input.size(0), channels})),
        write(golden.array<T>("input.B")),
        read(golden.array<T>("input.C", write.shape())),
        decay(golden.array<T>("weight.A", {channels, states})),
        output({input.size(0), channels}),
        initial({channels, states}) {
    auto& config = golden.config();
    config.expect("discretization", "zoh_A_euler_B");
    config.expect("causal", true);
    const std::string layout = config.text("bc_layout", "L,G,N");
    if (layout != "L,G,N" && layout != "L,N") config.unknown("bc_layout");
    if (write.size() != input.size(0) * groups * states) throw GoldenError("input.B has another size");
    if (config.boolean("has_z", false)) gate = golden.array<T>("input.z", {input.size(0), channels});
    if (config.boolean("has_D", false)) skip = golden.array<T>("weight.D", {channels});
    if (config.boolean("has_delta_bias", false)) bias = golden.array<T>("weight.delta_bias", {channels});
    if (golden.has("input.state.ssm")) initial = golden.array<T>("input.state.ssm", {channels, states});
  }
  Index length() const override { return input.size(0); }
  void reset() override { state = initial; }
  void run(Index begin, Index count) override {
    const auto grouped = [&](const GoldenArray<T>& of) {
      return HeadSequence<const T>(of.data(), length(), groups, states).rows(begin, count);
    };
    MambaOptions<T> options{.softplus = softplus};
    if (skip.size() > 0) options.skip = skip.token();
    if (bias.size() > 0) options.delta_bias = bias.token();
    if (gate.size() > 0) options.gate = gate.sequence().rows(begin, count);
    mamba<T>(input.sequence().rows(begin, count), delta.sequence().rows(begin, count), decay.sequence(), grouped(write),
             grouped(read), options, state.sequence(), output.sequence().rows(begin, count), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", output);
    outputs.add("state.ssm", state);
  }

  Index channels, states, groups;
  bool softplus;
  GoldenArray<T> input, delta, write, read, decay, gate, skip, bias, output, initial, state;
};

template <class T>
struct MambaLayerGolden final : GoldenLayer<Mamba<T>> {
  using Base = GoldenLayer<Mamba<T>>;
  using State = typename Mamba<T>::State;

  explicit MambaLayerGolden(GoldenCase& golden) : Base(golden, config(golden)) {}

  static typename Mamba<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    typename Mamba<T>::Config result;
    result.channels = config.integer("d_model");
    result.state_dim = config.integer("d_state");
    result.convolution_width = config.integer("d_conv");
    result.expand = config.integer("expand");
    result.delta_rank = config.integer("dt_rank");
    result.convolution_bias = config.boolean("conv_bias");
    result.bias = config.boolean("bias");
    config.expect("d_inner", result.expand * result.channels);
    config.expect("activation", "silu");
    config.expect("delta_softplus", true);
    config.expect("causal", true);
    return result;
  }
  void read_state(GoldenCase& golden, State& state) override {
    if (golden.has("input.state.ssm_state")) golden.copy("input.state.ssm_state", state.memory);
    if (golden.has("input.state.conv_state")) {
      Tensor<T> given({state.convolution.shape()[1], state.convolution.shape()[0]});
      golden.copy("input.state.conv_state", given);
      state.convolution = transposed(given);
    }
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    outputs.add("state.ssm_state", state.memory);
    outputs.add("state.conv_state", transposed(state.convolution));
  }
};

const GoldenRegistration<MambaCoreGolden> core_golden{"mamba", "core"};
const GoldenRegistration<MambaLayerGolden> layer_golden{"mamba", "layer"};

// --- the layer --------------------------------------------------------------------------------------------------------

struct MambaTests {
  static constexpr const char* name = "mamba";
  template <class T>
  using Mixer = Mamba<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    return {{"one channel, one state", {.channels = 1, .state_dim = 1, .expand = 1}},
            {"5 channels, biases, width 3",
             {.channels = 5, .state_dim = 3, .convolution_width = 3, .expand = 3, .delta_rank = 2, .bias = true}},
            {"16 channels, no biases", {.channels = 16, .convolution_bias = false}},
            {"40 channels", {.channels = 40}},
            {"random",
             {.channels = rng.integer(1, 20),
              .state_dim = rng.integer(1, 20),
              .convolution_width = rng.integer(1, 5),
              .expand = rng.integer(1, 3),
              .delta_rank = rng.integer(1, 4),
              .bias = true}}};
  }
  static Matrixd reference(const Mamba<double>::Config& config, const Mamba<double>::Weights& weights,
                           const Matrixd& x) {
    const Index E = config.expand * config.channels, N = config.state_dim, R = weights.delta.cols();
    const Matrixd xz = linear(x, weights.input, weights.input_bias);
    const Matrixd u = map(short_convolution(xz.leftCols(E), weights.convolution, weights.convolution_bias), silu);
    const Matrixd selected = linear(u, weights.selection);
    const Matrixd delta = linear(selected.leftCols(R), weights.delta, weights.delta_bias);
    Matrixd y(x.rows(), E);
    for (Index c = 0; c < E; ++c) {
      std::vector<double> s(std::size_t(N), 0.0);
      for (Index t = 0; t < x.rows(); ++t) {
        const double d = softplus(delta(t, c));
        double sum = weights.skip[c] * u(t, c);
        for (Index n = 0; n < N; ++n) {
          double& state = s[std::size_t(n)];
          state = std::exp(-d * std::exp(weights.log_decay(c, n))) * state + d * selected(t, R + n) * u(t, c);
          sum += state * selected(t, R + N + n);
        }
        y(t, c) = sum * silu(xz(t, E + c));
      }
    }
    return linear(y, weights.output, weights.output_bias);
  }
};

const MixerRegistration<MambaTests> mixer;

}  // namespace
}  // namespace seqmix::test
