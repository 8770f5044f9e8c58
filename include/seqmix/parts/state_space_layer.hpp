// The layer around a structured state space: S4's block.
//
//   Source    Gu, Goel, Re 2022, arXiv:2111.00396; state-spaces/s4, models/s4/s4.py, S4Block and FFTConv
//
//   y = W gelu(core(x)) + b, its first half times the sigmoid of its second
#pragma once

#include <seqmix/core/mixer.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/parts/mixing_output.hpp>
#include <seqmix/parts/state_space.hpp>
#include <seqmix/parts/state_space_convolution.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// A core with its layer. Core has name, Scalar, low_rank, a constructor (config, weights, direction), outputs, state_shape, and
/// run from and into a state, and over a whole sequence, and kernel(length).
template <class Core, Direction way>
class StateSpaceLayer : public RecurrentMixerBase<StateSpaceLayer<Core, way>, typename Core::Scalar> {
 public:
  using T = typename Core::Scalar;
  using Config = StateSpaceConfig;
  static constexpr std::string_view name = Core::name;
  static constexpr Direction direction = way;
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Weights {
    StateSpaceWeights<T> core;
    Matrix<T> output;       // [2 D or D, c D]
    Vector<T> output_bias;  // [2 D or D]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("layer.D", self.core.d, Presence::required);
      visitor("layer.kernel.inv_dt", self.core.inv_dt, Presence::required);
      visitor("layer.kernel.C", self.core.c, Presence::required);
      visitor("layer.kernel.B", self.core.b, Presence::required);
      visitor("layer.kernel.A_real", self.core.a_real, Presence::required);
      visitor("layer.kernel.A_imag", self.core.a_imag, Presence::required);
      if constexpr (Core::low_rank) visitor("layer.kernel.P", self.core.p, Presence::required);
      visitor("output_linear.0.weight", self.output, Presence::required);
      visitor("output_linear.0.bias", self.output_bias, Presence::required);
    }
  };

  struct State {
    Tensor<T> modes;  // [2, H, M], real parts, then imaginary ones

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("modes", self.modes);
    }
  };

  /// Discretises and packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  StateSpaceLayer(const Config& config, const Weights& weights)
      : config_(config),
        core_(config, weights.core, way),
        output_(name, config.channels, config.outputs, config.activate, config.gated, weights.output,
                weights.output_bias) {
    expect(config.convolution_length >= 0, name, "config.convolution_length", "must not be negative");
    if (config.convolution_length == 0) return;
    convolution_ =
        StateSpaceConvolution<T>(name, config.channels, core_.kernel(config.convolution_length), weights.core.d, way);
  }

  /// Those of the core, and a projection uniform in +-inputs^-1/2 as torch begins it.
  static Weights random_weights(const Config& config, Rng& rng) {
    expect_state_space(name, config);
    Weights weights;
    weights.core = random_state_space<T>(config, rng, way);
    const Index D = config.channels, rows = D * (config.gated ? 2 : 1), inputs = D * config.outputs;
    const double limit = std::pow(double(inputs), -0.5);
    weights.output = random_projection<T>(rows, inputs, rng);
    weights.output_bias = uniform_vector<T>(rows, -limit, limit, rng);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }
  const Core& core() const { return core_; }

  /// y = mixer(x) for a whole sequence. x, y [L, D]. Throws std::invalid_argument on wrong shapes and overlapping views.
  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    if constexpr (way == Direction::causal) {
      RecurrentMixerBase<StateSpaceLayer, T>::forward(x, y, workspace);
    } else {
      internal::expect_input_output(name, channels(), x, y);
      if (x.length() == 0) return;
      const auto frame = workspace.frame();
      const auto mixed = workspace.sequence<T>(x.length(), core_.outputs());
      core_.run(x, mixed, workspace);
      output_.apply(mixed, y, workspace);
    }
  }

  /// forward as a convolution with the kernel: the same up to rounding, which depends on all tokens where there are more than
  /// a few dozen. x, y [L, D], L up to config.convolution_length. O(c L D log(L)) time. Allocates nothing once `workspace` is
  /// warm. Throws std::invalid_argument on wrong shapes, on overlapping views, and on longer sequences.
  void convolve(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    internal::expect_input_output(name, channels(), x, y);
    expect(x.length() <= convolution_.length(), name, "x", "is longer than config.convolution_length");
    if (x.length() == 0) return;
    const auto frame = workspace.frame();
    const auto mixed = workspace.sequence<T>(x.length(), core_.outputs());
    convolution_.run(x, mixed, workspace);
    output_.apply(mixed, y, workspace);
  }

  State initial_state() const
    requires(way == Direction::causal)
  {
    return {Tensor<T>(core_.state_shape())};
  }

  /// Throws std::invalid_argument unless the state has this mixer's shape.
  void check_state(const State& state) const {
    expect_shape(name, "state.modes", core_.state_shape(), state.modes.shape());
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const auto mixed = workspace.sequence<T>(x.length(), core_.outputs());
    for (Index i = 0; i < batch.size(); ++i) {
      const auto rows = [&](const auto& view) { return view.rows(batch.begin(i), batch.length(i)); };
      const Shape shape = core_.state_shape();
      core_.run(rows(x), {batch.state(i).modes.data(), 2, shape[1], shape[2], shape[1] * shape[2], shape[2]},
                rows(mixed), workspace);
    }
    output_.apply(mixed, y, workspace);
  }

 private:
  Config config_;
  Core core_;
  MixingOutput<T> output_;
  StateSpaceConvolution<T> convolution_;
};

}  // namespace seqmix::inline SEQMIX_ARCH
